"""What is inside the locked files: versions of programs and libraries, read out of the binaries, nothing executed.

So they hold for a non-native platform too, and they come from the very bytes that the lock names.

docker      its archive: docker (the command line), containerd, runc, docker-init; BuildKit from dockerd's build
            information
buildx      BuildKit and the docker client library that it was built with
compose     the same, and compose-go
kubectl     nothing but Go: Kubernetes' own modules are in one repository with it and carry no version
k3s         the file itself is a small program that carries a tar archive, packed with zstd; the programs are in that
            (k3s-io/k3s: scripts/package-cli). bin/k3s has the build information with cri-dockerd, the
            docker client library and containerd; bin/runc states its version. The outer program states none of these

What a binary does not state is left out: a build without module information (a distribution's) names no libraries, and
a stand-in for k3s is no Go program at all.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, cast

from pipeline.components import COMPONENTS, DOCKER, K3S
from pipeline.core import cache as cached
from pipeline.core import zstd
from pipeline.core.errors import Incompatible
from pipeline.core.log import Log
from pipeline.inputs.lock import Artifact, Lock
from pipeline.inspect import elf

Embedded = Mapping[str, Mapping[str, str]]  # component → what is in its files → version

# Our name → the Go modules that it has had.
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
    """Return what is in one file of a component; empty when that is unknown, or it has another form. Raises OSError."""
    if component == "docker":
        try:
            with tarfile.open(path, mode="r|*", bufsize=_CHUNK) as archive:
                return _programs(component, _members(archive), DOCKER.members)
        except (tarfile.TarError, TypeError):  # TypeError: tarfile's, where the file ends within gzip's header
            return {}
    data = path.read_bytes()
    if component == "k3s":
        return _programs(component, bundled(data), K3S.members)
    return _built(component, data)


def of_lock(lock: Lock, cache: Path, log: Log) -> Embedded:
    """Return what is in every component's files. They must be in the cache.

    Raises UpstreamError when one is not, Incompatible when a component has different things for different platforms.
    """
    files = sorted(lock.artifacts, key=lambda file: (file.component, file.platform))
    with ThreadPoolExecutor(max_workers=2) as pool:  # one file's largest program is in memory at a time, in each
        contents = list(pool.map(lambda file: read(file.component, cached.require(cache, file.digest)), files))
    embedded: dict[str, dict[str, str]] = {}
    for component in lock.versions:
        by_file = [(file, inside) for file, inside in zip(files, contents, strict=True) if file.component == component]
        if inside := _agreed(by_file, log):
            embedded[component] = inside
            log.say(f"{component}: " + ", ".join(f"{name} {version}" for name, version in inside.items()))
        else:
            log.say(f"{component}: its files do not state what is in them")
    return embedded


def kept(previous: Lock | None, made: Lock) -> Embedded:
    """Return what is known already: the entries of the components whose files are the same bytes in both locks."""
    if previous is None:
        return {}
    before, after = _digests(previous), _digests(made)
    return {
        name: inside for name, inside in previous.embedded.items() if name in after and before.get(name) == after[name]
    }


def _digests(lock: Lock) -> dict[str, set[str]]:
    digests: dict[str, set[str]] = {}
    for file in lock.artifacts:
        digests.setdefault(file.component, set()).add(file.digest.text)
    return digests


def _agreed(by_file: list[tuple[Artifact, dict[str, str]]], log: Log) -> dict[str, str]:
    """Return what all platforms' files have in common. Raises Incompatible when versions differ."""
    agreed = {}
    for name in sorted({name for _, inside in by_file for name in inside}):
        versions = {file.platform: inside.get(name) for file, inside in by_file}
        file = by_file[0][0]
        if len(set(versions.values()) - {None}) > 1:
            raise Incompatible(
                f"{file.component} {file.version} does not hold the same {name} for every platform",
                expected="one version",
                found=", ".join(f"{version or 'not stated'} for {platform}" for platform, version in versions.items()),
                next_step="choose another version of that component, or ask its makers why",
            )
        if None in versions.values():
            silent = ", ".join(platform for platform, version in versions.items() if version is None)
            log.warn(f"{file.component} {file.version}: only some platforms state their {name}, not {silent}; left out")
            continue
        agreed[name] = next(version for version in versions.values() if version)
    return agreed


def _programs(component: str, members: Iterator[tuple[str, bytes]], wanted: Mapping[str, str | None]) -> dict[str, str]:
    found = {}
    for name, data in members:
        if name not in wanted:
            continue
        label = wanted[name]
        if label is None:
            found.update(_built(component, data))
        elif (version := elf.stated_version(data)) is not None:
            found[label] = version
    return found


def _built(component: str, data: bytes) -> dict[str, str]:
    """Go's version and the libraries of one program."""
    build = elf.go_build(data)
    if build is None:
        return {}
    found = {"go": build.go.removeprefix("go").partition(" ")[0]}
    for name in COMPONENTS[component].libraries:
        for module in _MODULES[name]:
            version = build.dependencies.get(module, "")
            if re.match(r"v\d", version):  # not `(devel)`
                found[name] = version.removesuffix("+incompatible")
                break
    return found


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        if member.isfile():
            stream = archive.extractfile(member)
            assert stream is not None
            yield member.name.removeprefix("./"), stream.read()


def bundled(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The programs that a k3s file carries: names without a leading `./`, and content; nothing when it is no bundle.

    The archive lies somewhere in the file (Go's embed), and a program that can unpack zstd holds its magic number
    too: the first place that a tar archive can be unpacked from is the one.
    """
    at = data.find(_ZSTD)
    while at >= 0:
        names = []
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", _Frame(data, at)), mode="r|", bufsize=1 << 16) as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if member.isfile() and name in K3S.members:
                        stream = archive.extractfile(member)
                        assert stream is not None
                        names.append(name)
                        yield name, stream.read()
        except (tarfile.TarError, zstd.ZstdError, EOFError):
            pass
        if names:
            return
        at = data.find(_ZSTD, at + 1)


class _Frame:
    """One zstd frame in the middle of other bytes, as a stream to read."""

    def __init__(self, data: bytes, at: int) -> None:
        self._rest = memoryview(data)[at:]
        self._unpack = zstd.ZstdDecompressor()

    def read(self, count: int) -> bytes:
        """`count` bytes, less only at the end. Raises ZstdError, EOFError when the frame ends too early."""
        out = io.BytesIO()
        while (left := count - out.tell()) and not self._unpack.eof:
            chunk = b""
            if self._unpack.needs_input:
                chunk, self._rest = bytes(self._rest[:_CHUNK]), self._rest[_CHUNK:]
                if not chunk:
                    raise EOFError("the archive ends too early")
            out.write(self._unpack.decompress(chunk, left))
        return out.getvalue()
