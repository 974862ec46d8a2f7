"""Where the base image can be had, as `mirrors` asks: its registry, and OCI layouts behind file servers.

Each is read by itself, from the locked digest down: what one of them has is not asked of another.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import httpx

from pipeline.core.names import REFERENCE_TYPE, Digest
from pipeline.core.platforms import Platform
from pipeline.oci.registry import Registry


class Missing(Exception):
    """A source lacks something, or has other bytes; the text says what."""


class Source(Protocol):
    """One place. Every method raises RegistryError or httpx.HTTPError when it does not answer."""

    @property
    def base(self) -> str:
        """Its URL."""

    def ping(self) -> str:
        """Ask something small; returns the protocol as httpx names it."""

    def manifest(self, digest: Digest) -> bytes:
        """An index or a manifest. Raises Missing."""

    def has(self, digest: Digest) -> bool:
        """Whether it has that blob."""

    def blob(self, digest: Digest) -> Generator[bytes, None, None]:
        """A blob's bytes; whoever has enough closes the generator."""


@dataclass(frozen=True)
class OfRegistry:
    """The registry itself."""

    registry: Registry

    @property
    def base(self) -> str:
        """Its URL, with the repository."""
        return self.registry.url

    def ping(self) -> str:
        """GET /v2/."""
        return self.registry.ping()

    def manifest(self, digest: Digest) -> bytes:
        """From the registry, which is held to the digest there."""
        if (found := self.registry.manifest(digest.text)) is None:
            raise Missing(f"no manifest {digest.short}…")
        return found.raw

    def has(self, digest: Digest) -> bool:
        """HEAD of the blob."""
        return self.registry.has("blobs", digest, write=False)

    def blob(self, digest: Digest) -> Generator[bytes, None, None]:
        """From the registry, or from the storage that it sends on to."""
        with self.registry.blob(digest) as chunks:
            yield from chunks


@dataclass(frozen=True)
class OfLayout:
    """An OCI layout behind a file server, as `nox -s vendor` makes one."""

    base: str
    client: httpx.Client
    index: Digest

    def _url(self, digest: Digest) -> str:
        return f"{self.base}/blobs/sha256/{digest.hex}"

    def ping(self) -> str:
        """HEAD of the index."""
        return self.client.head(self._url(self.index)).http_version

    def manifest(self, digest: Digest) -> bytes:
        """A blob like any other, hashed."""
        answer = self.client.get(self._url(digest))
        if answer.status_code != 200:
            raise Missing(f"no manifest {digest.short}…: status {answer.status_code}")
        if (found := Digest.of(answer.content)) != digest:
            raise Missing(f"other bytes as the manifest {digest.short}…: {found.short}…")
        return answer.content

    def has(self, digest: Digest) -> bool:
        """HEAD of the blob."""
        return self.client.head(self._url(digest)).status_code == 200

    def blob(self, digest: Digest) -> Generator[bytes, None, None]:
        """From the file server."""
        with self.client.stream("GET", self._url(digest)) as response:
            yield from response.iter_raw()


def blobs(source: Source, index: Digest, platforms: Sequence[Platform]) -> dict[Digest, int]:
    """Configurations and layers of the platforms with their sizes in bytes, as that source tells. Raises Missing."""
    found: dict[Digest, int] = {}
    try:
        entries = json.loads(source.manifest(index))["manifests"]
        for platform in platforms:
            at = {"os": "linux", "architecture": platform.architecture}
            entry = next(
                one
                for one in entries
                if REFERENCE_TYPE not in one.get("annotations", {}) and at.items() <= one.get("platform", {}).items()
            )
            manifest = json.loads(source.manifest(Digest(entry["digest"])))
            found |= {Digest(part["digest"]): int(part["size"]) for part in (manifest["config"], *manifest["layers"])}
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        raise Missing(f"{index.short}… is no index of {', '.join(platforms)}") from None
    return found
