"""The resolver that pods get: what --resolv-conf names, else what k3s finds by itself (pkg/agent/config)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from .failure import Failure

CANDIDATES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


@dataclass(frozen=True, kw_only=True)
class Resolver:
    """The lines of a resolv.conf that count."""

    servers: list[str]
    search: list[str]
    options: list[str]


PUBLIC = Resolver(servers=["8.8.8.8"], search=[], options=[])


def read(named: Path | None, candidates: Sequence[Path] = CANDIDATES) -> Resolver:
    """Read the file that was named; else the first whose servers pods can reach; else k3s's public server."""
    if named is not None:
        try:
            return parse(named.read_text(encoding="utf-8"))
        except OSError as error:
            raise Failure(f"cannot read {named} (--resolv-conf): {error.strerror}") from None
    for candidate in candidates:
        if candidate.is_file():
            found = parse(candidate.read_text(encoding="utf-8"))
            if found.servers and all(map(_is_global_unicast, found.servers)):
                return found
    return PUBLIC


def parse(text: str) -> Resolver:
    """Read a resolv.conf; the last search line counts, options add up."""
    found = Resolver(servers=[], search=[], options=[])
    for line in text.splitlines():
        key, *values = line.split() or [""]
        if key == "nameserver":
            found.servers.extend(values[:1])
        elif key == "search":
            found.search[:] = values
        elif key == "options":
            found.options.extend(values)
    return found


def _is_global_unicast(text: str) -> bool:
    """As Go's net.IP.IsGlobalUnicast, by which k3s goes: private addresses are."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)
