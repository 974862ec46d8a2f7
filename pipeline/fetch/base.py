"""The base image as files: fetched blob by blob into the cache, handed to buildx as an OCI layout.

So the builder pulls nothing: a build works without network, and the base is as pinned and verified as every other
file. Layout: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.cache import link, writing
from pipeline.core.errors import DigestMismatch, UpstreamError
from pipeline.core.log import Log, Transfer, Transfers, size
from pipeline.core.names import INDEX, Digest
from pipeline.core.platforms import Platform
from pipeline.http.download import Downloader, File
from pipeline.inputs.lock import Base
from pipeline.oci.index import by_platform, descriptor
from pipeline.oci.layout import write_top
from pipeline.oci.registry import Registry

_Manifest = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Mirrors:
    """OCI layouts behind plain file servers, asked before the registry: `<url>/blobs/sha256/<hex>`."""

    urls: Sequence[str]
    downloader: Downloader
    log: Log


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where the base image's files come from: the cache, else a mirror, else the registry."""

    registry: Registry
    folder: Path  # `cache`/sha256
    mirrors: Mirrors | None = None

    def manifest(self, digest: Digest) -> _Manifest:
        """Return an index or a manifest, which is in the cache then."""
        if not _is_there(self.folder, digest) and not self._mirrored(digest, None, None):
            answer = self.registry.manifest(digest.text)
            if answer is None:
                raise UpstreamError(f"{self.registry.name} has no {digest}", next_step="renew the lock: nox -s resolve")
            self._write(digest, [answer.raw], None)
        return _load(self.folder, digest)

    def blob(self, part: Mapping[str, Any], transfers: Transfers) -> int:
        """Have a blob in the cache; return the bytes downloaded, 0 when it was there."""
        digest, length = Digest(part["digest"]), int(part["size"])
        if _is_there(self.folder, digest):
            return 0
        transfer = transfers.start(f"base image {digest.short}", length)
        if not self._mirrored(digest, length, transfer):
            with self.registry.blob(digest) as chunks:
                self._write(digest, chunks, transfer)
        return length

    def _mirrored(self, digest: Digest, length: int | None, transfer: Transfer | None) -> bool:
        """Whether a mirror had the file; one that has other bytes is named and passed over."""
        if self.mirrors is None or not self.mirrors.urls:
            return False
        urls = tuple(f"{url}/blobs/sha256/{digest.hex}" for url in self.mirrors.urls)
        file = File(name=f"base image {digest.short}…", urls=urls, digest=digest, size=length)
        try:
            self.mirrors.downloader.download(file, self.folder, transfer)
        except (UpstreamError, DigestMismatch) as error:
            self.mirrors.log.warn(f"no mirror has {digest.short}… of the base image: {error.found or error.summary}")
            return False
        return True

    def _write(self, digest: Digest, chunks: Iterable[bytes], transfer: Transfer | None) -> None:
        """Write what the registry sends, which its client has hashed when the last chunk is there."""
        temporary = self.folder / f".{digest.hex}.partial"
        try:
            with temporary.open("wb") as stream:
                for chunk in chunks:
                    stream.write(chunk)
                    if transfer:
                        transfer.advance(len(chunk))
            temporary.replace(self.folder / digest.hex)
        finally:
            temporary.unlink(missing_ok=True)


def fetch(
    lock: Base,
    platforms: Sequence[Platform],
    registry: Registry,
    cache: Path,
    log: Log,
    mirrors: Mirrors | None = None,
) -> int:
    """Have what the platforms need of the base image in `cache`/sha256/; return the bytes downloaded.

    Raises UpstreamError when neither a mirror nor the registry has such a digest or platform, RegistryError for wrong
    bytes.
    """
    source = _Source(registry=registry, folder=cache / "sha256", mirrors=mirrors)
    downloaded = 0
    with writing(cache), log.transfers() as transfers:
        for _, manifest in manifests(lock.digest, platforms, source.manifest):
            downloaded += sum(source.blob(part, transfers) for part in parts(manifest))
    log.say(f"base image {lock.image}: " + (f"{size(downloaded)} downloaded" if downloaded else "all in the cache"))
    return downloaded


