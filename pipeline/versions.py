"""versions.yaml: what people ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.oci import Digest, ImageName
from pipeline.platforms import Platform

COMPONENTS = ("docker", "buildx", "compose", "k3s", "kubectl")
ORIGINS = ("docker", "github", "k3s-channels", "kubernetes", "debian", "debian-security")


@dataclass(frozen=True, kw_only=True)
class Intent:
    """One reading of versions.yaml."""

    names: tuple[ImageName, ...]  # where the image is published; the first one is the canonical one
    title: str
    description: str
    source: str  # URL of this project's repository
    licenses: str  # SPDX expression
    platforms: tuple[Platform, ...]
    components: Mapping[str, str]  # a key of COMPONENTS → exact version or channel (docs/versions.md)
    base: str  # image reference with a readable tag, e.g. docker.io/library/debian:trixie-slim
    suites: Mapping[str, tuple[str, ...]]  # Debian archive, a key of ORIGINS → its suites
    packages: tuple[str, ...]  # Debian package names, sorted
    upstream: Mapping[str, str]  # a key of ORIGINS → base URL without a trailing slash
    mirrors: Mapping[str, tuple[str, ...]]  # a key of ORIGINS → base URLs tried before the upstream, in order

    @property
    def checksum(self) -> Digest:
        """Of everything that decides what a lock holds; the lock carries it (`names`, `mirrors` do not count)."""
        raise NotImplementedError


def parse(text: str, where: str) -> Intent:
    """Read the text of a versions.yaml; `where` names it in messages.

    Raises IntentError that lists every mistake with its line.
    """
    raise NotImplementedError


def read(path: Path) -> Intent:
    """Read a versions.yaml file. Raises IntentError."""
    raise NotImplementedError
