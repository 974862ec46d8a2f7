"""Which release a channel means today: complete for all platforms, and old enough.

Candidates come newest first. One that lacks a platform's file, or is younger than its cooldown, is passed over with a
sentence; an exact version is nobody's to pass over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import islice, product

from pipeline import components
from pipeline.components import COMPONENTS, is_exact
from pipeline.core.errors import UpstreamError
from pipeline.core.records import Variant
from pipeline.inputs import compat
from pipeline.inputs.lock import Lock
from pipeline.resolve import upstream
from pipeline.resolve.origins import Origins

_TRIES = 30  # candidates that are looked at before a channel is given up


def choose(origins: Origins, previous: Lock | None, now: datetime) -> dict[str, str]:
    """Component → exact version. Raises UpstreamError when a channel has no release that can be taken."""
    intent = origins.intent
    chosen: dict[str, str] = {}
    for component in COMPONENTS:
        asked = intent.components[component]
        if is_exact(component, asked):
            chosen[component] = asked
            continue
        locked = previous.versions.get(component, "") if previous else ""
        if not is_exact(component, locked):
            locked = ""
        match COMPONENTS[component].chosen_by:
            case "docker":
                candidates = _docker(origins, asked)
            case "k3s":
                candidates = _k3s(origins, asked, locked)
            case "kubectl":
                major, minor, _ = compat.number(chosen["k3s"])
                line = f"{major}.{minor}" if asked == "k3s" else asked.removeprefix("v")
                text = origins.text("kubernetes", f"release/stable-{line}.txt", f"kubectl's channel {line}")
                candidates = upstream.patches(upstream.kubectl_channel(text, line))
            case "tags":
                refs = origins.text(
                    "github", upstream.refs_path(component), f"the tags of {COMPONENTS[component].repository}"
                )
                candidates = (one for one in upstream.tagged(refs, component) if upstream.fits(one, asked))
        chosen[component] = _first(origins, component, candidates, locked, now)
    return chosen


def _first(origins: Origins, component: str, candidates: Iterable[str], locked: str, now: datetime) -> str:
    """The first candidate that can be taken."""
    passed: list[str] = []
    for version in islice(dict.fromkeys(candidates), _TRIES):
        reason = _missing(origins, component, version)
        if not reason and version != locked:
            reason = _young(origins, component, version, now)
        if not reason:
            return version
        passed.append(f"{component} {version} is passed over: {reason}")
        origins.log.say(passed[-1])
    asked = origins.intent.components[component]
    raise UpstreamError(
        f"upstream has no {component} {asked} that can be taken",
        expected="a release with the files of all platforms, as old as versions.yaml asks",
        found="; ".join(passed) or "no release of that channel",
        next_step="ask for another version in versions.yaml, or name it in known-fixes (docs/versions.md)",
    )


def _missing(origins: Origins, component: str, version: str) -> str:
    """Which platform a release lacks, as a sentence; empty when it is complete."""
    airgap = Variant.AIRGAP in origins.intent.variants
    for part, platform in product(components.parts(component, airgap=airgap), origins.intent.platforms):
        where = components.published(part, version, platform)
        url = origins.url(where.origin, where.path)
        if origins.head(url, f"{part} {version} for {platform}") is None:
            return f"{part} {version} for {platform} is not there (yet)"
    return ""


def _young(origins: Origins, component: str, version: str, now: datetime) -> str:
    """Why a release is too young, as a sentence; empty when it is old enough or a known fix.

    Its date is that of its youngest file, as the server reports it: git's refs have no dates, the API has a quota.
    """
    days = origins.intent.days(component)
    if not days:
        return ""
    if (fix := origins.intent.fix(component, version)) is not None:
        origins.log.say(f"{component} {version} is taken at any age, it is a known fix: {fix.reason}")
        return ""
    dates = []
    for platform in origins.intent.platforms:
        where = components.published(component, version, platform)
        head = origins.head(origins.url(where.origin, where.path), f"{component} {version} for {platform}")
        if head is None or head.released is None:
            return f"the server does not report how old it is, and its cooldown is {days} days"
        dates.append(head.released)
    if now - max(dates) < timedelta(days=days):
        return f"its files are from {max(dates):%Y-%m-%d}, and its cooldown is {days} days"
    return ""


def _docker(origins: Origins, asked: str) -> Iterator[str]:
    """Docker: what its server lists for every platform and moby/moby has a tag of."""
    say = origins.log.say
    lists = [
        set(upstream.listed_docker(origins.text("docker", upstream.listing_path(one), "docker's list of archives")))
        for one in origins.intent.platforms
    ]
    listed = set.intersection(*lists)
    tagged = set(
        upstream.tagged(origins.text("github", upstream.refs_path("docker"), "the tags of moby/moby"), "docker")
    )
    for version in upstream.ordered(set.union(tagged, *lists)):
        if not upstream.fits(version, asked):
            continue
        if version in listed and version in tagged:
            yield version
        elif version in listed:
            say(f"docker {version} is passed over: its archives are listed, but moby/moby has no such tag")
        elif version in tagged:
            say(f"docker {version} is passed over: moby/moby has the tag, but a platform's archive is not listed")


def _k3s(origins: Origins, asked: str, locked: str) -> Iterator[str]:
    """K3s: what its channel points to, else what its tags say, else what is locked; never the channel's own name.

    The channel server was down, behind, empty or ahead of the files before (k3s-io/k3s issues 2531, 11421, 11974,
    13414, 9392, 11417), so older releases follow the one that it points to.
    """
    pointed = _pointed(origins, asked)
    if pointed:
        if locked and upstream.older(pointed, locked):
            origins.log.warn(f"k3s's channel {asked} went back: the lock has {locked}, it points to {pointed}")
        yield pointed
    try:
        tags = upstream.tagged(origins.text("github", upstream.refs_path("k3s"), "the tags of k3s-io/k3s"), "k3s")
    except UpstreamError as error:
        origins.log.warn(f"{error.summary}: no other release of k3s can be looked for")
        tags = []
    limit = pointed or (locked if asked == "stable" else "")
    for version in tags:
        if not upstream.fits(version, asked):
            continue
        # The tags do not show which minor is stable: no newer one than the lock's.
        newer_line = compat.number(version)[:2] > compat.number(limit)[:2] if limit else False
        if not newer_line and not (pointed and not upstream.older(version, pointed)):
            yield version
    if locked and upstream.fits(locked, asked):
        yield locked


def _pointed(origins: Origins, asked: str) -> str:
    """What the channel server says, by its list of all channels, else by the redirect of the one; empty: neither."""
    try:
        listed = origins.text("k3s-channels", upstream.CHANNELS_PATH, "k3s's channels")
        return upstream.k3s_channel(listed, asked)
    except UpstreamError as error:
        origins.log.warn(f"{error.summary}; asking for the channel {asked} alone")
    try:
        page = origins.page("k3s-channels", upstream.channel_path(asked), f"k3s's channel {asked}")
        return upstream.k3s_page(page, asked)
    except UpstreamError as error:
        origins.log.warn(f"{error.summary}; its tags, then the lock stand in")
    return ""