def layers(index: Digest, platform: Platform, registry: Registry, cache: Path, log: Log) -> list[Path]:
    """Have one platform's layers in the cache; return their paths, lowest first. Raises as `fetch`."""
    source = _Source(registry=registry, folder=cache / "sha256")
    with writing(cache), log.transfers() as transfers:
        for _, manifest in manifests(index, [platform], source.manifest):
            for part in manifest["layers"]:
                source.blob(part, transfers)
    return layer_files(index, platform, cache)


def digests(index: Digest, platforms: Sequence[Platform], cache: Path) -> list[Digest]:
    """Return what the platforms need of the base image, the index first; every file is hashed.

    Raises UpstreamError when one is not in the cache, DigestMismatch when one is not what its name says.
    """
    folder = cache / "sha256"
    needed = [index]
    for digest, manifest in manifests(index, platforms, lambda digest: _load(folder, digest)):
        needed.append(digest)
        needed += [Digest(part["digest"]) for part in parts(manifest)]
    needed = list(dict.fromkeys(needed))
    for digest in needed:
        _check(folder, digest)
    return needed


def layer_files(index: Digest, platform: Platform, cache: Path) -> list[Path]:
    """Return one platform's layers in the cache, lowest first, hashed now. Raises as `digests`."""
    folder = cache / "sha256"
    return [
        _check(folder, Digest(part["digest"]))
        for _, manifest in manifests(index, [platform], lambda digest: _load(folder, digest))
        for part in manifest["layers"]
    ]


def write_layout(index: Digest, platforms: Sequence[Platform], cache: Path, layout: Path) -> None:
    """Make an OCI layout of the base image, linked out of the cache; other platforms' manifests are left out.

    BuildKit reads only what the platforms asked for need, so the index may name blobs that are not there. Raises as
    `digests`.
    """
    folder = cache / "sha256"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for digest in digests(index, platforms, cache):
        if not (blobs / digest.hex).exists():
            link(folder / digest.hex, blobs / digest.hex)
    write_top(layout, descriptor(INDEX, index, (folder / index.hex).stat().st_size))


def manifests(
    index: Digest, platforms: Sequence[Platform], load: Callable[[Digest], _Manifest]
) -> Iterator[tuple[Digest, _Manifest]]:
    """Yield the manifest of each platform in the index. Raises UpstreamError for a missing platform."""
    entries = by_platform(load(index))
    for platform in platforms:
        if platform not in entries:
            raise UpstreamError(f"the base image {index} has no {platform}", next_step="choose another base image")
        digest = Digest(entries[platform]["digest"])
        yield digest, load(digest)


def parts(manifest: _Manifest) -> list[Mapping[str, Any]]:
    """Return the descriptors of a manifest's configuration and layers."""
    return [manifest["config"], *manifest["layers"]]


def _load(folder: Path, digest: Digest) -> _Manifest:
    manifest: _Manifest = json.loads(_check(folder, digest).read_bytes())
    return manifest


def _is_there(folder: Path, digest: Digest) -> bool:
    path = folder / digest.hex
    return path.exists() and Digest.of_file(path) == digest


def _check(folder: Path, digest: Digest) -> Path:
    """Return the path of a file of the cache, hashed now. Raises UpstreamError, DigestMismatch."""
    path = folder / digest.hex
    if not path.exists():
        raise UpstreamError(f"{digest} of the base image is not in the cache", next_step="nox -s fetch")
    if (actual := Digest.of_file(path)) != digest:
        raise DigestMismatch(
            "a file of the cache has changed",
            expected=digest.text,
            found=actual.text,
            where=str(path),
            next_step="nox -s fetch brings it again",
        )
    return path
