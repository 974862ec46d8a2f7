"""dnsmasq's configuration, where the outer resolver is a loopback address (network.sh tells when, and why)."""

from __future__ import annotations


def config(address: str) -> str:
    """dnsmasq's configuration. It asks what the container's own resolv.conf names and knows its /etc/hosts."""
    return (
        f"listen-address={address}\nbind-interfaces\ncache-size=1000\nuser=dnsmasq\ngroup=nogroup\n"
        "resolv-file=/etc/resolv.conf\npid-file=\nlog-facility=-\n"
    )
