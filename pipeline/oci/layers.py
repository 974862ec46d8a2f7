"""A file system out of an image's layers: their archives in order, whiteouts applied, links followed.

Source: https://github.com/opencontainers/image-spec/blob/main/layer.md
"""

from __future__ import annotations

import gzip
import hashlib
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Generic, TypeVar, cast

from pipeline.core.names import Digest

_CHUNK = 1 << 20
_BLOCK = 1 << 16  # what tarfile keeps in memory; it copies the rest of it for every member
_GZIP = b"\x1f\x8b"  # how a gzip file begins (RFC 1952)
_LINKS = 40  # symlinks in one path, as in the kernel

T = TypeVar("T")


class Unreadable(ValueError):
    """A layer is not what the manifest and the config say; the text names which and how."""


@dataclass(frozen=True, kw_only=True)
class Entry(Generic[T]):
    """One path of a file system."""

    mode: int = 0
    size: int = 0  # bytes
    folder: bool = False
    symlink: str = ""  # its target
    hard_link: str = ""  # the path that is the same file, whose size counts
    content: T | None = None  # what a `Look` made of a regular file


@dataclass(frozen=True, kw_only=True)
class Layer(Generic[T]):
    """What one layer adds, and what it hides of those below, wherever that is in its archive."""

    entries: dict[str, Entry[T]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)  # with everything below them
    emptied: list[str] = field(default_factory=list)  # folders that stay, with nothing of the lower layers in them


Look = Callable[[str, tarfile.TarInfo, IO[bytes]], T]  # path, member, content → what to keep of a regular file


@dataclass
class FileSystem(Generic[T]):
    """Layers on top of one another; paths without a leading slash."""

    entries: dict[str, Entry[T]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries.values() if not entry.hard_link)

    @property
    def contents(self) -> Iterator[tuple[str, T]]:
        """What was made of the regular files."""
        return ((path, entry.content) for path, entry in self.entries.items() if entry.content is not None)

    def content(self, path: str) -> T | None:
        """What was made of a regular file; None for anything else."""
        return self.entries[path].content if path in self.entries else None

    def add(self, layer: Layer[T]) -> None:
        """Put a layer on top. Raises Unreadable for a hard link to nothing."""
        for folder in layer.emptied:
            self._remove(folder, itself=False)
        for path in layer.removed:
            self._remove(path)
        folders = _folders(self.entries)
        for path, entry in layer.entries.items():
            if not entry.folder and path in folders:
                self._remove(path)
            if entry.hard_link and entry.hard_link not in layer.entries:
                target = self.entries.get(entry.hard_link)
                if target is None:
                    raise Unreadable(f"/{path} is a hard link to /{entry.hard_link}, which is not there")
                entry = replace(target, hard_link=entry.hard_link)
            self.entries[path] = entry

    def _remove(self, path: str, *, itself: bool = True) -> None:
        inside = f"{path}/" if path else ""
        for name in [name for name in self.entries if name.startswith(inside) or (itself and name == path)]:
            del self.entries[name]

    def find(self, path: str) -> Entry[T] | None:
        """The entry that a path leads to, through symlinks of folders and files."""
        at, parts, followed = "", path.split("/"), 0
        while parts:
            part = parts.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                at = posixpath.dirname(at)
                continue
            at = posixpath.join(at, part)
            if at in self.entries and (target := self.entries[at].symlink):
                followed += 1
                if followed > _LINKS:
                    return None
                at = "" if target.startswith("/") else posixpath.dirname(at)
                parts = [*target.split("/"), *parts]
        return self.entries.get(at)


def _folders(paths: Collection[str]) -> set[str]:
    """Every folder that something is in; archives need not list them."""
    found: set[str] = set()
    for path in paths:
        while (path := posixpath.dirname(path)) and path not in found:
            found.add(path)
    return found


def members(
    layer: Path, digest: Digest, unpacked: str | None = None
) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """The members of a layer's archive in order, each with its content where it is a regular file; in one pass.

    A content must be read before the next member is asked for. `unpacked`: the digest of the archive, as the config
    has it among its diff_ids. Raises Unreadable, at the end for a layer that has another digest.
    """
    with layer.open("rb") as raw:
        is_packed = raw.read(len(_GZIP)) == _GZIP
        raw.seek(0)
        file = _Hashed(raw)
        plain = _Hashed(cast("IO[bytes]", gzip.GzipFile(fileobj=cast("IO[bytes]", file)))) if is_packed else file
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", plain), mode="r|", bufsize=_BLOCK) as archive:
                for member in archive:
                    yield member, archive.extractfile(member) if member.isreg() else None
            while plain.read(_CHUNK):
                pass  # what tarfile leaves behind the archive's end is in the digests too
        except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
            raise Unreadable(f"the layer {digest} is broken: {error}") from None
    if file.digest != digest.text:
        raise Unreadable(f"the layer {digest} has changed: its file has the digest {file.digest}")
    if unpacked is not None and plain.digest != unpacked:
        raise Unreadable(f"the layer {digest} unpacks to {plain.digest}, the config says {unpacked}")


def read(layer: Path, digest: Digest, look: Look[T], unpacked: str | None = None) -> Layer[T]:
    """Read a layer as a whole; parameters and errors as of `members`."""
    made: Layer[T] = Layer()
    for member, content in members(layer, digest, unpacked):
        path = normal(member.name)
        folder, name = posixpath.split(path)
        if name == ".wh..wh..opq":
            made.emptied.append(folder)
        elif name.startswith(".wh."):
            made.removed.append(posixpath.join(folder, name.removeprefix(".wh.")))
        elif content is not None:
            made.entries[path] = Entry(mode=member.mode, size=member.size, content=look(path, member, content))
        elif member.islnk():
            target = normal(member.linkname)
            made.entries[path] = replace(made.entries.get(target, Entry()), hard_link=target)
        elif member.issym():
            made.entries[path] = Entry(symlink=member.linkname)
        else:
            made.entries[path] = Entry(mode=member.mode, folder=member.isdir())
    return made


def normal(path: str) -> str:
    """A path of an archive without dots and slashes around it; empty for the root folder."""
    path = posixpath.normpath(path).strip("/")
    return "" if path == "." else path


class _Hashed:
    """A stream that is hashed as it is read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._state = stream, hashlib.sha256()

    def read(self, count: int) -> bytes:
        """At most so many bytes; none at the end."""
        data = self._stream.read(count)
        self._state.update(data)
        return data

    @property
    def digest(self) -> str:
        """Of what was read."""
        return f"sha256:{self._state.hexdigest()}"
