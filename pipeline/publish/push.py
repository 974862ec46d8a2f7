"""Stage `push`: push the smoked and scanned digest to every repository, by its digest alone.

It gets tags only after it is signed: sign.py, then tag.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.core.log import size
from pipeline.core.records import LAYOUT, Release, ScanReport, SmokeReport, require_scanned, require_smoked
from pipeline.publish.publication import Publication


def left(publication: Publication) -> list[str]:
    """Return a line for each repository that needs a push; empty if none does. Raises RegistryError."""
    digest, pushed = publication.image.digest, publication.release.pushed
    return [
        f"push {digest} to {registry.name}"
        for registry in publication.registries
        if str(registry.name) not in pushed or not registry.has("manifests", digest, write=False)
    ]


def run(publication: Publication, smoked: Sequence[SmokeReport], scanned: Sequence[ScanReport]) -> Release:
    """Push to every repository; record each in dist/release.json.

    Files that a repository has are skipped. Raises SmokeFailed for a digest that was not smoked, LockStale for one of
    another lock, BuildFailed for a variant of another image, VerificationFailed for one that was not scanned or has
    files that the policy does not accept, DigestMismatch if the built bytes changed, RegistryError.
    """
    require(publication, smoked, scanned)
    total = publication.layout.verify()
    digest = publication.image.digest
    release = replace(
        publication.release,
        smoked=tuple(f"{report.platform} {tier.tier}: {tier.state}" for report in smoked for tier in report.tiers),
        scanned=tuple(f"{report.platform}: {report.by}" for report in scanned),
    )
    for registry in publication.registries:
        pushed = sum(part.size for part in registry.push_layout(publication.dist / LAYOUT, digest, publication.log))
        skipped = f", {size(total - pushed)} were there" if pushed < total else ""
        result = f"{size(pushed)} pushed{skipped}" if pushed else "nothing to push, all of it is there"
        publication.log.say(f"{registry.name}@{digest}: {result}")
        release = publication.record(release.having(pushed=str(registry.name)))
    return release


def require(publication: Publication, smoked: Sequence[SmokeReport], scanned: Sequence[ScanReport]) -> None:
    """Raise the errors of `run` for an image that must not be pushed; sends no requests."""
    require_smoked(publication.image, smoked)
    require_scanned(publication.image, scanned)
    publication.require_origin()
    publication.lock.require(publication.intent.policy)
    publication.require_loopback()
