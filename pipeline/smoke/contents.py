"""What is in a platform's image, read out of its layers once: names, modes, ELF headers, and what programs tell.

Nothing of a file is kept but what the checks ask for, so the memory of one file is enough for an image of any size.
Source: https://github.com/opencontainers/image-spec/blob/main/layer.md (whiteouts, hard links, attributes)
"""

from __future__ import annotations

import hashlib
import posixpath
import tarfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

from pipeline.core.names import Digest
from pipeline.inspect import elf

_CHUNK = 1 << 20
_BLOCK = 1 << 16  # what tarfile keeps in memory; it copies the rest of it for every member
_GZIP = 31  # zlib: a gzip header, a window of any size
_SHEBANG = 256  # bytes: longer than what the kernel reads of a script's first line
_LINKS = 40  # symlinks in one path, as in the kernel


@dataclass(frozen=True, kw_only=True)
class Program:
    """A file that was read as a whole."""

    sha256: str
    evidence: str | None  # where it names the version that was asked for
    build: elf.GoBuild | None
    text: bytes  # the content of a script or of a file that was asked for; empty for binaries


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One path of the image."""

    size: int = 0  # bytes
    mode: int = 0
    folder: bool = False
    link: str = ""  # a symlink's target
    linked: bool = False  # a hard link to a file that is counted elsewhere
    header: elf.Header | None = None
    shebang: str = ""
    sha256: str = ""  # of files that were read as a whole
    program: Program | None = None


@dataclass
class Content:
    """The image's file system; paths without a leading slash."""

    entries: dict[str, Entry] = field(default_factory=dict)
    size: int = 0  # bytes of all files that are there at the end

    def find(self, path: str) -> Entry | None:
        """The entry that a path leads to, through links of folders and files."""
        at, parts, seen = "", path.split("/"), 0
        while parts:
            step = parts.pop(0)
            if step in ("", "."):
                continue
            if step == "..":
                at = posixpath.dirname(at)
                continue
            at = posixpath.join(at, step)
            link = self.entries[at].link if at in self.entries else ""
            if link:
                seen += 1
                if seen > _LINKS:
                    return None
                at = "" if link.startswith("/") else posixpath.dirname(at)
                parts = [*link.split("/"), *parts]
        return self.entries.get(at)

    @property
    def binaries(self) -> dict[str, tuple[Entry, elf.Header]]:
        """Every ELF file."""
        return {path: (entry, entry.header) for path, entry in self.entries.items() if entry.header is not None}


class Unreadable(ValueError):
    """A layer is not what the manifest and the config say; the text says which and how."""


def read(
    layers: Sequence[tuple[Digest, Path]],
    unpacked: Sequence[str],
    versions: Mapping[str, str],
    texts: Collection[str] = (),
    hashed: tuple[str, ...] = (),
) -> Content:
    """Walk gzip-compressed layers, lowest first, once, and hash them on the way.

    `unpacked`: the config's diff_ids. `versions`: the programs to read as a whole, each with the version it should
    name (may be empty); `texts`: files whose content is wanted; `hashed`: beginnings of the paths whose digest is.
    Raises Unreadable.
    """
    if len(unpacked) != len(layers):
        raise Unreadable(f"the manifest has {len(layers)} layers, the config {len(unpacked)}")
    content = Content()
    for (digest, path), expected in zip(layers, unpacked, strict=True):
        try:
            _read_layer(content, digest, path, expected, versions, texts, hashed)
        except (EOFError, zlib.error, tarfile.TarError) as error:
            raise Unreadable(f"the layer {digest} is broken: {error}") from None
    content.size = sum(entry.size for entry in content.entries.values() if not entry.linked)
    return content


