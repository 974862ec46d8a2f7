"""An image on its way into its repositories: what push, sign, tag and verify work on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
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
    base: Image | None = None  # the image that a variant is made on; None: this one

    @property
    def registries(self) -> list[Registry]:
        """The repositories of versions.yaml."""
        return [self.registry_for(name) for name in self.intent.names]

    @property
    def layout(self) -> Layout:
        """The built bytes. Raises DigestMismatch."""
        return layout.read(self.dist / LAYOUT, self.image.digest)

    @property
    def release(self) -> Release:
        """How far the digest has come, as it is recorded now."""
        return Release.read(self.dist, self.image.digest)

    def record(self, release: Release) -> Release:
        """Write down how far the digest has come."""
        release.write(self.dist)
        return release

    def require_origin(self) -> None:
        """Refuse an image of another lock, and a variant of another image. Raises LockStale, BuildFailed."""
        self.image.require_layers_of(self.base or self.image)
        self.image.require_lock(self.lock.digest)

    def require_loopback(self) -> None:
        """Refuse to take a rehearsed image elsewhere. Raises RegistryError."""
        # The bytes themselves state it too: image.json is only a file.
        annotations = index.annotations_of(json.loads(self.layout.index.path.read_bytes()))
        require_loopback(self.intent.names, rehearsed=self.image.rehearsed or REHEARSAL in annotations)
