"""The base image as files: fetched blob by blob into the cache, handed to buildx as an OCI layout.

So the builder pulls nothing: a build works without network, and the base is as pinned and verified as every other
file. Layout: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from pipeline.core.cache import link, writing
from pipeline.core.errors import DigestMismatch, UpstreamError
from pipeline.core.log import Log, Transfer, Transfers, size
from pipeline.core.names import INDEX, REFERENCE_TYPE, Digest
from pipeline.core.platforms import Platform
from pipeline.fetch.download import download
from pipeline.inputs.lock import Base
from pipeline.oci.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Mirrors:
    """OCI layouts behind plain file servers, asked before the registry: `<url>/blobs/sha256/<hex>`."""

    urls: Sequence[str]
    client: httpx.Client
    log: Log

    def bring(self, digest: Digest, length: int | None, target: Path, transfer: Transfer) -> bool:
        """Whether a mirror had the file; one that has other bytes is named and passed over."""
        if not self.urls:
            return False
        urls = [f"{url}/blobs/sha256/{digest.hex}" for url in self.urls]
        try:
            download(self.client, urls, target, digest=digest, size=length, transfer=transfer)
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
) -> int:
    """Bring what the platforms need of the base image into `cache`/sha256/; returns the bytes downloaded.

    Raises UpstreamError when neither a mirror nor the registry has such a digest or platform, DigestMismatch for
    wrong bytes.
    """
    folder = cache / "sha256"
    brought = 0
    with writing(cache), log.transfers() as transfers:
        for digest in _manifests(lock.digest, platforms, lambda digest: _manifest(digest, registry, folder, mirrors)):
            for part in _parts(_load(folder, digest)):
                brought += _blob(part, registry, folder, transfers, mirrors)
    log.say(f"base image {lock.image}: " + (f"{size(brought)} downloaded" if brought else "all in the cache"))
    return brought


def digests(index: Digest, platforms: Sequence[Platform], cache: Path) -> list[Digest]:
    """What the platforms need of the base image, the index first; every file is hashed.

    Raises UpstreamError when one is not in the cache, DigestMismatch when one is not what its name says.
    """
    folder = cache / "sha256"
    needed = [index]
    for digest in _manifests(index, platforms, lambda digest: _load(folder, digest)):
        needed.append(digest)
        needed += [Digest(part["digest"]) for part in _parts(_load(folder, digest))]
    needed = list(dict.fromkeys(needed))
    for digest in needed:
        _check(folder / digest.hex, digest)
    return needed


def layers(index: Digest, platform: Platform, registry: Registry, cache: Path) -> list[bytes]:
    """One platform's layers as they are in the registry, lowest first; through the cache. Raises as `fetch`."""
    folder = cache / "sha256"
    found = []
    with writing(cache):
        for digest in _manifests(index, [platform], lambda digest: _manifest(digest, registry, folder)):
            for part in _load(folder, digest)["layers"]:
                _blob(part, registry, folder, None)
                found.append((folder / Digest(part["digest"]).hex).read_bytes())
    return found


def _blob(
    part: Mapping[str, Any],
    registry: Registry,
    folder: Path,
    transfers: Transfers | None,
    mirrors: Mirrors | None = None,
) -> int:
    """One blob into the cache; returns the bytes downloaded, 0 when it was there."""
    digest = Digest(part["digest"])
    target = folder / digest.hex
    if target.exists() and Digest.of_file(target) == digest:
        return 0
    transfer = transfers.start(f"base image {digest.short}", part["size"]) if transfers else None
    if mirrors and transfer and mirrors.bring(digest, part["size"], target, transfer):
        return int(part["size"])
    temporary = target.with_name(f".{digest.hex}.partial")
    try:
        with registry.blob(digest) as chunks, temporary.open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
                if transfer:
                    transfer.advance(len(chunk))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return int(part["size"])


def write_layout(index: Digest, platforms: Sequence[Platform], cache: Path, layout: Path) -> None:
    """Make an OCI layout of the base image, linked out of the cache; other platforms' manifests are left out.

    BuildKit reads only what the platforms asked for need, so the index may name blobs that are not there.
    Raises DigestMismatch when a file of the cache is not what its name says, UpstreamError when it is missing.
    """
    folder = cache / "sha256"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for digest in digests(index, platforms, cache):
        if not (blobs / digest.hex).exists():
            link(folder / digest.hex, blobs / digest.hex)
    descriptor = {"mediaType": INDEX, "digest": index.text, "size": (folder / index.hex).stat().st_size}
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]}))


def layer_files(index: Digest, platform: Platform, cache: Path) -> list[Path]:
    """One platform's layers in the cache, lowest first, hashed now. Raises as `write_layout`."""
    folder = cache / "sha256"
    found = []
    for digest in _manifests(index, [platform], lambda digest: _load(folder, digest)):
        for part in _load(folder, digest)["layers"]:
            layer = Digest(part["digest"])
            _check(folder / layer.hex, layer)
            found.append(folder / layer.hex)
    return found


def _manifests(
    index: Digest,
    platforms: Sequence[Platform],
    load: Any,  # Callable[[Digest], Mapping[str, Any]]
) -> Iterator[Digest]:
    """The digests of the platforms' manifests in the index. Raises UpstreamError for a missing platform."""
    entries = load(index)["manifests"]
    for platform in platforms:
        for entry in entries:
            at = entry.get("platform", {})
            if REFERENCE_TYPE in entry.get("annotations", {}):
                continue
            if f"{at.get('os')}/{at.get('architecture')}" == platform.value:
                digest = Digest(entry["digest"])
                load(digest)
                yield digest
                break
        else:
            raise UpstreamError(f"the base image {index} has no {platform}", next_step="choose another base image")


class _Unseen:
    """A transfer that is too small to be shown."""

    def advance(self, count: int) -> None:
        pass

    def total(self, count: int) -> None:
        pass


def _parts(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [manifest["config"], *manifest["layers"]]


def _manifest(digest: Digest, registry: Registry, folder: Path, mirrors: Mirrors | None = None) -> Mapping[str, Any]:
    """A manifest out of the cache, else out of a mirror or the registry into the cache."""
    target = folder / digest.hex
    there = target.exists() and Digest.of_file(target) == digest
    if not there and not (mirrors and mirrors.bring(digest, None, target, _Unseen())):
        answer = registry.manifest(digest.text)
        if answer is None:
            raise UpstreamError(f"{registry.name} has no {digest}", next_step="renew the lock: nox -s resolve")
        if answer.digest != digest:
            raise DigestMismatch("the registry sent another manifest", expected=digest.text, found=answer.digest.text)
        temporary = target.with_name(f".{digest.hex}.partial")
        temporary.write_bytes(answer.raw)
        temporary.replace(target)
    return _load(folder, digest)


def _load(folder: Path, digest: Digest) -> Mapping[str, Any]:
    path = folder / digest.hex
    _check(path, digest)
    data: Mapping[str, Any] = json.loads(path.read_bytes())
    return data


def _check(path: Path, digest: Digest) -> None:
    if not path.exists():
        raise UpstreamError(f"{digest} of the base image is not in the cache", next_step="nox -s fetch")
    if (found := Digest.of_file(path)) != digest:
        raise DigestMismatch(
            "a file of the cache has changed",
            expected=digest.text,
            found=found.text,
            where=str(path),
            next_step="nox -s fetch brings it again",
        )
