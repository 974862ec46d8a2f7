"""dnsmasq's configuration, where nested containers cannot ask the outer resolver (network.sh has the reasons)."""

from __future__ import annotations


def config(address: str) -> str:
    """dnsmasq's configuration. It asks what the container's own resolv.conf names and knows its /etc/hosts.

    By default dnsmasq refuses every name while it waits for 150 answers.
    """
    return (
        f"listen-address={address}\nbind-interfaces\ncache-size=1000\ndns-forward-max=5000\nuser=dnsmasq\ngroup=nogroup\n"
        "resolv-file=/etc/resolv.conf\npid-file=\nlog-facility=-\n"
    )
