"""What a binary tells without being run: its machine, and for Go programs how they were built.

Sources: elf(5); the format of the Go build information is described in Go's debug/buildinfo.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.platforms import Platform

_MAGIC = b"\xff Go buildinf:"
_SENTINEL = 16  # bytes around the module information


@dataclass(frozen=True, kw_only=True)
class GoBuild:
    """A Go program's build information."""

    go: str  # e.g. go1.24.4
    path: str  # main package
    version: str  # of the main module; often (devel)
    settings: Mapping[str, str] = field(default_factory=dict)  # -ldflags, GOARCH, vcs.revision, …
    dependencies: Mapping[str, str] = field(default_factory=dict)  # module → version


def machine(head: bytes) -> int | None:
    """e_machine of an ELF file's first 20 bytes; None when it is no 64-bit little-endian ELF file."""
    if len(head) < 20 or head[:4] != b"\x7fELF" or head[4:6] != b"\x02\x01":
        return None
    return int(struct.unpack_from("<H", head, 18)[0])


def machine_name(number: int) -> str:
    """The platform of an ELF machine number, or the number."""
    return next((p.value for p in Platform if p.names.elf_machine == number), f"ELF machine {number}")


def go_build(data: bytes) -> GoBuild | None:
    """The build information of a Go (1.18 or newer) program; None where there is none."""
    at = data.find(_MAGIC)
    # Flag 2: both strings follow inline, each with its length as a varint, 32 bytes after the magic's start.
    while at >= 0 and not (at % 16 == 0 and at + 32 < len(data) and data[at + 15] & 2):
        at = data.find(_MAGIC, at + 1)
    if at < 0:
        return None
    version, position = _string(data, at + 32)
    module, _ = _string(data, position)
    text = module[_SENTINEL:-_SENTINEL].decode("utf-8", "replace")
    path, main, settings, dependencies = "", "", {}, {}
    for line in text.splitlines():
        kind, _, rest = line.partition("\t")
        parts = rest.split("\t")
        if kind == "path":
            path = rest
        elif kind == "mod" and len(parts) > 1:
            main = parts[1]
        elif kind == "build":
            key, _, value = rest.partition("=")
            settings[key] = value.strip('"')
        elif kind == "dep" and len(parts) > 1:
            dependencies[parts[0]] = parts[1]
    return GoBuild(
        go=version.decode("ascii", "replace"),
        path=path,
        version=main,
        settings=settings,
        dependencies=dependencies,
    )


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    """A varint length and that many bytes; returns the bytes and the position behind them."""
    length = shift = 0
    while True:
        byte = data[at]
        at += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return data[at : at + length], at + length


def version_evidence(data: bytes, version: str) -> str | None:
    """Where a binary names this version; None when it does not.

    Build information is the better evidence; vendors that strip it still carry the text they print. A distribution's
    build may add `+dfsg…` or `+ds…` to it. The version must not be a part of a longer number.
    """
    wanted = version.removeprefix("v")
    exact = re.compile(rf"(?<![\d.]){re.escape(wanted)}(?![\d]|\.\d)".encode())
    build = go_build(data)
    if build is not None:
        if exact.search(build.version.encode()):
            return f"Go module version {build.version}"
        if exact.search(build.settings.get("-ldflags", "").encode()):
            return "Go build information (-ldflags)"
    return "text in the binary" if exact.search(data) else None
