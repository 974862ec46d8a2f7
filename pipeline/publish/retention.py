"""Stage `retention`: list the releases that a repository must keep, and, with `--delete`, remove the others.

"Delete untagged" as registries offer it destroys images for several platforms: their parts have no tags
(actions/delete-package-versions#90). Here everything that a kept tag reaches is kept: index → manifests → attestations
→ referrers (signatures, SBOMs). Only what removed releases reach, and no kept one, is removed.

Kept: the targets of moving tags and of tags that are not ours; the newest releases of each k3s line; young ones.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipeline.core.annotations import versions_of
from pipeline.core.errors import RegistryError
from pipeline.core.log import Log
from pipeline.core.names import INDEX, Digest
from pipeline.inputs.compat import number
from pipeline.oci.registry import Manifest, Registry
from pipeline.publish.tag import age

FIXED = re.compile(r"k3s-.+-docker-.+-r([1-9]\d*)(-[a-z]+)?")  # fixed tags, see tag.py
_AT_ONCE = 8  # concurrent requests; each tag takes several
_REFERRERS = re.compile(r"sha256-([0-9a-f]{64})(\.\w+)?")  # the tag schema of registries without a referrers API


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The releases to keep."""

    newest: int  # releases of each k3s line (v1.37)
    younger: timedelta  # than this age, regardless of their number


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The tags and digests of one repository to keep and to remove."""

    kept: Mapping[str, str]  # tag → reason
    tags: tuple[str, ...]  # to remove, with everything that only they reach
    digests: tuple[Digest, ...]  # to delete, in an order that never leaves a manifest without its parts


def plan(registry: Registry, rule: Rule, now: datetime) -> Plan:
    """Decide by the content of the registry alone. Raises RegistryError."""
    contents = _Contents(registry)
    tags = contents.read(registry.tags())
    contents.read(sorted({entry for manifest in tags.values() for entry in _entries(manifest)}))
    releases = {tag: manifest for tag, manifest in tags.items() if FIXED.fullmatch(tag)}
    kept: dict[str, str] = {}
    for tag, manifest in tags.items():
        if match := _REFERRERS.fullmatch(tag):
            contents.attached[Digest(f"sha256:{match[1]}")].append(manifest)
        elif tag not in releases:
            kept[tag] = "it moves, or is not one of ours"
    elsewhere = {tags[tag].digest: tag for tag in kept}
    for tag, manifest in releases.items():
        if manifest.digest in elsewhere:
            kept[tag] = f"{elsewhere[manifest.digest]} points at it"
    kept |= _by_rule(releases, rule, now)
    reached: dict[Digest, None] = {}
    for tag in kept:
        contents.visit(tags[tag], reached)
    removed = sorted(releases.keys() - kept.keys())
    digests: dict[Digest, None] = {}
    for tag in removed:
        contents.visit(releases[tag], digests)
    return Plan(kept=kept, tags=tuple(removed), digests=tuple(digest for digest in digests if digest not in reached))


def run(registry: Registry, rule: Rule, log: Log, delete: Callable[[Digest], None] | None) -> Plan:
    """Log the kept and removed tags with reasons; remove them if there is `delete`. Raises RegistryError."""
    decided = plan(registry, rule, datetime.now(UTC))
    for tag, reason in sorted(decided.kept.items()):
        log.say(f"{registry.name}:{tag} kept: {reason}")
    for tag in decided.tags:
        log.say(f"{registry.name}:{tag} {'to be removed' if delete else 'would be removed'}")
    if delete is not None:
        for digest in decided.digests:
            delete(digest)
    count = f"{len(decided.digests)} manifests of {len(decided.tags)} releases"
    log.say(f"{registry.name}: {count} {'removed' if delete else 'would be removed; to remove them: -- --delete'}")
    return decided


class _Contents:
    """The manifests of a repository, each read once, and their referrers (signatures, SBOMs)."""

    def __init__(self, registry: Registry) -> None:
        self.attached: dict[Digest, list[Manifest]] = defaultdict(list)  # by their subject, from tags `sha256-…`
        self._registry = registry
        self._read: dict[str, Manifest] = {}  # by tag or digest
        self._lists = True  # False after the registry reported that it has no referrers API

    def read(self, references: Collection[str]) -> dict[str, Manifest]:
        """Read the manifest of each tag or digest, in order; missing ones are left out."""
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            manifests = zip(references, pool.map(self._registry.manifest, references), strict=True)
            result = {reference: manifest for reference, manifest in manifests if manifest}
        self._read |= result
        return result

    def visit(self, manifest: Manifest, reached: dict[Digest, None]) -> None:
        """Add the digests that a manifest reaches, in the order of removal; the registry itself removes blobs.

        An index before its parts, referrers before their subject: what can be pulled is always complete.
        """
        if manifest.digest in reached:
            return
        for referrer in self._referrers(manifest.digest):
            self.visit(referrer, reached)
        reached[manifest.digest] = None
        for digest in _entries(manifest):
            child = self._read.get(digest) or self._registry.manifest(digest)
            if child is None:
                raise RegistryError(
                    "an index lacks one of its manifests, so nothing is removed",
                    expected=digest,
                    found="none",
                    where=f"{self._registry.name}@{manifest.digest}",
                    next_step="nox -s verify reports which release is broken; nox -s push sends what is missing",
                )
            self.visit(child, reached)

    def _referrers(self, subject: Digest) -> Iterable[Manifest]:
        """Yield the referrers of a manifest: from tags, and from the referrers API where there is one."""
        yield from self.attached.get(subject, ())
        listed = self._registry.referrers(subject) if self._lists else None
        self._lists = listed is not None
        for entry in listed or ():
            if (referrer := self._registry.manifest(entry["digest"])) is not None:
                yield referrer


def _by_rule(releases: Mapping[str, Manifest], rule: Rule, now: datetime) -> dict[str, str]:
    lines: dict[str, list[str]] = {}
    kept: dict[str, str] = {}
    ages = {}
    for tag, manifest in releases.items():
        versions, created = versions_of(manifest.annotations), _created(manifest)
        if not versions or created is None:
            kept[tag] = "it does not state its versions"
            continue
        match = FIXED.fullmatch(tag)
        assert match is not None  # as all releases
        ages[tag] = age(versions), int(match[1])
        major, minor, _ = number(versions["k3s"])
        lines.setdefault(f"v{major}.{minor}{match[2] or ''}", []).append(tag)
        if now - created < rule.younger:
            kept[tag] = f"it is younger than {rule.younger.days} days"
    for line, tags in lines.items():
        newest = sorted(tags, key=ages.__getitem__, reverse=True)
        kept |= dict.fromkeys(newest[: rule.newest], f"one of the newest {rule.newest} of {line}")
    return kept


def _created(manifest: Manifest) -> datetime | None:
    try:
        return datetime.fromisoformat(manifest.annotations["org.opencontainers.image.created"])
    except (KeyError, ValueError):
        return None


def _entries(manifest: Manifest) -> list[str]:
    """Return the digests in an index; none for another manifest."""
    if manifest.media_type != INDEX:
        return []
    return [entry["digest"] for entry in manifest.document.get("manifests", ())]
