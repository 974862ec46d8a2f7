"""The part of an image's file system that an SBOM needs: programs, archives of images, and Debian's package data."""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import IO

from pipeline.components import AIRGAP_FOLDER, K3S, PROGRAMS
from pipeline.core.errors import DigestMismatch
from pipeline.core.names import Digest
from pipeline.inspect import elf, embedded
from pipeline.oci import docker_archive, layers
from pipeline.oci.layers import FileSystem, Layer, Unreadable
from pipeline.oci.layout import Layout, Part

STATUS = "var/lib/dpkg/status"
_TEXT = re.compile(r"usr/share/doc/[^/]+/copyright|(usr/lib|etc)/os-release|" + re.escape(STATUS))


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program, read as a whole."""

    digest: Digest
    version: str | None  # in its build information
    build: elf.GoBuild | None
    inside: Mapping[str, Program] = field(default_factory=dict)  # of k3s: the programs that it unpacks, by name


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive of docker images."""

    digest: Digest
    names: tuple[str, ...]  # of its images; empty if it cannot be read


FileContent = Program | Archive | str | None


def text(files: FileSystem[FileContent], path: str) -> str | None:
    """Return the content of a text file, following links; None if it does not exist."""
    entry = files.find(path)
    return entry.content if entry and isinstance(entry.content, str) else None


def read(built: Layout, manifest: Digest, known: dict[Digest, Layer[FileContent]]) -> FileSystem[FileContent]:
    """Read the layers of one platform; paths without a leading slash. Raises DigestMismatch if one cannot be read.

    `known`: layers read before, since variants share most of them; new ones are added.
    """
    files: FileSystem[FileContent] = FileSystem()
    for part in built.layers(manifest):
        try:
            if part.digest not in known:
                known[part.digest] = _read_layer(part)
            files.add(known[part.digest])
        except Unreadable as error:
            raise DigestMismatch(
                "a layer of the built image cannot be read",
                expected="tar, plain or compressed with gzip",
                found=str(error).partition("\n")[0],
                where=str(part.path),
                next_step="nox -s build",
            ) from None
    return files


def _read_layer(part: Part) -> Layer[FileContent]:
    layer = layers.read(part.path, part.digest, _look)
    # For a relevant hard link to another file, the archive is read again for the content of that file.
    linked: dict[str, list[str]] = {}
    for path, entry in layer.entries.items():
        if entry.hard_link and entry.content is None and _is_relevant(path):
            linked.setdefault(entry.hard_link, []).append(path)
    if linked:
        for member, content in layers.members(part.path, part.digest):
            paths = linked.get(layers.normal(member.name), ())
            data = content.read() if content and paths else b""
            for path in paths:
                layer.entries[path] = replace(layer.entries[path], content=_content(path, data))
    return layer


def _look(path: str, _member: tarfile.TarInfo, content: IO[bytes]) -> FileContent:
    return _content(path, content.read()) if _is_relevant(path) else None


def _is_archive(path: str) -> bool:
    return posixpath.dirname(path) == AIRGAP_FOLDER and path.endswith(".tar.zst")


def _is_relevant(path: str) -> bool:
    return path in PROGRAMS or _is_archive(path) or _TEXT.fullmatch(path) is not None


def _content(path: str, data: bytes) -> FileContent:
    """Parse a relevant file."""
    if path in PROGRAMS:
        return _program(data, bundle=path == K3S.programs[0].path)
    return _archive(data) if _is_archive(path) else data.decode("utf-8", "replace")


def _program(data: bytes, *, bundle: bool = False) -> Program:
    return Program(
        digest=Digest.of(data),
        version=elf.stated_version(data),
        build=elf.go_build(data),
        inside={name: _program(inner) for name, inner in embedded.bundled(data)} if bundle else {},
    )


def _archive(data: bytes) -> Archive:
    try:
        names = docker_archive.read(data).names
    except ValueError:
        names = ()
    return Archive(digest=Digest.of(data), names=tuple(sorted(names)))
