"""Stage `publish`: push the smoked digest, untagged, then give it its tags. The same input twice does nothing.

Tags of an image that bundles versions:

    k3s-v1.37.1-k3s1-docker-29.7.2-r1   never moves; rN counts what changed besides k3s and docker
    v1.37-docker29, v1.37, latest       move to each new release
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline import layout
from pipeline.compat import number
from pipeline.errors import RegistryError
from pipeline.lock import Lock
from pipeline.log import Log, size
from pipeline.oci import INDEX, Digest, ImageName
from pipeline.registry import Registry
from pipeline.release import LAYOUT, Image, Release, SmokeReport, require_smoked
from pipeline.versions import Intent


def fixed_prefix(lock: Lock) -> str:
    """The tag that never moves, without its number; `+` is not allowed in a tag and becomes `-`."""
    return f"k3s-{lock.versions['k3s'].replace('+', '-')}-docker-{lock.versions['docker']}-r"


def moving(lock: Lock) -> tuple[str, ...]:
    """The tags that move to each new release, the most specific first."""
    major, minor, _ = number(lock.versions["k3s"])
    line = f"v{major}.{minor}"
    return (f"{line}-docker{number(lock.versions['docker'])[0]}", line, "latest")


def run(
    intent: Intent,
    lock: Lock,
    image: Image,
    reports: Sequence[SmokeReport],
    dist: Path,
    registry_for: Callable[[ImageName], Registry],
    log: Log,
    *,
    dry_run: bool = False,
) -> Release:
    """Publish under every name of the intent and record it in dist/release.json as it goes.

    Raises SmokeFailed for a digest that was not smoked, RegistryError, DigestMismatch when the built bytes changed.
    """
    require_smoked(image, reports)
    for name in intent.names:
        if image.rehearsed and not name.is_loopback:
            raise RegistryError(
                "a rehearsed image is made of stand-ins and leaves this machine nowhere",
                expected="a registry on 127.0.0.1 or localhost",
                found=str(name),
                next_step="build the real one: nox -s build, smoke, publish",
            )
    built = layout.read(dist / LAYOUT, image.digest)
    built.verify()
    release = Release.read(dist, image.digest)
    for name in intent.names:
        registry = registry_for(name)
        tags = _tags(lock, image.digest, registry)
        if dry_run:
            log.say(f"would push {image.digest} to {name} and tag it {', '.join(tags)}")
            continue
        pushed = registry.push_layout(dist / LAYOUT, image.digest, log)
        if pushed.sent:
            kept = f", {size(pushed.bytes_skipped)} were there" if pushed.skipped else ""
            log.say(f"{name}@{image.digest}: {size(pushed.bytes_sent)} pushed{kept}")
        else:
            log.say(f"{name}@{image.digest}: nothing to push, all of it is there")
        release = replace(release, pushed=_with(release.pushed, str(name)))
        release.write(dist)
        for tag in tags:
            before = registry.manifest(tag)
            if before is not None and before.digest == image.digest:
                log.say(f"{name}:{tag}: nothing to do")
            else:
                registry.tag(tag, built.index.path.read_bytes(), INDEX)
                log.say(f"{name}:{tag}" + (f" (was {before.digest.short}…)" if before else ""))
            release = replace(release, tagged=_with(release.tagged, f"{name}:{tag}"))
            release.write(dist)
    return release


def _tags(lock: Lock, digest: Digest, registry: Registry) -> tuple[str, ...]:
    """The tags for this digest in one repository; the number that it has there, else the next free one.

    A tag that never moves is never given to a second digest.
    """
    prefix = fixed_prefix(lock)
    taken = {
        int(found[1]): tag for tag in registry.tags() if (found := re.fullmatch(re.escape(prefix) + r"(\d+)", tag))
    }
    for count, tag in sorted(taken.items(), reverse=True):
        known = registry.manifest(tag)
        if known is not None and known.digest == digest:
            return (f"{prefix}{count}", *moving(lock))
    return (f"{prefix}{max(taken, default=0) + 1}", *moving(lock))


def _with(done: tuple[str, ...], entry: str) -> tuple[str, ...]:
    return done if entry in done else (*done, entry)
