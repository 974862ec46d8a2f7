"""Digests, image names and the records of the OCI image specification that the pipeline reads.

Source: https://github.com/opencontainers/image-spec (descriptor.md, image-index.md, manifest.md, annotations.md).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.core.errors import IntentError

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
ANY_MANIFEST = (INDEX, MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)

# BuildKit marks the attestation manifests of an index with this annotation; they are not platforms.
# Source: moby/buildkit docs/attestations/attestation-storage.md
REFERENCE_TYPE = "vnd.docker.reference.type"

_CHUNK = 1 << 20


@dataclass(frozen=True, order=True)
class Digest:
    """A sha256 digest, written `sha256:<64 hex>`. It cannot be empty: None means an unknown one."""

    text: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", self.text):
            raise ValueError(f"not a sha256 digest: {self.text!r} (expected sha256:<64 hexadecimal digits>)")

    def __str__(self) -> str:
        return self.text

    @property
    def hex(self) -> str:
        """The 64 hexadecimal digits alone."""
        return self.text.removeprefix("sha256:")

    @property
    def short(self) -> str:
        """Its first 12 hexadecimal digits, for a table."""
        return self.text[:19]

    @classmethod
    def of_hex(cls, text: str) -> Digest:
        """Parse the bare hexadecimal form that checksum files use. Raises ValueError."""
        return cls(f"sha256:{text.strip().lower()}")

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Return the digest of these bytes."""
        return cls(f"sha256:{hashlib.sha256(data).hexdigest()}")

    @classmethod
    def of_stream(cls, stream: IO[bytes]) -> Digest:
        """Return the digest of the rest of a stream."""
        state = hashlib.sha256()
        while chunk := stream.read(_CHUNK):
            state.update(chunk)
        return cls(f"sha256:{state.hexdigest()}")

    @classmethod
    def of_file(cls, path: Path) -> Digest:
        """Return the digest of a file. Raises OSError."""
        with path.open("rb") as stream:
            return cls.of_stream(stream)


@dataclass(frozen=True, kw_only=True)
class ImageName:
    """A repository in a registry, without tag or digest: `registry/repository`."""

    registry: str
    repository: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the registry."""
        host = self.registry.rsplit(":", 1)[0] if not self.registry.endswith("]") else self.registry
        return host in {"localhost", "[::1]"} or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None

    @classmethod
    def parse(cls, text: str) -> tuple[ImageName, str | None, Digest | None]:
        """Split `[registry/]repository[:tag][@digest]`; Docker Hub's short names get their long form.

        Returns the name, the tag and the digest, each None where the text has none. Raises ValueError.
        """
        rest, _, digest = text.partition("@")
        head, _, tail = rest.rpartition("/")
        last, _, tag = tail.partition(":")
        path = f"{head}/{last}" if head else last
        first = path.split("/", 1)[0]
        if "/" in path and ("." in first or ":" in first or first == "localhost"):
            registry, _, repository = path.partition("/")
        else:
            registry, repository = "docker.io", path if "/" in path else f"library/{path}"
        if not re.fullmatch(r"[a-z0-9]+([._/-]+[a-z0-9]+)*", repository):
            raise ValueError(f"not an image name: {text!r}")
        return cls(registry=registry, repository=repository), tag or None, Digest(digest) if digest else None

    @classmethod
    def parse_reference(cls, text: str) -> tuple[ImageName, str]:
        """Return the repository and the reference: the digest, else the tag, else `latest`. Raises IntentError."""
        try:
            name, tag, digest = cls.parse(text)
        except ValueError as error:
            raise IntentError(str(error), expected="registry/repository[:tag][@sha256:…]") from None
        return name, digest.text if digest else tag or "latest"
