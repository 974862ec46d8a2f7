"""Stage `push`: bring the smoked and scanned digest into every repository, by its digest alone.

There is no tag yet, so nobody finds it by a name before it is signed: sign.py, then tag.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.core.annotations import REHEARSAL
from pipeline.core.log import Log, size
from pipeline.core.names import ImageName
from pipeline.core.records import (
    LAYOUT,
    Image,
    Release,
    ScanReport,
    SmokeReport,
    require_loopback,
    require_scanned,
    require_smoked,
)
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent
from pipeline.oci import layout
from pipeline.oci.registry import Registry


def left(intent: Intent, image: Image, dist: Path, registry_for: Callable[[ImageName], Registry]) -> list[str]:
    """What a push would do, a sentence for each repository; empty when there is nothing. Raises RegistryError."""
    done = Release.read(dist, image.digest).pushed
    return [
        f"push {image.digest} to {name}"
        for name in intent.names
        if str(name) not in done or not registry_for(name).has("manifests", image.digest, write=False)
    ]


def run(
    intent: Intent,
    lock: Lock,
    image: Image,
    smoked: Sequence[SmokeReport],
    scanned: Sequence[ScanReport],
    dist: Path,
    registry_for: Callable[[ImageName], Registry],
    log: Log,
    *,
    on: Image | None = None,
) -> Release:
    """Push to every name of the intent and record it in dist/release.json as it goes.

    `on`: the image that a variant is made on. What a repository has is not sent again. Raises SmokeFailed for a digest
    that was not smoked, LockStale for one that was built from another lock, BuildFailed for a variant of another image,
    VerificationFailed for one that was not scanned or is of files that the policy does not believe, DigestMismatch when
    the built bytes changed, RegistryError.
    """
    require(intent, lock, image, smoked, scanned, dist, on=on)
    layout.read(dist / LAYOUT, image.digest).verify()
    release = replace(
        Release.read(dist, image.digest),
        smoked=tuple(f"{report.platform} {tier.tier}: {tier.state}" for report in smoked for tier in report.tiers),
        scanned=tuple(f"{report.platform}: {report.by}" for report in scanned),
    )
    for name in intent.names:
        pushed = registry_for(name).push_layout(dist / LAYOUT, image.digest, log)
        kept = f", {size(pushed.bytes_skipped)} were there" if pushed.skipped else ""
        what = f"{size(pushed.bytes_sent)} pushed{kept}" if pushed.sent else "nothing to push, all of it is there"
        log.say(f"{name}@{image.digest}: {what}")
        release = release.having(pushed=str(name))
        release.write(dist)
    return release


def require(
    intent: Intent,
    lock: Lock,
    image: Image,
    smoked: Sequence[SmokeReport],
    scanned: Sequence[ScanReport],
    dist: Path,
    *,
    on: Image | None = None,
) -> None:
    """Refuse what may not leave this machine; raises as `run`, without asking a registry."""
    require_smoked(image, smoked)
    require_scanned(image, scanned)
    image.require_layers_of(on or image)
    image.require_lock(lock.digest)
    lock.require(intent.policy)
    index = layout.read(dist / LAYOUT, image.digest).index.path.read_bytes()
    # The bytes themselves say it too: image.json is only a file.
    rehearsed = image.rehearsed or REHEARSAL in json.loads(index).get("annotations", {})
    require_loopback(intent.names, rehearsed=rehearsed)
