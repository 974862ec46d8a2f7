"""versions.lock.yaml: what a release is made of, each file with its digest and why that digest is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.oci import Digest
from pipeline.platforms import Platform
from pipeline.versions import Intent


class Evidence(StrEnum):
    """Why a digest is believed, strongest first."""

    SIGNED = "signed"  # covered by a signature of the vendor that was checked
    PUBLISHED = "published"  # the vendor's own checksum
    CORROBORATED = "corroborated"  # no published checksum; unrelated origins agree
    RECORDED = "recorded"  # one other project records it
    FIRST_USE = "first use"  # computed from the first download


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One file of one platform."""

    component: str  # one of versions.COMPONENTS, or a Debian package's name
    version: str
    platform: Platform
    origin: str  # one of versions.ORIGINS
    path: str  # below the origin's base URL, percent-encoded where needed
    url: str  # base URL of the upstream it was resolved from + "/" + path
    digest: Digest
    size: int | None  # bytes; None until the first fetch
    evidence: Evidence
    source: str  # where the digest comes from, one sentence or URL


@dataclass(frozen=True, kw_only=True)
class Base:
    """The base image."""

    image: str  # as in the intent
    digest: Digest  # of the index
    evidence: Evidence
    source: str


@dataclass(frozen=True, kw_only=True)
class Lock:
    """One reading of versions.lock.yaml."""

    intent: Digest  # Intent.checksum of the versions.yaml it was made from
    base: Base
    versions: Mapping[str, str]  # component → version
    artifacts: tuple[Artifact, ...]  # of the components
    packages: tuple[Artifact, ...]  # Debian packages

    def files(self, platform: Platform) -> tuple[Artifact, ...]:
        """Everything that one platform's image is made of, components first."""
        return tuple(a for a in (*self.artifacts, *self.packages) if a.platform == platform)

    @property
    def platforms(self) -> tuple[Platform, ...]:
        """The platforms that it has files for."""
        return tuple(sorted({a.platform for a in self.artifacts}))


def parse(text: str, where: str) -> Lock:
    """Read the text of a lock. Raises LockStale when it is not one that `render` wrote."""
    raise NotImplementedError


def render(lock: Lock) -> str:
    """The canonical text: the same lock gives the same bytes."""
    raise NotImplementedError


def read(path: Path, intent: Intent) -> Lock:
    """Read a lock and hold it against the intent. Raises LockStale with the command that renews it."""
    raise NotImplementedError


def write(path: Path, lock: Lock) -> None:
    """Write the canonical text in one step (temporary file, then rename)."""
    raise NotImplementedError
