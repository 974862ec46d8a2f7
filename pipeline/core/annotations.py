"""Annotations and labels of our images, in addition to those of the OCI image specification.

https://github.com/opencontainers/image-spec/blob/main/annotations.md
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.core.records import Variant

KEY = "io.github.dind-k3s"  # reverse DNS, as the OCI annotation rules ask for
REHEARSAL = f"{KEY}.rehearsal"
VARIANT = f"{KEY}.variant"


def variant_of(annotations: Mapping[str, str]) -> Variant:
    """Return the variant that an image states in its annotations."""
    return Variant(annotations.get(VARIANT, Variant.IMAGE))


def versions_of(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of k3s and docker that an image states; empty when it does not state both."""
    versions = {component: annotations.get(f"{KEY}.{component}", "") for component in ("k3s", "docker")}
    return versions if all(versions.values()) else {}
