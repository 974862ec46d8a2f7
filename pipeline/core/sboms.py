"""The SBOM files in dist/sbom/: their names, and the manifest that each describes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.core.names import Digest
from pipeline.core.platforms import Platform

FOLDER = "sbom"


class Form(StrEnum):
    """A format: its value is the middle of a file's name."""

    SPDX = "spdx"
    CYCLONEDX = "cdx"

    @property
    def predicate(self) -> str:
        """The predicate type under which an SBOM of this format is attested (in-toto/attestation, spec/predicates)."""
        return {Form.SPDX: "https://spdx.dev/Document", Form.CYCLONEDX: "https://cyclonedx.org/bom"}[self]


def path(dist: Path, platform: Platform, form: Form) -> Path:
    """Return the path of a platform's SBOM in that format."""
    return dist / FOLDER / f"{platform.architecture}.{form}.json"


def subject(form: Form, document: Mapping[str, Any]) -> Digest | None:
    """Return the digest of the manifest that one of our SBOMs describes; None if it names none."""
    try:
        if form is Form.SPDX:
            return Digest.of_hex(str(document["documentNamespace"]).rpartition("/")[2])
        return Digest.of_hex(document["metadata"]["component"]["hashes"][0]["content"])
    except (KeyError, ValueError, TypeError, IndexError, AttributeError):
        return None
