"""Reads versions of programs and libraries inside the locked files, without executing anything.

So this works for other architectures, and for the very bytes of the lock.

docker      its archive: docker (the CLI), containerd, runc, docker-init; BuildKit from dockerd's build information
buildx      BuildKit and the docker client library
compose     the same, and compose-go
kubectl     only Go: Kubernetes' modules have no versions in its repository
k3s         a small program with a tar archive, compressed with zstd (k3s-io/k3s: scripts/package-cli): bin/k3s has the
            build information with cri-dockerd, the docker client library and containerd; bin/runc states its version

What a binary does not state is left out: a distribution's build has no module information, the stub k3s is not a Go
program.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, cast

from pipeline.components import COMPONENTS, DOCKER, K3S
from pipeline.core import cache as cached
from pipeline.core import zstd
from pipeline.core.errors import Incompatible
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.inputs.lock import Artifact, Lock
from pipeline.inspect import elf

Embedded = Mapping[str, Mapping[str, str]]  # component → program or library → version

# Name in the lock → its Go modules, current and former.
_MODULES = {
    "buildkit": ("github.com/moby/buildkit",),
    "buildx": ("github.com/docker/buildx",),
    "compose-go": ("github.com/compose-spec/compose-go/v3", "github.com/compose-spec/compose-go/v2"),
    "containerd": ("github.com/containerd/containerd/v2", "github.com/containerd/containerd"),
    "cri-dockerd": ("github.com/Mirantis/cri-dockerd",),
    "docker-client": ("github.com/docker/docker",),
    "moby-client": ("github.com/moby/moby/client",),
}
_ZSTD = b"\x28\xb5\x2f\xfd"  # RFC 8878, 3.1.1
_CHUNK = 1 << 20


def read(component: str, path: Path) -> dict[str, str]:
    """Return name → version for a file of a component; empty for an unknown format. Raises OSError."""
    if component == "docker":
        try:
            with tarfile.open(path, mode="r|*", bufsize=_CHUNK) as archive:
                return _programs(component, _members(archive, DOCKER.members), DOCKER.members)
        except (tarfile.TarError, TypeError):  # tarfile's TypeError: truncated gzip header
            return {}
    data = path.read_bytes()
    if component == "k3s":
        return _programs(component, bundled(data), K3S.members)
    return _built(component, data)


def of_lock(lock: Lock, cache: Path, log: Log) -> Embedded:
    """Return the versions inside every component's files, which must be in the cache.

    Raises UpstreamError if one is not, Incompatible if a version differs between platforms.
    """
    files = sorted(lock.artifacts, key=lambda file: (file.component, file.platform))
    with ThreadPoolExecutor(max_workers=2) as pool:  # each has one program in memory
        contents = list(pool.map(lambda file: read(file.component, cached.require(cache, file.digest)), files))
    embedded: dict[str, dict[str, str]] = {}
    for component in lock.versions:
        by_file = [(file, inside) for file, inside in zip(files, contents, strict=True) if file.component == component]
        if inside := _agreed(by_file, log):
            embedded[component] = inside
            log.say(f"{component}: " + ", ".join(f"{name} {version}" for name, version in inside.items()))
        else:
            log.say(f"{component}: its files state no versions")
    return embedded


def kept(previous: Lock | None, made: Lock) -> Embedded:
    """Return the previous entries of components whose files have the same digests in both locks."""
    if previous is None:
        return {}

    def digests(lock: Lock, component: str) -> set[Digest]:
        return {file.digest for file in lock.artifacts if file.component == component}

    return {
        name: inside
        for name, inside in previous.embedded.items()
        if digests(previous, name) == digests(made, name) != set()
    }


def _agreed(by_file: list[tuple[Artifact, dict[str, str]]], log: Log) -> dict[str, str]:
    """Return the versions that all platforms share. Raises Incompatible if one differs."""
    agreed = {}
    for name in sorted({name for _, inside in by_file for name in inside}):
        versions = {file.platform: inside.get(name) for file, inside in by_file}
        file = by_file[0][0]
        if len(set(versions.values()) - {None}) > 1:
            raise Incompatible(
                f"{file.component} {file.version} does not have the same {name} for every platform",
                expected="one version",
                found=", ".join(f"{version or 'not stated'} for {platform}" for platform, version in versions.items()),
                next_step="choose another version of that component, or ask its maintainers",
            )
        if None in versions.values():
            silent = ", ".join(platform for platform, version in versions.items() if version is None)
            log.warn(f"{file.component} {file.version}: no version of {name} for {silent}; left out")
            continue
        agreed[name] = next(version for version in versions.values() if version)
    return agreed


def _programs(component: str, members: Iterable[tuple[str, bytes]], names: Mapping[str, str | None]) -> dict[str, str]:
    versions = {}
    for path, data in members:
        name = names[path]
        if name is None:
            versions.update(_built(component, data))
        elif (version := elf.stated_version(data)) is not None:
            versions[name] = version
    return versions


def _built(component: str, data: bytes) -> dict[str, str]:
    """Return the versions of Go and of a program's libraries."""
    build = elf.go_build(data)
    if build is None:
        return {}
    versions = {"go": build.go.removeprefix("go").partition(" ")[0]}
    for name in COMPONENTS[component].libraries:
        for module in _MODULES[name]:
            version = build.dependencies.get(module, "")
            if re.match(r"v\d", version):  # not `(devel)`
                versions[name] = version.removesuffix("+incompatible")
                break
    return versions


def _members(archive: tarfile.TarFile, names: Container[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the files of these names, without a leading `./`, with their content."""
    for member in archive:
        name = member.name.removeprefix("./")
        if member.isfile() and name in names:
            stream = archive.extractfile(member)
            assert stream is not None
            yield name, stream.read()


def bundled(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the programs inside a k3s file; none if it has no archive.

    The archive is anywhere in the file (Go's embed). Programs that decompress zstd contain its magic number, too: the
    first position with a readable tar archive counts.
    """
    at = data.find(_ZSTD)
    while at >= 0:
        is_archive = False
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", _Frame(data, at)), mode="r|", bufsize=1 << 16) as archive:
                for member in _members(archive, K3S.members):
                    is_archive = True
                    yield member
        except (tarfile.TarError, zstd.ZstdError, EOFError):
            pass
        if is_archive:
            return
        at = data.find(_ZSTD, at + 1)


class _Frame:
    """A stream of one zstd frame in the middle of other bytes."""

    def __init__(self, data: bytes, at: int) -> None:
        self._rest = memoryview(data)[at:]
        self._unpack = zstd.ZstdDecompressor()

    def read(self, count: int) -> bytes:
        """Read `count` bytes, less only at the end. Raises ZstdError, EOFError for a truncated frame."""
        out = io.BytesIO()
        while (left := count - out.tell()) and not self._unpack.eof:
            chunk = b""
            if self._unpack.needs_input:
                chunk, self._rest = bytes(self._rest[:_CHUNK]), self._rest[_CHUNK:]
                if not chunk:
                    raise EOFError("the archive ends too early")
            out.write(self._unpack.decompress(chunk, left))
        return out.getvalue()
