"""The build context: verified files of the cache, one folder per architecture, and the base image's layout."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pipeline.components import AIRGAP, COMPONENTS, owner
from pipeline.core import cache as cached
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant, write_json
from pipeline.fetch import base
from pipeline.inputs.lock import Artifact, Lock
from pipeline.inputs.versions import Intent
from pipeline.inspect import embedded


def prepare(intent: Intent, lock: Lock, cache: Path, context: Path, log: Log) -> None:
    """Write the folder `context`, out of the cache alone.

    Raises UpstreamError, DigestMismatch and IntentError when the cache is not complete.
    """
    with log.step("prepare the build context"):
        shutil.rmtree(context, ignore_errors=True)
        for platform in Platform:
            # The Dockerfile mounts the build platform's, too, and fails with an error message when it is empty.
            (context / "artifacts" / platform.architecture / "packages").mkdir(parents=True)
        # Read from the files: the lock may lack it, since it is no part of the lock's digest.
        inside = embedded.of_lock(lock, cache, log)
        for platform in intent.platforms:
            folder = context / "artifacts" / platform.architecture
            _stage_files(lock.files(platform), cache, folder)
            _stage_files([file for file in lock.airgap if file.platform == platform], cache, folder / Variant.AIRGAP)
            for variant in lock.variants:
                content = manifest(intent, lock, platform, variant, inside)
                write_json(variant.below(folder) / "manifest.json", content)
        base.write_layout(lock.base.digest, intent.platforms, cache, context / "base")


def _stage_files(artifacts: Sequence[Artifact], cache: Path, folder: Path) -> None:
    """Link one platform's files from the cache under the names that the Dockerfile expects."""
    for artifact in artifacts:
        file = PurePosixPath(artifact.path).name
        name = f"packages/{file}"
        if artifact.component == AIRGAP:
            name = file
        elif artifact.component in COMPONENTS:
            name = COMPONENTS[artifact.component].context_name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cached.link(cached.require(cache, artifact.digest), folder / name)


def manifest(
    intent: Intent, lock: Lock, platform: Platform, variant: Variant, inside: embedded.Embedded
) -> list[dict[str, object]]:
    """Return /usr/share/dind-k3s/manifest.json without the files' digests, which the Dockerfile adds. Pure."""
    image: dict[str, object] = {
        "component": "dind-k3s",
        "version": lock.version,
        "url": intent.source,
        "licence": intent.licenses,
        "built": lock.date,
    }
    files = [*lock.files(platform), *(lock.airgap if variant is Variant.AIRGAP else ())]
    components: list[dict[str, object]] = [
        {
            "component": artifact.component,
            "version": artifact.version,
            "sha256": artifact.digest.hex,
            "url": artifact.url,
            "licence": owner(artifact.component).licence,
            "embedded": dict(inside.get(artifact.component, {})),
        }
        for artifact in files
        if artifact.component in (*COMPONENTS, AIRGAP) and artifact.platform == platform
    ]
    return [image, *components]