class _Layer:
    """A layer's tar stream, which hashes both what it reads and what it gives."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._packed = hashlib.sha256()
        self._plain = hashlib.sha256()
        self._inflate = zlib.decompressobj(_GZIP)
        self._rest = b""

    def read(self, count: int) -> bytes:
        """`count` bytes, less only at the end. Raises EOFError when the layer ends in the middle."""
        parts = []
        while count:
            if not self._rest:
                self._rest = self._stream.read(_CHUNK)
                self._packed.update(self._rest)
            if self._inflate.eof:
                if not self._rest:
                    break
                self._inflate = zlib.decompressobj(_GZIP)  # several gzip members in a row are one stream
            part = self._inflate.decompress(self._rest, count)
            if not (part or self._rest or self._inflate.eof):
                raise EOFError("it ends too early")
            self._rest = self._inflate.unconsumed_tail or self._inflate.unused_data
            count -= len(part)
            parts.append(part)
        data = b"".join(parts)
        self._plain.update(data)
        return data

    def finish(self) -> tuple[str, str]:
        """Read the rest; the digests of the packed and of the plain bytes."""
        while self.read(_CHUNK):
            pass
        return f"sha256:{self._packed.hexdigest()}", f"sha256:{self._plain.hexdigest()}"


def _read_layer(
    content: Content,
    digest: Digest,
    path: Path,
    expected: str,
    versions: Mapping[str, str],
    texts: Collection[str],
    hashed: tuple[str, ...],
) -> None:
    below = content.entries
    here: dict[str, Entry] = {}  # a whiteout hides only what lower layers have, wherever it stands in the archive
    with path.open("rb") as raw:
        layer = _Layer(raw)
        with tarfile.open(fileobj=cast("IO[bytes]", layer), mode="r|", bufsize=_BLOCK) as archive:
            for member in archive:
                _member(archive, member, below, here, versions, texts, hashed)
        packed, plain = layer.finish()
    if packed != digest.text:
        raise Unreadable(f"the layer {digest} has changed: its file has the digest {packed}")
    if plain != expected:
        raise Unreadable(f"the layer {digest} unpacks to {plain}, the config says {expected}")
    folders = _folders(below)
    for name, entry in here.items():
        if not entry.folder and name in folders:
            _remove(below, name)
        below[name] = entry


def _folders(entries: Collection[str]) -> set[str]:
    """Every folder that something lies in; archives need not list them."""
    found: set[str] = set()
    for path in entries:
        while (path := posixpath.dirname(path)) and path not in found:
            found.add(path)
    return found


def _member(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    below: dict[str, Entry],
    here: dict[str, Entry],
    versions: Mapping[str, str],
    texts: Collection[str],
    hashed: tuple[str, ...],
) -> None:
    path = posixpath.normpath(member.name).strip("/")
    folder, name = posixpath.split(path)
    if name == ".wh..wh..opq":
        _remove(below, folder, itself=False)
    elif name.startswith(".wh."):
        _remove(below, posixpath.join(folder, name.removeprefix(".wh.")))
    elif member.isdir():
        here[path] = Entry(mode=member.mode, folder=True)
    elif member.issym():
        here[path] = Entry(link=member.linkname)
    elif member.islnk():
        target = posixpath.normpath(member.linkname).strip("/")
        linked = here.get(target) or below.get(target)
        if linked is None:
            raise Unreadable(f"/{path} is a hard link to /{target}, which is not there")
        here[path] = replace(linked, linked=True)
    elif member.isfile():
        stream = archive.extractfile(member)
        assert stream is not None
        here[path] = _look(stream, member, versions.get(path), as_text=path in texts, to_hash=path.startswith(hashed))
    else:
        here[path] = Entry(mode=member.mode)


def _remove(entries: dict[str, Entry], path: str, *, itself: bool = True) -> None:
    inside = f"{path}/" if path not in ("", ".") else ""
    for gone in [name for name in entries if name.startswith(inside) or (itself and name == path)]:
        del entries[gone]


def _look(stream: IO[bytes], member: tarfile.TarInfo, version: str | None, *, as_text: bool, to_hash: bool) -> Entry:
    whole = as_text or version is not None
    data = stream.read(-1 if whole or to_hash else _SHEBANG)
    known: dict[str, Any] = {"size": member.size, "mode": member.mode}
    if (header := elf.header(data[: elf.HEAD])) is not None:
        known["header"] = header
    elif data[:2] == b"#!":
        known["shebang"] = data[2:_SHEBANG].split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    if whole or to_hash:
        known["sha256"] = hashlib.sha256(data).hexdigest()
    if whole:
        known["program"] = Program(
            sha256=known["sha256"],
            evidence=elf.version_evidence(data, version) if version else None,
            build=elf.go_build(data) if version is not None else None,
            text=data if as_text or data[:2] == b"#!" else b"",
        )
    return Entry(**known)
