"""Which small machine is booted: the matrix of guests that an image, or a fault of it, can be tried on."""

from __future__ import annotations

from dataclasses import dataclass

# The modules of each way to filter packets; one that may not be loaded is as good as absent.
_LEGACY = ("ip_tables", "ip6_tables", "arp_tables", "ebtables")
_NFT = ("nf_tables",)


@dataclass(frozen=True, kw_only=True)
class Guest:
    """A small machine. Its kernel and modules are Debian's own, so it has Debian's configuration."""

    name: str
    about: str
    memory: int = 4096  # MiB; a real k3s needs this much (qemu takes from the host what is used)
    cgroup_v1: bool = False  # all controllers on v1, and the last kernel of Debian that has them all
    blocked: tuple[str, ...] = ()  # kernel modules that cannot be loaded
    disk_rate: int | None = None  # bytes per second of the disk with /var/lib/docker; None: as fast as it goes

    @property
    def command_line(self) -> str:
        """What the kernel's command line says of it; pipeline/engine/virtual/guest/init reads it."""
        return f"dind.cgroup={'v1' if self.cgroup_v1 else 'v2'} dind.block={','.join(self.blocked)}"


GUESTS = {
    guest.name: guest
    for guest in (
        Guest(name="default", about="cgroup v2 alone, nft and legacy iptables, 4 GiB"),
        Guest(name="cgroup-v1", about="cgroup v1 alone", cgroup_v1=True),
        Guest(name="nft-only", about="no legacy iptables in the kernel", blocked=_LEGACY),
        Guest(name="legacy-only", about="no nf_tables in the kernel", blocked=_NFT),
        Guest(name="low-memory", about="1 GiB", memory=1024),
        Guest(name="slow-disk", about="10 MB/s, as an SD card", disk_rate=10_000_000),
    )
}
