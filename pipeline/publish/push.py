"""Stage `push`: push the smoked and scanned digest to every repository, by its digest alone.

There is no tag yet, so nobody finds it by a name before it is signed: sign.py, then tag.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.core.log import size
from pipeline.core.records import LAYOUT, Release, ScanReport, SmokeReport, require_scanned, require_smoked
from pipeline.publish.publication import Publication


def left(publication: Publication) -> list[str]:
    """What a push would do, a line for each repository; empty when there is nothing. Raises RegistryError."""
    digest, pushed = publication.image.digest, publication.release.pushed
    return [
        f"push {digest} to {registry.name}"
        for registry in publication.registries
        if str(registry.name) not in pushed or not registry.has("manifests", digest, write=False)
    ]


def run(publication: Publication, smoked: Sequence[SmokeReport], scanned: Sequence[ScanReport]) -> Release:
    """Push to every repository and record it in dist/release.json as it goes.

    What a repository has is not sent again. Raises SmokeFailed for a digest that was not smoked, LockStale for one that
    was built from another lock, BuildFailed for a variant of another image, VerificationFailed for one that was not
    scanned or is of files that the policy does not accept, DigestMismatch when the built bytes changed, RegistryError.
    """
    require(publication, smoked, scanned)
    publication.layout.verify()
    digest = publication.image.digest
    release = replace(
        publication.release,
        smoked=tuple(f"{report.platform} {tier.tier}: {tier.state}" for report in smoked for tier in report.tiers),
        scanned=tuple(f"{report.platform}: {report.by}" for report in scanned),
    )
    for registry in publication.registries:
        pushed = registry.push_layout(publication.dist / LAYOUT, digest, publication.log)
        kept = f", {size(pushed.bytes_skipped)} were there" if pushed.skipped else ""
        what = f"{size(pushed.bytes_sent)} pushed{kept}" if pushed.sent else "nothing to push, all of it is there"
        publication.log.say(f"{registry.name}@{digest}: {what}")
        release = publication.record(release.having(pushed=str(registry.name)))
    return release


def require(publication: Publication, smoked: Sequence[SmokeReport], scanned: Sequence[ScanReport]) -> None:
    """Refuse what may not leave this machine; raises as `run`, without asking a registry."""
    require_smoked(publication.image, smoked)
    require_scanned(publication.image, scanned)
    publication.require_origin()
    publication.lock.require(publication.intent.policy)
    publication.require_loopback()
