"""Crafted ELF files and Go programs (headers and build information, no code), and tars of such files."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Mapping

from pipeline.core.platforms import Platform


def binary(text: str = "", platform: Platform = Platform.AMD64, *, end: int = 0) -> bytes:
    """An ELF header of that platform whose section headers end at `end` (0: it has none), and some text."""
    start = b"\x7fELF\x02\x01\x01" + b"\0" * 9 + struct.pack("<HHI", 2, platform.names.elf_machine, 1)
    sections = (end - 640, 64, 10) if end else (0, 0, 0)
    return start + struct.pack("<QQQIHHHHHH", 0, 0, sections[0], 0, 64, 56, 0, *sections[1:], 0) + text.encode()


def go_binary(
    version: str,
    ldflags: str = "",
    *,
    dependency: str = "v2.0.0",
    modules: Mapping[str, str] | None = None,
    platform: Platform = Platform.AMD64,
) -> bytes:
    """A binary with Go's inline build information, behind a copy of the magic that is none.

    `modules`: more dependencies; `v1 => other/module v2` is one that another module replaces.
    """
    module = f"path\texample.org/cmd\nmod\texample.org\t{version}\th1:x\ndep\texample.org/dep\t{dependency}\n"
    for name, text in (modules or {}).items():
        number, _, instead = text.partition(" => ")
        module += f"dep\t{name}\t{number}\th1:z\n"
        if instead:
            module += "=>\t" + instead.replace(" ", "\t") + "\th1:y\n"
    module += f'build\t-ldflags="{ldflags}"\nbuild\tGOARCH=amd64\n'
    magic = b"\xff Go buildinf:" + bytes([8, 2])
    info = magic + b"\0" * 16 + _string(b"go1.25.1") + _string(b"s" * 16 + module.encode() + b"e" * 16)
    return binary(platform=platform) + magic + b"\x01\x02" + b"\0" * 14 + info + b"\0" * 64


def _string(text: bytes) -> bytes:
    """Its length as a varint, and the text."""
    length, out = len(text), b""
    while length >= 0x80:
        out += bytes([length & 0x7F | 0x80])
        length >>= 7
    return out + bytes([length]) + text


def tarred(members: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """Return a tar of regular files, then symlinks."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return out.getvalue()
