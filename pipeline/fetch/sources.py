"""Where files of the lock can come from, as `mirrors` asks: file servers, and the base image's registry.

Each is read by itself, from the locked digest down: what one of them has is not asked of another. Every method raises
UpstreamError, RegistryError or httpx.HTTPError when a server does not answer.
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

BEGINNING = 8_000_000  # bytes that are enough to measure a speed


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file that a server should have."""

    name: str  # for people
    path: str  # below a file server's base URL
    digest: Digest
    size: int | None  # bytes; None: the lock does not know it


@dataclass(frozen=True, kw_only=True)
class FileServer:
    """An upstream or a mirror; of the base image an OCI layout, as `nox -s vendor` makes one."""

    base: str
    client: httpx.Client
    probe: str  # the path of a file that it should have

    def ping(self) -> None:
        """Ask something small: HEAD of one file."""
        self.client.head(f"{self.base}/{self.probe}")

    def manifest(self, digest: Digest) -> bytes:
        """Return an index or a manifest of the base image. Raises UpstreamError when it has none or other bytes."""
        name = f"manifest {digest.short}…"
        data = transport.get(self.client, f"{self.base}/{_blob(digest)}", what=name).content
        if (actual := Digest.of(data)) != digest:
            raise UpstreamError(f"other bytes as the {name}", found=f"{actual.short}…")
        return data

    def lacks(self, part: Part) -> str:
        """Return why it does not have a file in the right size; empty: it has."""
        response = self.client.head(f"{self.base}/{part.path}")
        length = headers.length(response)
        if response.status_code != 200:
            return f"{part.name}: status {response.status_code}"
        if part.size is not None and length not in (None, part.size):
            return f"{part.name}: {length} bytes instead of {part.size}"
        return ""

    def read(self, part: Part) -> Generator[bytes, None, None]:
        """Yield the first BEGINNING bytes of a file; the caller closes the generator."""
        beginning = {"Range": f"bytes=0-{BEGINNING - 1}"}
        with self.client.stream("GET", f"{self.base}/{part.path}", headers=beginning) as response:
            yield from response.iter_raw()


@dataclass(frozen=True)
class RegistryServer:
    """The base image's registry, with the storage that it redirects to."""

    registry: Registry

    @property
    def base(self) -> str:
        """Its URL, with the repository."""
        return self.registry.url

    def ping(self) -> None:
        """Ask something small: GET /v2/."""
        self.registry.ping()

    def manifest(self, digest: Digest) -> bytes:
        """Return an index or a manifest, whose digest the registry's client checks. Raises UpstreamError."""
        if (answer := self.registry.manifest(digest.text)) is None:
            raise UpstreamError(f"no manifest {digest.short}…")
        return answer.raw

    def lacks(self, part: Part) -> str:
        """Return why it does not have a blob; empty: it has."""
        return "" if self.registry.has("blobs", part.digest, write=False) else f"no {part.name}"

    def read(self, part: Part) -> Generator[bytes, None, None]:
        """Yield a blob; the caller closes the generator when it has enough."""
        with self.registry.blob(part.digest) as chunks:
            yield from chunks


Server = FileServer | RegistryServer


def blobs(server: Server, index: Digest, platforms: Sequence[Platform]) -> list[Part]:
    """Return configurations and layers of the platforms, as that server describes them."""
    found = []
    try:
        for _, manifest in manifests(index, platforms, lambda digest: json.loads(server.manifest(digest))):
            for described in parts(manifest):
                digest, size = Digest(described["digest"]), int(described["size"])
                found.append(Part(name=f"blob {digest.short}…", path=_blob(digest), digest=digest, size=size))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UpstreamError(f"{index.short}… is no index of {', '.join(platforms)}") from None
    return list(dict.fromkeys(found))  # platforms may share a layer


def _blob(digest: Digest) -> str:
    return f"blobs/sha256/{digest.hex}"
