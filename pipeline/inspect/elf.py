"""What a binary states without being run: its machine, whether it is whole, and for Go programs how they were built.

Sources: elf(5); the format of the Go build information is described in Go's debug/buildinfo.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.core.platforms import Platform

HEAD = 64  # bytes that `header` wants: the longest ELF header

_MAGIC = b"\xff Go buildinf:"
_SENTINEL = 16  # bytes around the module information
_ELSEWHERE = (b"dep\t", b"=>\t")  # lines of the build information that name versions of other modules
_BEHIND_MAJOR = rb"\.\d+\.\d+(?:[-+~][0-9A-Za-z.+~-]{1,40})?"
# A version as projects number their releases; a pseudo-version (a commit between two) is none.
_VERSION = rb"v?\d+" + _BEHIND_MAJOR
_PSEUDO = re.compile(r"(^v0\.0\.0$)|[.-]\d{14}-[0-9a-f]{12}")
# The linker's -X sets a variable to text of its own, which ends in a zero byte and begins behind one; Go's constants
# lie one behind the other without any (cmd/link, addstrdata).
_SET_BY_LINKER = re.compile(rb"\0(" + _VERSION + rb")\0")
# What is looked for in a whole program: an expression that begins with a full stop is ten times as fast as one that
# begins with digits, or with the zero bytes that programs are full of.
_END_OF_TEXT = re.compile(_BEHIND_MAJOR + rb"\0")
_IN_FLAGS = re.compile(r"[vV]ersion=['\"]?(" + _VERSION.decode() + r")(?=['\"\s]|$)")
# What programs print where nothing was set: containerd (version/version.go), tini (tini.c).
_PRINTED = ((rb"\+unknown", rb"(?<![\d.])(\d+\.\d+\.\d+)\+unknown$"), (rb"tini version [\d.]+", rb"([\d.]+)$"))
_LINE = 256  # bytes before a version in which the start of its line is looked for


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is read of an ELF header."""

    machine: int  # e_machine
    bits: int  # 32 or 64
    end: int  # bytes that the file must have: the end of its section headers; 0 where it has none


@dataclass(frozen=True, kw_only=True)
class GoBuild:
    """A Go program's build information."""

    go: str  # e.g. go1.24.4
    path: str  # main package
    version: str  # of the main module; often (devel)
    settings: Mapping[str, str] = field(default_factory=dict)  # -ldflags, GOARCH, vcs.revision, …
    dependencies: Mapping[str, str] = field(
        default_factory=dict
    )  # module → version, of its replacement where it has one
    replaced: Mapping[str, str] = field(default_factory=dict)  # module → the module in its place


def header(head: bytes) -> Header | None:
    """Read a file's first HEAD bytes; None when it is no ELF file or ends before its header does."""
    if len(head) < 20 or head[:4] != b"\x7fELF" or head[4] not in (1, 2) or head[5] not in (1, 2):
        return None
    order = "<" if head[5] == 1 else ">"
    offset, sizes, whole, form = (40, 58, 64, "Q") if head[4] == 2 else (32, 46, 52, "I")
    if len(head) < whole:
        return None
    (start,) = struct.unpack_from(order + form, head, offset)
    size, count = struct.unpack_from(order + "HH", head, sizes)
    return Header(
        machine=struct.unpack_from(order + "H", head, 18)[0],
        bits=64 if head[4] == 2 else 32,
        end=start + size * count if start else 0,
    )


def machine_name(header: Header) -> str:
    """Return the platform that a header is for, or the machine's number."""
    known = next((p.value for p in Platform if (p.names.elf_machine, 64) == (header.machine, header.bits)), None)
    return known or f"ELF machine {header.machine}, {header.bits} bit"


def go_build(data: bytes) -> GoBuild | None:
    """The build information of a Go (1.18 or newer) program; None where there is none, or where it is cut off."""
    at = data.find(_MAGIC)
    while at >= 0:
        # Flag 2: both strings follow inline, each with its length as a varint, 32 bytes after the magic's start.
        # Programs that read build information hold the magic a second time; only the real one is followed by `go1…`.
        if at % 16 == 0 and at + 32 < len(data) and data[at + 15] & 2:
            try:
                version, position = _string(data, at + 32)
                module, _ = _string(data, position)
            except IndexError:
                version = b""
            if version.startswith((b"go", b"devel")):
                return _parsed(version.decode("ascii", "replace"), module[_SENTINEL:-_SENTINEL])
        at = data.find(_MAGIC, at + 1)
    return None


