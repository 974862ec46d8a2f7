"""The file system of an image's layers: archives in order, whiteouts applied, links followed.

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
_BLOCK = 1 << 16  # bytes that tarfile buffers; it copies the rest of the buffer for every member
_GZIP = b"\x1f\x8b"  # the first bytes of a gzip file (RFC 1952)
_LINKS = 40  # symlinks in one path, as in the kernel

T = TypeVar("T")


class Unreadable(ValueError):
    """A layer does not match the manifest or the config; the message has the details."""


@dataclass(frozen=True, kw_only=True)
class Entry(Generic[T]):
    """One path of a file system."""

    mode: int = 0
    size: int = 0  # bytes
    folder: bool = False
    symlink: str = ""  # its target
    hard_link: str = ""  # the path of the same file, which has the size
    content: T | None = None  # of a regular file: the result of `Look`


@dataclass(frozen=True, kw_only=True)
class Layer(Generic[T]):
    """The entries that one layer adds, and the paths that it hides of the layers below."""

    entries: dict[str, Entry[T]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)  # with everything below them
    emptied: list[str] = field(default_factory=list)  # folders that hide the lower layers' content


Look = Callable[[str, tarfile.TarInfo, IO[bytes]], T]  # path, member, content of a regular file → what to keep


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
        """The results of `Look` for the regular files, with their paths."""
        return ((path, entry.content) for path, entry in self.entries.items() if entry.content is not None)

    def content(self, path: str) -> T | None:
        """Return the result of `Look` for a regular file; None for any other path."""
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
        """Return the entry of a path, following symlinks of folders and files."""
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
    """Return all parent folders; archives need not list them."""
    folders: set[str] = set()
    for path in paths:
        while (path := posixpath.dirname(path)) and path not in folders:
            folders.add(path)
    return folders


def members(
    layer: Path, digest: Digest, unpacked: str | None = None
) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Yield the members of a layer's archive in one pass, with the content of regular files.

    Each content must be read before the next member. `unpacked`: the digest of the archive in the config's diff_ids.
    Raises Unreadable, at the end for a layer that has another digest.
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
                pass  # the rest after the archive's end, which tarfile does not read, is in the digests, too
        except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
            raise Unreadable(f"the layer {digest} is broken: {error}") from None
    if file.digest != digest.text:
        raise Unreadable(f"the layer {digest} has changed: its file has the digest {file.digest}")
    if unpacked is not None and plain.digest != unpacked:
        raise Unreadable(f"the layer {digest} unpacks to {plain.digest}, the config says {unpacked}")


def read(layer: Path, digest: Digest, look: Look[T], unpacked: str | None = None) -> Layer[T]:
    """Read a layer as a whole; parameters and errors as of `members`."""
    result: Layer[T] = Layer()
    for member, content in members(layer, digest, unpacked):
        path = normal(member.name)
        folder, name = posixpath.split(path)
        if name == ".wh..wh..opq":
            result.emptied.append(folder)
        elif name.startswith(".wh."):
            result.removed.append(posixpath.join(folder, name.removeprefix(".wh.")))
        elif content is not None:
            result.entries[path] = Entry(mode=member.mode, size=member.size, content=look(path, member, content))
        elif member.islnk():
            target = normal(member.linkname)
            result.entries[path] = replace(result.entries.get(target, Entry()), hard_link=target)
        elif member.issym():
            result.entries[path] = Entry(symlink=member.linkname)
        else:
            result.entries[path] = Entry(mode=member.mode, folder=member.isdir())
    return result


def normal(path: str) -> str:
    """Return a path of an archive without leading dots and slashes; empty for the root folder."""
    path = posixpath.normpath(path).strip("/")
    return "" if path == "." else path


class _Hashed:
    """A stream that hashes the bytes read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._state = stream, hashlib.sha256()

    def read(self, count: int) -> bytes:
        """Read at most `count` bytes; none at the end."""
        data = self._stream.read(count)
        self._state.update(data)
        return data

    @property
    def digest(self) -> str:
        """The digest of the bytes read so far."""
        return f"sha256:{self._state.hexdigest()}"
