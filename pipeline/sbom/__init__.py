"""Stage `sbom`: the content of the built image in SPDX 2.3 and CycloneDX 1.6, one file of each per platform.

It is read from the image's bytes, nothing is executed; the lock adds the origin of files. The same image and lock give
the same bytes: dates are the image's, identifiers are derived from digests.

    dist/sbom/amd64.spdx.json  dist/sbom/amd64.cdx.json  dist/sbom/arm64.spdx.json …
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.core.log import Log, size
from pipeline.core.names import Digest
from pipeline.core.records import LAYOUT, Image, write_text
from pipeline.core.sboms import Form, path
from pipeline.inputs.lock import Lock
from pipeline.oci import layout
from pipeline.oci.layers import Layer
from pipeline.sbom import documents, inventory, rootfs


def run(images: Iterable[Image], lock: Lock, dist: Path, log: Log) -> None:
    """Write the SBOMs of the image and its variants, each to the variant's folder in `dist`.

    Raises LockStale if an image was built from another lock, DigestMismatch if its files have changed or differ from
    the locked ones.
    """
    known: dict[Digest, Layer[rootfs.FileContent]] = {}
    for image in images:
        image.require_lock(lock.digest)
        folder = image.variant.below(dist)
        built = layout.read(folder / LAYOUT, image.digest)
        built.verify()
        read = functools.partial(rootfs.read, built, known=known)
        manifests = [platform.digest for platform in image.platforms.values()]
        with ThreadPoolExecutor(len(manifests)) as pool:
            roots = dict(zip(image.platforms, pool.map(read, manifests), strict=True))
        for platform, root in roots.items():
            contents = inventory.take(platform, image, lock, root)
            for form in Form:
                text = documents.render(contents, form)
                write_text(path(folder, platform, form), text)
                log.say(
                    f"{platform}{image.variant.suffix} {form}: {len(contents.packages)} packages, {size(len(text))}"
                )
