"""Servers that `mirrors` measures: file servers, and the base image's registry.

Each is read alone, from the locked digest down. Methods raise UpstreamError, RegistryError or httpx.HTTPError if a
server does not respond.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import httpx

from pipeline.core.errors import UpstreamError
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.fetch.base import manifests, parts
from pipeline.http import headers, transport
from pipeline.oci.registry import Registry

SAMPLE = 8_000_000  # bytes to measure a speed with


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file that a server should have."""

    name: str  # for people
    path: str  # below a file server's base URL
    digest: Digest
    size: int | None  # bytes; None: not in the lock


@dataclass(frozen=True, kw_only=True)
class FileServer:
    """An upstream or a mirror; a mirror of the base image is an OCI layout, like that of `nox -s vendor`."""

    base: str
    client: httpx.Client

    def manifest(self, digest: Digest) -> bytes:
        """Return an index or a manifest of the base image. Raises UpstreamError for a missing or a wrong one."""
        name = f"manifest {digest.short}…"
        data = transport.get(self.client, f"{self.base}/{_blob(digest)}", what=name).content
        if (actual := Digest.of(data)) != digest:
            raise UpstreamError(f"other bytes as the {name}", found=f"{actual.short}…")
        return data

    def lacks(self, part: Part) -> str:
        """Request HEAD of a file; return why the server lacks it, empty if it has it."""
        response = self.client.head(f"{self.base}/{part.path}")
        length = headers.length(response)
        if response.status_code != 200:
            return f"{part.name}: status {response.status_code}"
        if part.size is not None and length not in (None, part.size):
            return f"{part.name}: {length} bytes instead of {part.size}"
        return ""

    def read(self, part: Part) -> Generator[bytes, None, None]:
        """Yield the first SAMPLE bytes of a file. Close the generator."""
        with self.client.stream(
            "GET", f"{self.base}/{part.path}", headers={"Range": f"bytes=0-{SAMPLE - 1}"}
        ) as response:
            yield from response.iter_raw()


@dataclass(frozen=True)
class RegistryServer:
    """The base image's registry, and the storage that it redirects to."""

    registry: Registry

    @property
    def base(self) -> str:
        """Its URL with the repository."""
        return self.registry.url

    def manifest(self, digest: Digest) -> bytes:
        """Return an index or a manifest; the client checks its digest. Raises UpstreamError."""
        if (manifest := self.registry.manifest(digest.text)) is None:
            raise UpstreamError(f"no manifest {digest.short}…")
        return manifest.raw

    def lacks(self, part: Part) -> str:
        """Request HEAD of a blob; return why the registry lacks it, empty if it has it."""
        return "" if self.registry.has("blobs", part.digest, write=False) else f"no {part.name}"

    def read(self, part: Part) -> Generator[bytes, None, None]:
        """Yield a blob. Close the generator."""
        with self.registry.blob(part.digest) as chunks:
            yield from chunks


Server = FileServer | RegistryServer


def blobs(server: Server, index: Digest, platforms: Sequence[Platform]) -> list[Part]:
    """Return the platforms' configs and layers according to that server. Raises UpstreamError."""
    result = []
    try:
        for _, manifest in manifests(index, platforms, lambda digest: json.loads(server.manifest(digest))):
            for descriptor in parts(manifest):
                digest, size = Digest(descriptor["digest"]), int(descriptor["size"])
                result.append(Part(name=f"blob {digest.short}…", path=_blob(digest), digest=digest, size=size))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UpstreamError(f"{index.short}… is not an index of {', '.join(platforms)}") from None
    return list(dict.fromkeys(result))  # platforms may share a layer


def _blob(digest: Digest) -> str:
    return f"blobs/sha256/{digest.hex}"
