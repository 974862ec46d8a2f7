"""Reads binaries without running them: machine, completeness, version, Go build information.

Sources: elf(5); Go's package debug/buildinfo.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pipeline.core.platforms import Platform

HEAD = 64  # bytes of the longest ELF header

_MAGIC = b"\xff Go buildinf:"
_SENTINEL = 16  # bytes around the module information
_MODULES = (b"dep\t", b"=>\t")  # lines of the build information with versions of other modules
_AFTER_MAJOR = rb"\.\d+\.\d+(?:[-+~][0-9A-Za-z.+~-]{1,40})?"
# Versions of releases; not pseudo-versions, which are commits.
_VERSION = rb"v?\d+" + _AFTER_MAJOR
_PSEUDO = re.compile(r"(^v0\.0\.0$)|[.-]\d{14}-[0-9a-f]{12}")
# The linker's -X sets a variable to a text between zero bytes, which Go's constants do not have (cmd/link, addstrdata).
_SET_BY_LINKER = re.compile(rb"\0(" + _VERSION + rb")\0")
# For a search in a whole program: an expression that begins with a full stop is ten times as fast as one that begins
# with digits or zero bytes.
_END_OF_TEXT = re.compile(_AFTER_MAJOR + rb"\0")
_IN_FLAGS = re.compile(r"[vV]ersion=['\"]?(" + _VERSION.decode() + r")(?=['\"\s]|$)")
# Texts of programs without such variables: containerd (version/version.go), tini (tini.c).
_PRINTED = ((rb"\+unknown", rb"(?<![\d.])(\d+\.\d+\.\d+)\+unknown$"), (rb"tini version [\d.]+", rb"([\d.]+)$"))
_LINE = 256  # bytes before a version that are searched for the start of its line


@dataclass(frozen=True, kw_only=True)
class Header:
    """Fields of an ELF header."""

    machine: int  # e_machine
    bits: int  # 32 or 64
    end: int  # bytes: minimum size of the file, the end of its section headers; 0 without them


@dataclass(frozen=True, kw_only=True)
class GoBuild:
    """A Go program's build information."""

    go: str  # e.g. go1.24.4
    path: str  # main package
    version: str  # of the main module; often (devel)
    settings: Mapping[str, str] = field(default_factory=dict)  # -ldflags, GOARCH, vcs.revision, …
    dependencies: Mapping[str, str] = field(default_factory=dict)  # module → version, of its replacement if it has one
    replaced: Mapping[str, str] = field(default_factory=dict)  # module → its replacement


def header(head: bytes) -> Header | None:
    """Parse a file's first HEAD bytes; None if they are not an ELF header."""
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
    """Return the platform of a header, or the machine's number."""
    known = next((p.value for p in Platform if (p.names.elf_machine, 64) == (header.machine, header.bits)), None)
    return known or f"ELF machine {header.machine}, {header.bits} bit"


def go_build(data: bytes) -> GoBuild | None:
    """Return the build information of a Go (1.18 or newer) program; None if it is missing or truncated."""
    at = data.find(_MAGIC)
    while at >= 0:
        # Flag 2: 32 bytes after the magic are both strings, each after its length as a varint. Programs that read build
        # information contain the magic twice; only the real one is followed by `go1…`.
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
        match line.split("\t"):
            case ["path", path]:
                pass
            case ["mod", _, main, *_]:
                pass
            case ["build", setting]:
                key, _, value = setting.partition("=")
                settings[key] = value.strip('"')
            case ["dep", last, version, *_]:
                dependencies[last] = version
            case ["=>", replacement, version, *_] if last:
                dependencies[last] = version
                if replacement != last:
                    replaced[last] = replacement
    return GoBuild(go=go, path=path, version=main, settings=settings, dependencies=dependencies, replaced=replaced)


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    """Read a varint length and that many bytes; return the bytes and the next position. Raises IndexError."""
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
    """Return the version that a binary states; None if it states none or several.

    In this order: the main module's version, the build flags, variables set by the linker (-trimpath removes build
    flags), texts of containerd and tini. `like`: a regular expression for the whole version, against embedded archives.
    """
    for versions in _statements(data):
        version = _common({version for version in versions if not like or re.fullmatch(like, version)})
        if version is not None:
            return version
    return None


def _statements(data: bytes) -> Iterator[Iterable[str]]:
    """Yield the versions of each place, the most reliable first."""
    build = go_build(data)
    if build is not None:
        yield [build.version] if re.fullmatch(_VERSION.decode(), build.version) else []
        yield _IN_FLAGS.findall(build.settings.get("-ldflags", ""))
        yield set_by_linker(data)
    printed = []
    for literal, expression in _PRINTED:  # literals are much faster than expressions with digits
        for match in re.finditer(literal, data):
            if version := re.search(expression, data[max(0, match.start() - 24) : match.end()]):
                printed.append(version[1].decode())
    yield printed


def set_by_linker(data: bytes) -> Iterator[str]:
    """Yield every version between zero bytes."""
    for end in _END_OF_TEXT.finditer(data):
        start = data.rfind(b"\0", 0, end.start())
        if start >= 0 and (match := _SET_BY_LINKER.fullmatch(data, start, end.end())):
            yield match[1].decode()


def _common(versions: set[str]) -> str | None:
    """Return the only version, or the one that all others begin with (a distribution's `1.1.5+ds1-1`)."""
    versions = {version for version in versions if not _PSEUDO.search(version)}
    shortest = min(versions, key=len, default=None)
    return shortest if shortest and all(version.startswith(shortest) for version in versions) else None


def version_evidence(data: bytes, version: str) -> str | None:
    """Return where a binary contains this version; None if it does not.

    Build information is better evidence than text, but can be stripped. A distribution can append `+dfsg…` or `+ds…`.
    Part of a longer number, or the version of a dependency, does not count.
    """
    wanted = version.removeprefix("v").encode()
    build = go_build(data)
    if build is not None:
        if _contains(build.version.encode(), wanted):
            return f"Go module version {build.version}"
        if _contains(build.settings.get("-ldflags", "").encode(), wanted):
            return "Go build information (-ldflags)"
    return "text in the binary" if _contains(data, wanted) else None


def _contains(data: bytes, wanted: bytes) -> bool:
    """Return whether the data contains the whole version. `find` is ten times as fast as an expression."""
    at = data.find(wanted)
    while at >= 0:
        after = data[at + len(wanted) : at + len(wanted) + 2]
        before = data[max(0, at - _LINE) : at]
        line = before[before.rfind(b"\n") + 1 :]
        if not re.search(rb"[\d.]$", before) and not re.match(rb"\d|\.\d", after) and not line.startswith(_MODULES):
            return True
        at = data.find(wanted, at + 1)
    return False
