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

from pipeline import elf, embedded, zstd
from pipeline.errors import DigestMismatch
from pipeline.layout import Layout
from pipeline.oci import Digest

STATUS = "var/lib/dpkg/status"
_TEXT = re.compile(r"usr/share/doc/[^/]+(/copyright)?|(usr/lib|etc)/os-release|" + re.escape(STATUS))
ARCHIVES = "usr/share/dind-k3s/images"  # k3s's system images, in the variant airgap
_PLUGINS = "usr/local/libexec/docker/cli-plugins"

# Path → name. The lock names the archive, these are the programs in it.
DOCKER = {
    "usr/local/bin/dockerd": "dockerd",
    "usr/local/bin/docker": "docker-cli",
    "usr/local/bin/containerd": "containerd",
    "usr/local/bin/containerd-shim-runc-v2": "containerd-shim-runc-v2",
    "usr/local/bin/ctr": "ctr",
    "usr/local/bin/runc": "runc",
    "usr/local/bin/docker-init": "docker-init",
    "usr/local/bin/docker-proxy": "docker-proxy",
}
# Path → component: the locked file itself.
FILES = {
    f"{_PLUGINS}/docker-buildx": "buildx",
    f"{_PLUGINS}/docker-compose": "compose",
    "usr/local/bin/k3s": "k3s",
    "usr/local/bin/kubectl": "kubectl",
}


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

    def remove(self, path: str, *, itself: bool = True) -> None:
        """What a whiteout hides: a path and everything below it."""
        for name in [*self.programs, *self.archives, *self.texts, *self.links]:
            if name.startswith(f"{path}/") or (itself and name == path):
                self.programs.pop(name, None)
                self.archives.pop(name, None)
                self.texts.pop(name, None)
                self.links.pop(name, None)


def read(built: Layout, manifest: Digest) -> Root:
    """Walk the layers of one platform, lowest first. Raises DigestMismatch when one cannot be read."""
    paths = {part.digest: part.path for part in built}
    root = Root()
    for layer in json.loads(paths[manifest].read_bytes())["layers"]:
        path = paths[Digest(layer["digest"])]
        try:
            _layer(root, path)
        except (tarfile.TarError, EOFError, zlib.error, OSError, KeyError) as error:
            raise DigestMismatch(
                "a layer of the built image cannot be read",
                expected="tar, plain or compressed with gzip",
                found=str(error).partition("\n")[0],
                where=str(path),
                next_step="nox -s build",
            ) from None
    return root


def _layer(root: Root, path: Path) -> None:
    here = Root()  # whiteouts hide what lower layers have, wherever they stand in the archive
    with tarfile.open(path) as archive:
        for member in archive:
            name = posixpath.normpath(member.name).lstrip("/")
            folder, last = posixpath.split(name)
            if last == ".wh..wh..opq":
                root.remove(folder, itself=False)
            elif last.startswith(".wh."):
                root.remove(posixpath.join(folder, last.removeprefix(".wh.")))
            elif member.issym() and _TEXT.fullmatch(name):
                here.links[name] = member.linkname
            elif member.isfile() or member.islnk():
                if name in DOCKER or name in FILES:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    here.programs[name] = _program(stream.read(), bundle=FILES.get(name) == "k3s")
                elif folder == ARCHIVES and name.endswith(".tar.zst"):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    here.archives[name] = _archive(stream.read())
                elif _TEXT.fullmatch(name):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    here.texts[name] = stream.read().decode("utf-8", "replace")
    for name in (*here.programs, *here.archives, *here.texts, *here.links):
        root.remove(name)
    root.programs.update(here.programs)
    root.archives.update(here.archives)
    root.texts.update(here.texts)
    root.links.update(here.links)


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
