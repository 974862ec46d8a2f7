"""What an SBOM needs of an image's file system: programs, and the texts in which Debian's packages tell of themselves.

Source: https://github.com/opencontainers/image-spec/blob/main/layer.md (whiteouts, links)
"""

from __future__ import annotations

import io
import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.components import K3S, PROGRAMS
from pipeline.core import zstd
from pipeline.core.errors import DigestMismatch
from pipeline.core.names import Digest
from pipeline.inspect import elf, embedded
from pipeline.oci.layout import Layout

STATUS = "var/lib/dpkg/status"
_TEXT = re.compile(r"usr/share/doc/[^/]+(/copyright)?|(usr/lib|etc)/os-release|" + re.escape(STATUS))
ARCHIVES = "usr/share/dind-k3s/images"  # k3s's system images, in the variant airgap
_BLOCK = 1 << 16  # bytes at a time; tarfile copies what it has of them for every member


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program, read as a whole."""

    digest: Digest
    version: str | None  # that it states of itself
    build: elf.GoBuild | None
    inside: Mapping[str, Program] = field(default_factory=dict)  # k3s: the programs that it unpacks, by name


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive of docker images."""

    digest: Digest
    names: tuple[str, ...]  # of the images in it; none when it cannot be read


@dataclass(kw_only=True)
class Root:
    """The files that matter here, as the topmost layer leaves them; paths without a leading slash."""

    programs: dict[str, Program] = field(default_factory=dict)
    archives: dict[str, Archive] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)  # symlinks among what `texts` may hold

    def text(self, path: str) -> str | None:
        """The content of a text, also through a link of the file or of its folder; None when it is not there."""
        for _ in range(8):  # links in a row; Debian's packages have one
            folder = posixpath.dirname(path)
            if path in self.links:
                path = self._behind(folder, self.links[path])
            elif folder in self.links:
                target = self._behind(posixpath.dirname(folder), self.links[folder])
                path = posixpath.join(target, posixpath.basename(path))
            else:
                break
        return self.texts.get(path)

    @staticmethod
    def _behind(folder: str, target: str) -> str:
        return posixpath.normpath(posixpath.join("/", folder, target)).lstrip("/")

    def put(self, layer: Layer) -> None:
        """Lay a layer over what is there."""
        for folder in layer.emptied:
            self.remove(folder, itself=False)
        new = layer.files
        for path in (*layer.gone, *new.programs, *new.archives, *new.texts, *new.links):
            self.remove(path)
        self.programs.update(new.programs)
        self.archives.update(new.archives)
        self.texts.update(new.texts)
        self.links.update(new.links)

    def remove(self, path: str, *, itself: bool = True) -> None:
        """What a whiteout hides: a path and everything below it."""
        for name in [*self.programs, *self.archives, *self.texts, *self.links]:
            if name.startswith(f"{path}/") or (itself and name == path):
                self.programs.pop(name, None)
                self.archives.pop(name, None)
                self.texts.pop(name, None)
                self.links.pop(name, None)


@dataclass(kw_only=True)
class Layer:
    """What one layer brings, and what it hides of those below, wherever that stands in its archive."""

    files: Root = field(default_factory=Root)
    gone: list[str] = field(default_factory=list)  # with everything below them
    emptied: list[str] = field(default_factory=list)  # folders that stay, with nothing of the lower layers in them


def read(built: Layout, manifest: Digest, known: dict[Digest, Layer]) -> Root:
    """Walk the layers of one platform, lowest first. Raises DigestMismatch when one cannot be read.

    `known`: layers that were read already, for variants share most of theirs; new ones are added.
    """
    paths = {part.digest: part.path for part in built}
    root = Root()
    for entry in json.loads(paths[manifest].read_bytes())["layers"]:
        digest = Digest(entry["digest"])
        if digest not in known:
            known[digest] = _read_layer(paths[digest])
        root.put(known[digest])
    return root


def _read_layer(path: Path) -> Layer:
    layer = Layer()
    try:
        with tarfile.open(path, mode="r|*", bufsize=_BLOCK) as archive:
            linked = [member.name for member in archive if _member(layer, archive, member)]
        if linked:
            with tarfile.open(path) as archive:  # one that can go back to where the content is
                for name in linked:
                    _file(layer, archive, archive.getmember(name))
    except (tarfile.TarError, EOFError, zlib.error, OSError, KeyError, TypeError) as error:
        # TypeError: tarfile's, where a stream ends within gzip's header
        raise DigestMismatch(
            "a layer of the built image cannot be read",
            expected="tar, plain or compressed with gzip",
            found=str(error).partition("\n")[0],
            where=str(path),
            next_step="nox -s build",
        ) from None
    return layer


def _member(layer: Layer, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    """Take what matters of one member; True for a hard link that matters: its content lies elsewhere in the archive."""
    name = _name(member)
    folder, last = posixpath.split(name)
    if last == ".wh..wh..opq":
        layer.emptied.append(folder)
    elif last.startswith(".wh."):
        layer.gone.append(posixpath.join(folder, last.removeprefix(".wh.")))
    elif member.issym() and _TEXT.fullmatch(name):
        layer.files.links[name] = member.linkname
    elif member.isfile():
        _file(layer, archive, member)
    return member.islnk() and _kind(name) is not None


def _file(layer: Layer, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    name = _name(member)
    match _kind(name):
        case "program":
            layer.files.programs[name] = _program(_content(archive, member), bundle=name == K3S.programs[0].path)
        case "archive":
            layer.files.archives[name] = _archive(_content(archive, member))
        case "text":
            layer.files.texts[name] = _content(archive, member).decode("utf-8", "replace")


def _kind(name: str) -> str | None:
    """What a file is read for, by its path; None: it does not matter here."""
    if name in PROGRAMS:
        return "program"
    if posixpath.dirname(name) == ARCHIVES and name.endswith(".tar.zst"):
        return "archive"
    return "text" if _TEXT.fullmatch(name) else None


def _name(member: tarfile.TarInfo) -> str:
    return posixpath.normpath(member.name).lstrip("/")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None
    return stream.read()


def _program(data: bytes, *, bundle: bool = False) -> Program:
    return Program(
        digest=Digest.of(data),
        version=elf.stated_version(data),
        build=elf.go_build(data),
        inside={name: _program(inner) for name, inner in embedded.bundled(data)} if bundle else {},
    )


def _archive(data: bytes) -> Archive:
    """As `docker save` writes it: manifest.json lists the images (moby's image/tarexport)."""
    names: list[str] = []
    try:
        with zstd.open(io.BytesIO(data)) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
            for member in tar:
                if member.name == "manifest.json" and (stream := tar.extractfile(member)):
                    names += [str(name) for entry in json.loads(stream.read()) for name in entry["RepoTags"] or ()]
    except (zstd.ZstdError, tarfile.TarError, EOFError, ValueError, KeyError, TypeError):
        names = []
    return Archive(digest=Digest.of(data), names=tuple(sorted(names)))
