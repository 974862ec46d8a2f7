"""The subject of push, sign, tag and verify: an image and its repositories."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.core.annotations import REHEARSAL
from pipeline.core.log import Log
from pipeline.core.names import ImageName
from pipeline.core.records import LAYOUT, Image, Release, require_loopback
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent
from pipeline.oci import index, layout
from pipeline.oci.layout import Layout
from pipeline.oci.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Publication:
    """One image, the image or a variant."""

    intent: Intent
    lock: Lock
    image: Image
    dist: Path  # the folder of this image's files
    registry_for: Callable[[ImageName], Registry]
    log: Log
    base: Image | None = None  # of a variant: the image that it extends; None: this one

    @cached_property
    def registries(self) -> list[Registry]:
        """The repositories of versions.yaml."""
        return [self.registry_for(name) for name in self.intent.names]

    @property
    def layout(self) -> Layout:
        """The built bytes. Raises DigestMismatch."""
        return layout.read(self.dist / LAYOUT, self.image.digest)

    @property
    def release(self) -> Release:
        """The recorded stages that the digest has passed."""
        return Release.read(self.dist, self.image.digest)

    def record(self, release: Release) -> Release:
        """Write dist/release.json; return the release."""
        release.write(self.dist)
        return release

    def require_origin(self) -> None:
        """Raise LockStale for an image of another lock, BuildFailed for a variant of another image."""
        self.image.require_layers_of(self.base or self.image)
        self.image.require_lock(self.lock.digest)

    def require_loopback(self) -> None:
        """Raise RegistryError for a rehearsed image whose repository is not on this machine."""
        # The index states it, too, which is harder to change than image.json.
        annotations = index.annotations_of(json.loads(self.layout.index.path.read_bytes()))
        require_loopback(self.intent.names, rehearsed=self.image.rehearsed or REHEARSAL in annotations)
