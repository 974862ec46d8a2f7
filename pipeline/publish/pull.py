"""Stage `pull`: download a published image to dist/ as `build` writes it, without credentials, every byte checked.

Then it can be smoked: `nox -s pull -- IMAGE`, `nox -s smoke -- --dist dist/pulled`. Files of an earlier download are
used again.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.core.annotations import KEY, REHEARSAL, variant_of
from pipeline.core.errors import RegistryError
from pipeline.core.log import Log, size
from pipeline.core.names import INDEX, Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import LAYOUT, BuiltPlatform, Image
from pipeline.oci import layout
from pipeline.oci.index import by_platform, descriptor
from pipeline.oci.registry import Registry


def run(registry: Registry, reference: str, dist: Path, log: Log) -> Image:
    """Write dist/image/ and dist/image.json of the index with that tag or digest; a variant's in its folder of dist/.

    `registry`: without credentials. Raises RegistryError if there is no such index, if it is not an image of this
    project, or if a part of it is missing.
    """
    top = registry.manifest(reference)
    if top is None:
        raise RegistryError(f"there is no {registry.name}, {reference}", next_step="is the name right, is it public?")
    annotations = top.annotations
    if top.media_type != INDEX or f"{KEY}.lock" not in annotations:
        raise RegistryError(
            f"{registry.name}, {reference}, is not an image of this project",
            expected=f"an index with the annotation {KEY}.lock",
            found=top.media_type,
        )
    variant = variant_of(annotations)
    dist = variant.below(dist)
    folder = dist / LAYOUT
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / top.digest.hex).write_bytes(top.raw)
    downloaded = 0
    manifests = {}
    for entry in top.document["manifests"]:
        manifest = registry.manifest(entry["digest"])
        if manifest is None:
            raise RegistryError(f"{registry.name} lacks a part of the image", expected=entry["digest"], found="nothing")
        (blobs / manifest.digest.hex).write_bytes(manifest.raw)
        manifests[entry["digest"]] = manifest.document
        for part in (manifest.document["config"], *manifest.document["layers"]):
            digest = Digest(part["digest"])
            path = blobs / digest.hex
            if not path.exists() or Digest.of_file(path) != digest:
                downloaded += registry.download(digest, path)
    layout.write_top(folder, descriptor(INDEX, top.digest, len(top.raw)))
    image = Image(
        digest=top.digest,
        inputs=top.digest,  # the real inputs are unknown; this never equals those of a `build`
        lock=Digest(annotations[f"{KEY}.lock"]),
        platforms={
            Platform(platform): BuiltPlatform.of(Digest(entry["digest"]), manifests[entry["digest"]])
            for platform, entry in by_platform(top.document).items()
        },
        annotations=annotations,
        rehearsed=REHEARSAL in annotations,
        variant=variant,
    )
    total = layout.read(folder, top.digest).verify()
    image.write(dist)
    log.say(f"{registry.name}@{top.digest}: {size(downloaded)} of {size(total)} downloaded, every byte hashed")
    return image
