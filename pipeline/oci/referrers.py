"""Referrers: artifacts that refer to a manifest, such as signatures and attestations of an image.

A registry with the referrers API lists them; in others the tag `sha256-<hex>` of the digest is an index of them (OCI
distribution-spec, "Referrers Tag Schema"). cosign and other readers use both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.log import Log
from pipeline.core.names import INDEX, MANIFEST, Digest
from pipeline.oci.index import descriptor
from pipeline.oci.layout import Part
from pipeline.oci.registry import Registry, listed

EMPTY = "application/vnd.oci.empty.v1+json"
_EMPTY_CONFIG = b"{}"


@dataclass(frozen=True, kw_only=True)
class Referrer:
    """One file about a manifest or an index."""

    subject: Part
    kind: str  # artifact type and media type of the file
    annotations: Mapping[str, str]
    path: Path  # of the file


def entries(registry: Registry, subject: Digest) -> list[dict[str, Any]]:
    """Return the descriptors of all referrers of a manifest. Raises RegistryError."""
    by_api = registry.referrers(subject)
    return _at_tag(registry, subject) if by_api is None else by_api


def push(registry: Registry, artifact: Referrer, folder: Path, log: Log) -> bool:
    """Push a referrer; return False if it existed. A second run completes an interrupted one.

    `folder`: for the file of two bytes that is the empty config. Raises RegistryError.
    """
    empty = folder / "empty.json"
    empty.write_bytes(_EMPTY_CONFIG)
    config = _part(empty, EMPTY)
    file = _part(artifact.path, artifact.kind)
    about = {"artifactType": artifact.kind, "annotations": dict(artifact.annotations)}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor,
        "layers": [file.descriptor],
        "subject": artifact.subject.descriptor,
        **about,
    }
    raw = _compact(manifest)
    digest = Digest.of(raw)
    by_api = registry.referrers(artifact.subject.digest)
    exists = registry.has("manifests", digest)
    if not exists:
        registry.push_blobs((config, file), log)
        registry.tag(digest.text, raw, MANIFEST)
    if by_api is not None:
        return not exists
    # Without a referrers API the client updates the list; entries of others stay.
    tag, entries = tag_of(artifact.subject.digest), _at_tag(registry, artifact.subject.digest)
    if any(entry["digest"] == digest.text for entry in entries):
        return not exists
    described = descriptor(MANIFEST, digest, len(raw), **about)
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*entries, described]}
    registry.tag(tag, _compact(index), INDEX)
    return True


def _at_tag(registry: Registry, subject: Digest) -> list[dict[str, Any]]:
    tagged = registry.manifest(tag_of(subject))
    return listed(tagged.raw, f"{registry.name}:{tag_of(subject)}") if tagged else []


def tag_of(subject: Digest) -> str:
    """Return the tag of the list where there is no referrers API."""
    return subject.text.replace(":", "-", 1)


def _part(path: Path, media_type: str) -> Part:
    return Part(digest=Digest.of_file(path), size=path.stat().st_size, media_type=media_type, path=path)


def _compact(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