def _parsed(go: str, module: bytes) -> GoBuild:
    path, main, last = "", "", ""
    settings, dependencies, replaced = {}, {}, {}
    for line in module.decode("utf-8", "replace").splitlines():
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
            last = parts[0]
            dependencies[last] = parts[1]
        elif kind == "=>" and len(parts) > 1 and last:
            dependencies[last] = parts[1]
            if parts[0] != last:
                replaced[last] = parts[0]
    return GoBuild(go=go, path=path, version=main, settings=settings, dependencies=dependencies, replaced=replaced)


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    """A varint length and that many bytes; returns the bytes and the position behind them. IndexError: cut off."""
    length = shift = 0
    while True:
        byte = data[at]
        at += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if at + length > len(data):
        raise IndexError
    return data[at : at + length], at + length


def stated_version(data: bytes, like: str = "") -> str | None:
    """Return the version that a binary states; None where it states none, or several that do not go together.

    In this order: the main module's version, one that the build flags set, one that the linker set (build flags are
    left out of programs that are built with -trimpath), what containerd and tini print. `like`: an expression for the
    whole version; others do not count, such as those in archives that a program carries.
    """
    for versions in _statements(data):
        version = _common({version for version in versions if not like or re.fullmatch(like, version)})
        if version is not None:
            return version
    return None


def _statements(data: bytes) -> Iterator[Iterable[str]]:
    """Yield what each place states, the most reliable first."""
    build = go_build(data)
    if build is not None:
        yield [build.version] if re.fullmatch(_VERSION.decode(), build.version) else []
        yield _IN_FLAGS.findall(build.settings.get("-ldflags", ""))
        yield set_by_linker(data)
    printed = []
    for literal, expression in _PRINTED:  # the literal first: an expression that begins with digits is much slower
        for match in re.finditer(literal, data):
            if version := re.search(expression, data[max(0, match.start() - 24) : match.end()]):
                printed.append(version[1].decode())
    yield printed


def set_by_linker(data: bytes) -> Iterator[str]:
    """Yield every version that fills a text of its own."""
    for end in _END_OF_TEXT.finditer(data):
        start = data.rfind(b"\0", 0, end.start())
        if start >= 0 and (match := _SET_BY_LINKER.fullmatch(data, start, end.end())):
            yield match[1].decode()


def _common(versions: set[str]) -> str | None:
    """Return the only version, or the one that all others are a longer form of (a distribution's `1.1.5+ds1-1`)."""
    versions = {version for version in versions if not _PSEUDO.search(version)}
    shortest = min(versions, key=len, default=None)
    return shortest if shortest and all(version.startswith(shortest) for version in versions) else None


def version_evidence(data: bytes, version: str) -> str | None:
    """Where a binary names this version; None when it does not.

    Build information is the better evidence; vendors that strip it still carry the text they print. A distribution's
    build may add `+dfsg…` or `+ds…` to it. The version must not be a part of a longer number, nor that of a module
    that the program was only built with.
    """
    wanted = version.removeprefix("v").encode()
    build = go_build(data)
    if build is not None:
        if _named(build.version.encode(), wanted):
            return f"Go module version {build.version}"
        if _named(build.settings.get("-ldflags", "").encode(), wanted):
            return "Go build information (-ldflags)"
    return "text in the binary" if _named(data, wanted) else None


def _named(data: bytes, wanted: bytes) -> bool:
    """Whether the version is somewhere as a whole. `find` is ten times as fast here as an expression."""
    at = data.find(wanted)
    while at >= 0:
        behind = data[at + len(wanted) : at + len(wanted) + 2]
        before = data[max(0, at - _LINE) : at]
        line = before[before.rfind(b"\n") + 1 :]
        if not re.search(rb"[\d.]$", before) and not re.match(rb"\d|\.\d", behind) and not line.startswith(_ELSEWHERE):
            return True
        at = data.find(wanted, at + 1)
    return False
