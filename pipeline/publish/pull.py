"""Stage `pull`: bring a published image back as `build` would have left it, without credentials, every byte checked.

So what was published can be smoked, booted too: `nox -s pull -- IMAGE`, then `nox -s smoke -- --dist dist/pulled`.
What was brought before is not brought again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.annotations import KEY, REHEARSAL, variant_of
from pipeline.core.errors import RegistryError
from pipeline.core.log import Log, size
from pipeline.core.names import INDEX, REFERENCE_TYPE, Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import LAYOUT, BuiltPlatform, Image, write_json, write_text
from pipeline.oci import layout
from pipeline.oci.registry import Registry


def run(registry: Registry, reference: str, dist: Path, log: Log) -> Image:
    """Write dist/image/ and dist/image.json of the index behind a tag or digest; a variant's below dist/, as ever.

    `registry`: without credentials. Raises RegistryError when there is no such index, when it is none of ours, or when
    a part of it cannot be had.
    """
    top = registry.manifest(reference)
    if top is None:
        raise RegistryError(f"there is no {registry.name}, {reference}", next_step="is the name right, is it public?")
    index: dict[str, Any] = json.loads(top.raw)
    said: Mapping[str, str] = index.get("annotations") or {}
    if top.media_type != INDEX or f"{KEY}.lock" not in said:
        raise RegistryError(
            f"{registry.name}, {reference}, is no image of this project",
            expected=f"an index with the annotation {KEY}.lock",
            found=top.media_type,
        )
    dist = variant_of(said).below(dist)
    folder = dist / LAYOUT
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / top.digest.hex).write_bytes(top.raw)
    platforms: dict[Platform, BuiltPlatform] = {}
    brought = 0
    for entry in index["manifests"]:
        manifest = _manifest(registry, Digest(entry["digest"]), blobs)
        parts = [Digest(part["digest"]) for part in (manifest["config"], *manifest["layers"])]
        brought += sum(_blob(registry, part, blobs) for part in parts)
        if REFERENCE_TYPE not in (entry.get("annotations") or {}):
            platforms[Platform(f"linux/{entry['platform']['architecture']}")] = BuiltPlatform(
                digest=Digest(entry["digest"]),
                config=parts[0],
                size=sum(layer["size"] for layer in manifest["layers"]),
                layers=tuple(parts[1:]),
            )
    write_text(folder / "oci-layout", '{"imageLayoutVersion":"1.0.0"}')
    described = {"mediaType": INDEX, "digest": top.digest.text, "size": len(top.raw)}
    write_json(folder / "index.json", {"schemaVersion": 2, "mediaType": INDEX, "manifests": [described]})
    image = Image(
        digest=top.digest,
        inputs=top.digest,  # what it was built from is not here, so `build` never takes it for its own
        lock=Digest(said[f"{KEY}.lock"]),
        platforms=platforms,
        annotations=said,
        rehearsed=REHEARSAL in said,
        variant=variant_of(said),
    )
    total = layout.read(folder, top.digest).verify()
    image.write(dist)
    log.say(f"{registry.name}@{top.digest}: {size(brought)} of {size(total)} brought, every byte hashed")
    return image


def _manifest(registry: Registry, digest: Digest, blobs: Path) -> dict[str, Any]:
    found = registry.manifest(digest.text)
    if found is None:
        raise RegistryError(f"{registry.name} lacks a part of the image", expected=digest.text, found="nothing")
    (blobs / digest.hex).write_bytes(found.raw)
    document: dict[str, Any] = json.loads(found.raw)
    return document


def _blob(registry: Registry, digest: Digest, blobs: Path) -> int:
    """Have a blob; returns the bytes that came."""
    path = blobs / digest.hex
    if path.exists() and Digest.of_file(path) == digest:
        return 0
    partial = path.with_name(f".{path.name}")
    try:
        with registry.blob(digest) as chunks, partial.open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
            count = stream.tell()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count
