"""Stage `retention`: list the releases that a repository must keep, and, with `--delete`, remove the others.

"Delete untagged" as registries offer it destroys images for several platforms: their parts have no tags
(actions/delete-package-versions#90). Here everything that a kept tag reaches is kept: index → manifests → attestations
→ referrers (signatures, SBOMs). Only what removed releases reach, and no kept one, is removed.

Kept: the targets of moving tags and of tags that are not ours; the newest releases of each k3s line; young ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
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
    tags = _manifests(registry, registry.tags())
    parts = _manifests(registry, sorted({entry for manifest in tags.values() for entry in _entries(manifest)}))
    releases = {tag: manifest for tag, manifest in tags.items() if FIXED.fullmatch(tag)}
    attached = _Attached(registry)
    others: list[str] = []
    for tag, manifest in tags.items():
        if match := _REFERRERS.fullmatch(tag):
            attached.add(Digest(f"sha256:{match[1]}"), manifest)
        elif tag not in releases:
            others.append(tag)
    kept = dict.fromkeys(others, "it moves, or is not one of ours")
    elsewhere = {tags[tag].digest: tag for tag in kept}
    for tag, manifest in releases.items():
        if manifest.digest in elsewhere:
            kept[tag] = f"{elsewhere[manifest.digest]} points at it"
    kept |= _by_rule(releases, rule, now)
    reached = {digest for tag in kept for digest in _closure(tags[tag], attached, parts, registry)}
    removed = sorted(releases.keys() - kept.keys())
    digests: dict[Digest, None] = {}
    for tag in removed:
        # An index before its parts, referrers before their subject: what can be pulled is always complete.
        for digest in _closure(releases[tag], attached, parts, registry):
            if digest not in reached:
                digests.setdefault(digest)
    return Plan(kept=kept, tags=tuple(removed), digests=tuple(digests))


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


class _Attached:
    """Referrers of manifests (signatures, SBOMs): from tags, and from the referrers API where there is one."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._tagged: dict[Digest, list[Manifest]] = {}
        self._lists = True  # False after the registry reported that it has no referrers API

    def add(self, subject: Digest, referrer: Manifest) -> None:
        """Add a manifest that a tag `sha256-…` attaches to its subject."""
        self._tagged.setdefault(subject, []).append(referrer)

    def to(self, subject: Digest) -> Iterable[Manifest]:
        """Yield all referrers of a manifest."""
        yield from self._tagged.get(subject, ())
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
        number_of, variant = _parts(tag)
        ages[tag] = age(versions), number_of
        major, minor, _ = number(versions["k3s"])
        lines.setdefault(f"v{major}.{minor}{variant}", []).append(tag)
        if now - created < rule.younger:
            kept[tag] = f"it is younger than {rule.younger.days} days"
    for line, tags in lines.items():
        newest = sorted(tags, key=ages.__getitem__, reverse=True)
        kept |= dict.fromkeys(newest[: rule.newest], f"one of the newest {rule.newest} of {line}")
    return kept


def _parts(tag: str) -> tuple[int, str]:
    """Return the number of a fixed tag, and its variant: r2-airgap → 2, -airgap."""
    match = FIXED.fullmatch(tag)
    return (int(match[1]), match[2] or "") if match else (0, "")


def _created(manifest: Manifest) -> datetime | None:
    try:
        return datetime.fromisoformat(manifest.annotations["org.opencontainers.image.created"])
    except (KeyError, ValueError):
        return None


def _manifests(registry: Registry, references: Iterable[str]) -> dict[str, Manifest]:
    """Read the manifest of each tag or digest, in order; missing ones are left out."""
    names = list(references)
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        manifests = zip(names, pool.map(registry.manifest, names), strict=True)
        return {name: manifest for name, manifest in manifests if manifest}


def _closure(top: Manifest, attached: _Attached, parts: Mapping[str, Manifest], registry: Registry) -> list[Digest]:
    """Return the digests that `top` reaches, in the order of removal; the registry itself removes blobs.

    `parts`: manifests that were read before, by digest.
    """
    reached: dict[Digest, None] = {}

    def visit(manifest: Manifest) -> None:
        if manifest.digest in reached:
            return
        for other in attached.to(manifest.digest):
            visit(other)
        reached[manifest.digest] = None
        for child in _children(manifest, parts, registry):
            visit(child)

    visit(top)
    return list(reached)


def _entries(manifest: Manifest) -> list[str]:
    """Return the digests in an index; none for another manifest."""
    if manifest.media_type != INDEX:
        return []
    return [entry["digest"] for entry in manifest.document.get("manifests", ())]


def _children(index: Manifest, parts: Mapping[str, Manifest], registry: Registry) -> Iterable[Manifest]:
    for digest in _entries(index):
        child = parts.get(digest) or registry.manifest(digest)
        if child is None:
            raise RegistryError(
                "an index lacks one of its manifests, so nothing is removed",
                expected=digest,
                found="none",
                where=f"{registry.name}@{index.digest}",
                next_step="nox -s verify reports which release is broken; nox -s push sends what is missing",
            )
        yield child
