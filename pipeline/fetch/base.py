"""The base image as files: downloaded blob by blob into the cache, given to buildx as an OCI layout.

So the builder pulls nothing: a build needs no network, and the base image is as pinned and verified as every other
file. Layout: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.cache import link, writing
from pipeline.core.errors import DigestMismatch, UpstreamError
from pipeline.core.log import Log, Transfer, Transfers, size
from pipeline.core.names import INDEX, Digest
from pipeline.core.platforms import Platform
from pipeline.fetch.fetch import is_cached
from pipeline.http.download import Downloader, File
from pipeline.inputs.lock import Base
from pipeline.oci.index import Document, by_platform, descriptor
from pipeline.oci.layout import write_top
from pipeline.oci.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Mirrors:
    """OCI layouts on static file servers, tried before the registry: `<url>/blobs/sha256/<hex>`."""

    urls: Sequence[str]
    downloader: Downloader


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Downloads files of the base image to the cache: from a mirror, else from the registry."""

    registry: Registry
    cache: Path
    log: Log
    mirrors: Mirrors | None

    def manifest(self, digest: Digest) -> Document:
        """Return an index or a manifest."""
        folder = self.cache / "sha256"
        if not is_cached(self.cache, digest, self.log) and not self._mirrored(digest, None, None):
            manifest = self.registry.manifest(digest.text)
            if manifest is None:
                raise UpstreamError(f"{self.registry.name} has no {digest}", next_step="renew the lock: nox -s resolve")
            temporary = folder / f".{digest.hex}.partial"
            temporary.write_bytes(manifest.raw)
            temporary.replace(folder / digest.hex)
        return _load(folder, digest)

    def blob(self, part: Document, transfers: Transfers) -> int:
        """Download a blob; return its bytes, 0 if it is in the cache."""
        digest, length = Digest(part["digest"]), int(part["size"])
        if is_cached(self.cache, digest, self.log):
            return 0
        transfer = transfers.start(f"base image {digest.short}", length)
        if not self._mirrored(digest, length, transfer):
            self.registry.download(digest, self.cache / "sha256" / digest.hex, transfer.advance)
        return length

    def _mirrored(self, digest: Digest, length: int | None, transfer: Transfer | None) -> bool:
        """Try the mirrors; return whether one had the file."""
        if self.mirrors is None or not self.mirrors.urls:
            return False
        urls = tuple(f"{url}/blobs/sha256/{digest.hex}" for url in self.mirrors.urls)
        file = File(name=f"base image {digest.short}…", urls=urls, digest=digest, size=length)
        try:
            self.mirrors.downloader.download(file, self.cache / "sha256", transfer)
        except (UpstreamError, DigestMismatch) as error:
            self.log.warn(f"no mirror has {digest.short}… of the base image: {error.found or error.summary}")
            return False
        return True


def fetch(
    lock: Base,
    platforms: Sequence[Platform],
    registry: Registry,
    cache: Path,
    log: Log,
    mirrors: Mirrors | None = None,
) -> None:
    """Download what the platforms need of the base image to `cache`/sha256/.

    Raises UpstreamError if neither a mirror nor the registry has that digest or platform, RegistryError for wrong
    bytes.
    """
    source = _Source(registry=registry, cache=cache, log=log, mirrors=mirrors)
    with writing(cache), log.transfers() as transfers:
        downloaded = sum(
            source.blob(part, transfers)
            for _, manifest in manifests(lock.digest, platforms, source.manifest)
            for part in parts(manifest)
        )
    log.say(f"base image {lock.image}: " + (f"{size(downloaded)} downloaded" if downloaded else "all in the cache"))


def digests(index: Digest, platforms: Sequence[Platform], cache: Path) -> list[Digest]:
    """Return what the platforms need of the base image, the index first; every file is hashed.

    Raises UpstreamError if one is not in the cache, DigestMismatch if one has another digest than its name.
    """
    folder = cache / "sha256"
    needed = [index]
    for digest, manifest in manifests(index, platforms, lambda digest: _load(folder, digest)):
        needed += [digest, *(Digest(part["digest"]) for part in parts(manifest))]
    needed = list(dict.fromkeys(needed))
    for digest in needed:
        _check(folder, digest)
    return needed


def layer_files(index: Digest, platform: Platform, cache: Path) -> list[Path]:
    """Return one platform's layers in the cache, lowest first; each is hashed. Raises like `digests`."""
    folder = cache / "sha256"
    return [
        _check(folder, Digest(part["digest"]))
        for _, manifest in manifests(index, [platform], lambda digest: _load(folder, digest))
        for part in manifest["layers"]
    ]


def write_layout(index: Digest, platforms: Sequence[Platform], cache: Path, layout: Path) -> None:
    """Make an OCI layout of the base image by hard links into the cache, without other platforms' files.

    The index still names them: BuildKit reads only what the requested platforms need. Raises like `digests`.
    """
    folder = cache / "sha256"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for digest in digests(index, platforms, cache):
        if not (blobs / digest.hex).exists():
            link(folder / digest.hex, blobs / digest.hex)
    write_top(layout, descriptor(INDEX, index, (folder / index.hex).stat().st_size))


def manifests(
    index: Digest, platforms: Sequence[Platform], load: Callable[[Digest], Document]
) -> Iterator[tuple[Digest, Document]]:
    """Yield the manifest of each platform in the index. Raises UpstreamError for a missing platform."""
    entries = by_platform(load(index))
    for platform in platforms:
        if platform not in entries:
            raise UpstreamError(f"the base image {index} has no {platform}", next_step="choose another base image")
        digest = Digest(entries[platform]["digest"])
        yield digest, load(digest)


def parts(manifest: Document) -> list[Document]:
    """Return the descriptors of a manifest's configuration and layers."""
    return [manifest["config"], *manifest["layers"]]


def _load(folder: Path, digest: Digest) -> Document:
    manifest: Document = json.loads(_check(folder, digest).read_bytes())
    return manifest


def _check(folder: Path, digest: Digest) -> Path:
    """Hash a file of the cache and return its path. Raises UpstreamError, DigestMismatch."""
    path = folder / digest.hex
    if not path.exists():
        raise UpstreamError(f"{digest} of the base image is not in the cache", next_step="nox -s fetch")
    if (actual := Digest.of_file(path)) != digest:
        raise DigestMismatch(
            "a file of the cache has changed",
            expected=digest.text,
            found=actual.text,
            where=str(path),
            next_step="nox -s fetch, which downloads it again",
        )
    return path
