"""Stage `retention`: which releases a repository has to keep, and, when asked, the removal of the others.

"Delete untagged" as registries offer it destroys images for several platforms: their parts have no tags of their own
(actions/delete-package-versions#90). Here everything that a kept tag reaches is kept: index → manifests → attestations
→ referrers (signatures, SBOMs), and only what is reached from releases that go, and from nothing that stays, goes.

Kept: what a moving tag or any tag that is not ours points at; the newest releases of each k3s line; young ones.
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

FIXED = re.compile(r"k3s-.+-docker-.+-r([1-9]\d*)(-[a-z]+)?")  # tags that never move, see tag.py
_AT_ONCE = 8  # requests: a registry answers each within a round trip, and there are several for each tag
_REFERRERS = re.compile(r"sha256-([0-9a-f]{64})(\.\w+)?")  # the tag schema of registries without a referrers API


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How much is kept."""

    newest: int  # releases of each k3s line (v1.37)
    younger: timedelta  # whatever their number


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The fate of each tag of one repository."""

    kept: Mapping[str, str]  # tag → why
    tags: tuple[str, ...]  # that go, with everything that only they reach
    digests: tuple[Digest, ...]  # to delete, in an order in which nothing that is left ever misses a part


def plan(registry: Registry, rule: Rule, now: datetime) -> Plan:
    """Decide, from what the registry reports alone. Raises RegistryError."""
    tags = _manifests(registry, registry.tags())
    parts = _manifests(registry, sorted({entry for found in tags.values() for entry in _entries(found)}))
    releases = {tag: found for tag, found in tags.items() if FIXED.fullmatch(tag)}
    attached = _Attached(registry)
    others: list[str] = []
    for tag, found in tags.items():
        if about := _REFERRERS.fullmatch(tag):
            attached.add(Digest(f"sha256:{about[1]}"), found)
        elif tag not in releases:
            others.append(tag)
    kept = dict.fromkeys(others, "it moves, or is not one of ours")
    elsewhere = {tags[tag].digest: tag for tag in kept}
    for tag, found in releases.items():
        if found.digest in elsewhere:
            kept[tag] = f"{elsewhere[found.digest]} points at it"
    kept |= _by_rule(releases, rule, now)
    reached = {digest for tag in kept for digest in _closure(tags[tag], attached, parts, registry)}
    going = sorted(releases.keys() - kept.keys())
    doomed: dict[Digest, None] = {}
    for tag in going:
        # An index before its parts, and what is attached to something before that: whatever can be pulled is whole.
        for digest in _closure(releases[tag], attached, parts, registry):
            if digest not in reached:
                doomed.setdefault(digest)
    return Plan(kept=kept, tags=tuple(going), digests=tuple(doomed))


def run(registry: Registry, rule: Rule, log: Log, delete: Callable[[Digest], None] | None) -> Plan:
    """Log what goes and what stays, and why; remove it with `delete`, if that is given. Raises RegistryError."""
    decided = plan(registry, rule, datetime.now(UTC))
    for tag, why in sorted(decided.kept.items()):
        log.say(f"{registry.name}:{tag} stays: {why}")
    for tag in decided.tags:
        log.say(f"{registry.name}:{tag} {'goes' if delete else 'would go'}")
    if delete is not None:
        for digest in decided.digests:
            delete(digest)
    count = f"{len(decided.digests)} manifests of {len(decided.tags)} releases"
    log.say(f"{registry.name}: {count} {'are gone' if delete else 'would go; for real: -- --delete'}")
    return decided


class _Attached:
    """What refers to a manifest (signatures, SBOMs): under tags, and in the list of a registry that keeps one."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._tagged: dict[Digest, list[Manifest]] = {}
        self._lists = True  # until it reports that it keeps none

    def add(self, about: Digest, found: Manifest) -> None:
        """Something that a tag `sha256-…` attaches to a manifest."""
        self._tagged.setdefault(about, []).append(found)

    def to(self, about: Digest) -> Iterable[Manifest]:
        """Everything that refers to a manifest."""
        yield from self._tagged.get(about, ())
        listed = self._registry.referrers(about) if self._lists else None
        self._lists = listed is not None
        for entry in listed or ():
            if (found := self._registry.manifest(entry["digest"])) is not None:
                yield found


def _by_rule(releases: Mapping[str, Manifest], rule: Rule, now: datetime) -> dict[str, str]:
    lines: dict[str, list[str]] = {}
    kept: dict[str, str] = {}
    ages = {}
    for tag, found in releases.items():
        versions, created = versions_of(found.annotations), _created(found)
        if not versions or created is None:
            kept[tag] = "it does not state what it is made of"
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
    """The number of a tag that never moves, and its variant: r2-airgap → 2, -airgap."""
    found = FIXED.fullmatch(tag)
    return (int(found[1]), found[2] or "") if found else (0, "")


def _created(manifest: Manifest) -> datetime | None:
    try:
        return datetime.fromisoformat(manifest.annotations["org.opencontainers.image.created"])
    except (KeyError, ValueError):
        return None


def _manifests(registry: Registry, references: Iterable[str]) -> dict[str, Manifest]:
    """What is behind each tag or digest, in their order; one that is gone is left out."""
    asked = list(references)
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        return {one: found for one, found in zip(asked, pool.map(registry.manifest, asked), strict=True) if found}


def _closure(top: Manifest, attached: _Attached, parts: Mapping[str, Manifest], registry: Registry) -> list[Digest]:
    """The digests that `top` reaches, in the order of their removal; blobs are the registry's own to clean up.

    `parts`: what was read already, by digest.
    """
    found: dict[Digest, None] = {}

    def visit(manifest: Manifest) -> None:
        if manifest.digest in found:
            return
        for other in attached.to(manifest.digest):
            visit(other)
        found[manifest.digest] = None
        for child in _children(manifest, parts, registry):
            visit(child)

    visit(top)
    return list(found)


def _entries(manifest: Manifest) -> list[str]:
    """The digests in an index; none in another manifest."""
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
