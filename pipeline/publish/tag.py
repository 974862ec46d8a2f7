"""Stage `tag`: give the pushed and signed digest its tags. The same input twice does nothing.

Tags of an image that bundles versions:

    k3s-v1.37.1-k3s1-docker-29.7.2-r1   never moves; rN counts other changes than k3s and docker
    v1.37-docker29, v1.37, latest       move to each new release, never back to an older one

A variant has the same tags with its name behind, `latest-airgap`, and the number of the image that it is made on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pipeline.core.annotations import versions_of
from pipeline.core.errors import RegistryError
from pipeline.core.names import INDEX, Digest
from pipeline.core.records import Release
from pipeline.inputs.compat import Version, number
from pipeline.inputs.lock import Lock
from pipeline.oci.registry import Manifest, Registry
from pipeline.publish.publication import Publication


def fixed_prefix(lock: Lock) -> str:
    """The tag that never moves, without its number; what a tag may not hold (`+`) becomes `-`."""
    return re.sub(r"[^\w.-]", "-", f"k3s-{lock.versions['k3s']}-docker-{lock.versions['docker']}-r", flags=re.ASCII)


def moving(lock: Lock) -> tuple[str, ...]:
    """The tags that move to each new release, the most specific first."""
    return moving_tags(lock.versions)


def moving_tags(versions: Mapping[str, str]) -> tuple[str, ...]:
    """The same, of any image's versions."""
    major, minor, _ = number(versions["k3s"])
    line = f"v{major}.{minor}"
    return (f"{line}-docker{number(versions['docker'])[0]}", line, "latest")


def left(publication: Publication) -> list[str]:
    """What tagging would do, a line for each tag that it would make or move; empty when there is nothing.

    Raises RegistryError.
    """
    actions = []
    wanted = tags(publication)
    for registry in publication.registries:
        for tag in wanted:
            before = registry.manifest(tag)
            if before is None:
                actions.append(f"{registry.name}:{tag}: make it")
            elif before.digest != publication.image.digest and not _newer(before, publication.lock.versions):
                actions.append(f"{registry.name}:{tag}: move it from {before.digest}")
    return actions


def run(publication: Publication) -> Release:
    """Give the pushed and signed digest its tags in every repository; recorded in dist/release.json as it goes.

    Raises IntentError for a digest that is not recorded as signed everywhere, LockStale for one that was built from
    another lock, BuildFailed for a variant of another image, DigestMismatch when the built index changed, RegistryError
    for a tag that never moves and is another image's.
    """
    publication.require_origin()
    release = publication.release
    release.require("signed", publication.intent.names)
    index = publication.layout.index.path.read_bytes()
    fixed, *others = tags(publication)
    for registry in publication.registries:
        for tag in (fixed, *others):
            if _tag(registry, tag, index, publication, may_move=tag != fixed):
                release = publication.record(release.having(tagged=f"{registry.name}:{tag}"))
    return release


def tags(publication: Publication) -> tuple[str, ...]:
    """The tags of an image, the one that never moves first. Raises RegistryError when that is another image's."""
    image, lock = publication.image, publication.lock
    fixed = _fixed_tag(fixed_prefix(lock), (publication.base or image).digest, publication.registries)
    return tuple(f"{tag}{image.variant.suffix}" for tag in (fixed, *moving(lock)))


def _tag(registry: Registry, tag: str, index: bytes, publication: Publication, *, may_move: bool) -> bool:
    """Point a tag at the index; False when it stays at a newer release."""
    log = publication.log
    reference, digest = f"{registry.name}:{tag}", Digest.of(index)
    before = registry.manifest(tag)
    if before is not None and before.digest == digest:
        log.say(f"{reference}: nothing to do")
        return True
    if before is not None and not may_move:
        raise _clash(reference, digest, before.digest)
    if before is not None and (newer := _newer(before, publication.lock.versions)):
        log.say(f"{reference} stays: it is {newer}")
        return False
    registry.tag(tag, index, INDEX)
    log.say(reference + (f" (was {before.digest.short}…)" if before else ""))
    return True


def _fixed_tag(prefix: str, digest: Digest, registries: Sequence[Registry]) -> str:
    """The tag that never moves: the number that this digest has already, else the next one free in every repository.

    So one image has one name everywhere. Raises RegistryError when a repository has another image under that name.
    """
    taken: dict[int, list[tuple[Registry, Digest]]] = {}
    for registry in registries:
        for tag in registry.tags():
            if found := re.fullmatch(re.escape(prefix) + r"([1-9]\d*)", tag):
                known = registry.manifest(tag)
                if known is not None:
                    taken.setdefault(int(found[1]), []).append((registry, known.digest))
    ours = [count for count, holders in taken.items() if any(held == digest for _, held in holders)]
    count = max(ours, default=max(taken, default=0) + 1)
    for registry, held in taken.get(count, ()):
        if held != digest:
            raise _clash(f"{registry.name}:{prefix}{count}", digest, held)
    return f"{prefix}{count}"


def _clash(reference: str, digest: Digest, held: Digest) -> RegistryError:
    return RegistryError(
        "a tag that never moves is another image's already",
        expected=f"no such tag, or {digest}",
        found=held.text,
        where=reference,
        next_step='find out who tagged it; nothing is overwritten (docs/publish.md, "A tag is taken")',
    )


def _newer(there: Manifest, versions: Mapping[str, str]) -> str:
    """What the image there is made of, when that is newer than these versions; else nothing."""
    try:
        stated = versions_of(there.annotations)
        if stated and age(stated) > age(versions):
            return f"newer, k3s {stated['k3s']} with docker {stated['docker']}"
    except ValueError:
        pass  # not one of our images: the tag is ours to move
    return ""


def age(versions: Mapping[str, str]) -> tuple[Version, int, Version]:
    """Orders releases: k3s, its revision (`+k3s2`), docker."""
    revision = re.search(r"\+k3s(\d+)", versions["k3s"])
    return number(versions["k3s"]), int(revision[1]) if revision else 0, number(versions["docker"])
