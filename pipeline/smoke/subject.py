"""The subject of smoke: one platform of a built image, and the lock that it was built from."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.core.platforms import Platform
from pipeline.core.records import BuiltPlatform, Image, Variant
from pipeline.inputs.lock import Artifact, Lock
from pipeline.oci.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One platform of an image."""

    image: Image
    platform: Platform
    layout: Layout  # of the image
    lock: Lock

    @property
    def built(self) -> BuiltPlatform:
        """The platform's manifest, config and size."""
        return self.image.platforms[self.platform]

    @property
    def airgap(self) -> Artifact | None:
        """The archive of system images in the variant airgap; None in the image."""
        locked = self.lock.airgap if self.image.variant is Variant.AIRGAP else ()
        return next((file for file in locked if file.platform == self.platform), None)
