"""The guests that smoke can boot an image on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Guest:
    """A small machine. Its kernel and modules are Debian's, so it has Debian's configuration."""

    name: str
    about: str
    cgroup_v1: bool = False  # all controllers on v1, and Debian's last kernel that has them all
    blocked: tuple[str, ...] = ()  # kernel modules that cannot be loaded, as if they did not exist

    @property
    def command_line(self) -> str:
        """Parameters for the kernel's command line; pipeline/engine/virtual/guest/init reads them."""
        return f"dind.cgroup={'v1' if self.cgroup_v1 else 'v2'} dind.block={','.join(self.blocked)}"


GUESTS = {
    guest.name: guest
    for guest in (
        Guest(name="default", about="cgroup v2 alone, nft and legacy iptables"),
        Guest(name="cgroup-v1", about="cgroup v1 alone", cgroup_v1=True),
        Guest(
            name="nft-only",
            about="no legacy iptables in the kernel",
            blocked=("ip_tables", "ip6_tables", "arp_tables", "ebtables"),
        ),
    )
}
