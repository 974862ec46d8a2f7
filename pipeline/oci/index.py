"""Descriptors, and the entries of an image index: images by platform, and BuildKit's attestations about them.

Source: https://github.com/opencontainers/image-spec (descriptor.md, image-index.md)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.core.names import INDEX, REFERENCE_TYPE, Digest

Document = Mapping[str, Any]


def images(index: Document) -> list[Document]:
    """Return the entries that are images, in their order: all but the attestations."""
    return [entry for entry in index["manifests"] if not _is_attestation(entry)]


def attestations(index: Document) -> list[Document]:
    """Return the entries that are attestations; `subject_of` returns the image of each."""
    return [entry for entry in index["manifests"] if _is_attestation(entry)]


def subject_of(attestation: Document) -> str:
    """Return the digest of an attestation's image; empty if it names none."""
    return str(attestation["annotations"].get("vnd.docker.reference.digest", ""))


def by_platform(index: Document) -> dict[str, Document]:
    """Return the images' entries by platform, os/architecture; the first of several for one platform."""
    entries: dict[str, Document] = {}
    for entry in images(index):
        entries.setdefault(platform_of(entry), entry)
    return entries


def platform_of(entry: Document) -> str:
    """Return os/architecture of an index's entry, or of a config."""
    platform = entry.get("platform", entry)
    return f"{platform.get('os')}/{platform.get('architecture')}"


def annotations_of(document: Document) -> Mapping[str, str]:
    """Return the annotations of an index, a manifest or an entry; empty if it has none."""
    return document.get("annotations") or {}


def _is_attestation(entry: Document) -> bool:
    return REFERENCE_TYPE in annotations_of(entry)


def descriptor(media_type: str, digest: Digest, size: int, **more: Any) -> dict[str, Any]:
    """Return the entry of a blob in an index, a manifest or a layout; `size`: bytes."""
    return {"mediaType": media_type, "digest": digest.text, "size": size, **more}


def layout_files(*descriptors: Document) -> dict[str, bytes]:
    """Return the files at the top of an OCI layout that holds these manifests or indexes, by name."""
    top = {"schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors}
    return {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(top).encode()}
