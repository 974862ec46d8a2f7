"""Resolves channels: the newest release that is complete for all platforms and old enough.

A candidate that lacks a file, or is younger than its cooldown, is skipped and logged; an exact version never is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import islice, product

from pipeline import components
from pipeline.components import COMPONENTS, is_exact
from pipeline.core.errors import UpstreamError
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant
from pipeline.inputs import compat
from pipeline.inputs.lock import Lock
from pipeline.resolve import upstream
from pipeline.resolve.origins import Head, Origins

_CANDIDATES = 30  # limit per channel


def choose(origins: Origins, previous: Lock | None, now: datetime) -> dict[str, str]:
    """Return component → exact version. Raises UpstreamError if a channel has no suitable release."""
    chosen: dict[str, str] = {}
    for component in COMPONENTS:
        requested = origins.intent.components[component]
        if is_exact(component, requested):
            chosen[component] = requested
            continue
        locked = previous.versions.get(component, "") if previous else ""
        if not is_exact(component, locked):
            locked = ""
        match COMPONENTS[component].chosen_by:
            case "docker":
                candidates = _docker(origins, requested)
            case "k3s":
                candidates = _k3s(origins, requested, locked)
            case "kubectl":
                candidates = _kubectl(origins, requested, chosen["k3s"])
            case "tags":
                candidates = (tag for tag in _tags(origins, component) if upstream.fits(tag, requested))
        chosen[component] = _first(origins, component, candidates, locked, now)
    return chosen


def _first(origins: Origins, component: str, candidates: Iterable[str], locked: str, now: datetime) -> str:
    """Return the first suitable candidate. Raises UpstreamError."""
    skipped: list[str] = []
    for version in islice(dict.fromkeys(candidates), _CANDIDATES):
        reason = _missing(origins, component, version)
        if not reason and version != locked:
            reason = _young(origins, component, version, now)
        if not reason:
            return version
        skipped.append(f"skipped {component} {version}: {reason}")
        origins.log.say(skipped[-1])
    raise UpstreamError(
        f"upstream has no suitable {component} {origins.intent.components[component]}",
        expected="a release with the files of all platforms, as old as its cooldown in versions.yaml",
        found="; ".join(skipped) or "no release of that channel",
        next_step="choose another version in versions.yaml, or add it to known-fixes (docs/versions.md)",
    )


def _missing(origins: Origins, component: str, version: str) -> str:
    """Return which file a release lacks; empty if it is complete."""
    airgap = Variant.AIRGAP in origins.intent.variants
    for part, platform in product(components.parts(component, airgap=airgap), origins.intent.platforms):
        if _head(origins, part, version, platform) is None:
            return f"{part} {version} for {platform} does not exist (yet)"
    return ""


def _young(origins: Origins, component: str, version: str, now: datetime) -> str:
    """Return why a release is too young; empty if it is old enough or a known fix.

    Its date is the server's date of its youngest file: git's refs have no dates, the API has a quota.
    """
    days = origins.intent.days(component)
    if not days:
        return ""
    if (fix := origins.intent.fix(component, version)) is not None:
        origins.log.say(f"{component} {version} is a known fix, so its cooldown is ignored: {fix.reason}")
        return ""
    dates = []
    for platform in origins.intent.platforms:
        head = _head(origins, component, version, platform)
        if head is None or head.released is None:
            return f"the server does not report its date, and its cooldown is {days} days"
        dates.append(head.released)
    if now - max(dates) < timedelta(days=days):
        return f"its files are from {max(dates):%Y-%m-%d}, and its cooldown is {days} days"
    return ""


def _head(origins: Origins, part: str, version: str, platform: Platform) -> Head | None:
    where = components.published(part, version, platform)
    return origins.head(origins.url(where.origin, where.path), f"{part} {version} for {platform}")


def _tags(origins: Origins, component: str) -> list[str]:
    what = f"the tags of {COMPONENTS[component].repository}"
    return upstream.tagged(origins.text("github", upstream.refs_path(component), what), component)


def _docker(origins: Origins, requested: str) -> Iterator[str]:
    """Yield versions that docker's server lists for every platform and moby/moby has a tag for."""
    lists = [
        set(upstream.listed_docker(origins.text("docker", upstream.listing_path(platform), "docker's archives")))
        for platform in origins.intent.platforms
    ]
    listed = set.intersection(*lists)
    tagged = set(_tags(origins, "docker"))
    for version in upstream.ordered(set.union(tagged, *lists)):
        if not upstream.fits(version, requested):
            continue
        if version in listed and version in tagged:
            yield version
        else:
            missing = "a platform's archive is not listed" if version in tagged else "moby/moby has no such tag"
            origins.log.say(f"skipped docker {version}: {missing}")


def _k3s(origins: Origins, requested: str, locked: str) -> Iterator[str]:
    """Yield the version of k3s's channel, then older tags, then the locked version.

    The channel server was down, behind, empty or ahead of the files before (k3s-io/k3s issues 2531, 11421, 11974,
    13414, 9392, 11417).
    """
    current = ""
    try:
        text = origins.text("k3s-channels", upstream.CHANNELS_PATH, "k3s's channels")
        current = upstream.k3s_channel(text, requested)
        if locked and upstream.older(current, locked):
            origins.log.warn(f"k3s's channel {requested} went back from {locked} (in the lock) to {current}")
        yield current
    except UpstreamError as error:
        origins.log.warn(f"{error.summary}; using its tags, then the lock")
    try:
        tags = _tags(origins, "k3s")
    except UpstreamError as error:
        origins.log.warn(f"{error.summary}: no other releases of k3s are known")
        tags = []
    limit = current or (locked if requested == "stable" else "")
    for version in tags:
        # The tags do not show which minor is stable: none that is newer than the lock's.
        newer_minor = compat.number(version)[:2] > compat.number(limit)[:2] if limit else False
        is_older = not current or upstream.older(version, current)
        if upstream.fits(version, requested) and is_older and not newer_minor:
            yield version
    if locked and upstream.fits(locked, requested):
        yield locked


def _kubectl(origins: Origins, requested: str, k3s: str) -> Iterator[str]:
    major, minor, _ = compat.number(k3s)
    line = f"{major}.{minor}" if requested == "k3s" else requested.removeprefix("v")
    text = origins.text("kubernetes", f"release/stable-{line}.txt", f"kubectl's channel {line}")
    return upstream.patches(upstream.kubectl_channel(text, line))
