"""Stage `tag`: give the pushed and signed digest its tags. The same input twice does nothing.

Tags of an image that bundles versions:

    k3s-v1.37.1-k3s1-docker-29.7.2-r1   fixed: never moves; rN counts other changes than k3s and docker
    v1.37-docker29, v1.37, latest       moving: to each new release, never back to an older one

A variant has the same tags with its name as suffix, `latest-airgap`, and the number of the image that it extends.
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
    """Return the fixed tag without its number; characters that a tag cannot have (`+`) become `-`."""
    return re.sub(r"[^\w.-]", "-", f"k3s-{lock.versions['k3s']}-docker-{lock.versions['docker']}-r", flags=re.ASCII)


def moving(lock: Lock) -> tuple[str, ...]:
    """Return the moving tags, the most specific first."""
    return moving_tags(lock.versions)


def moving_tags(versions: Mapping[str, str]) -> tuple[str, ...]:
    """Return the moving tags of these versions of k3s and docker."""
    major, minor, _ = number(versions["k3s"])
    line = f"v{major}.{minor}"
    return (f"{line}-docker{number(versions['docker'])[0]}", line, "latest")


def left(publication: Publication) -> list[str]:
    """Return a line for each tag to create or move; empty if there is none. Raises RegistryError."""
    actions = []
    wanted = tags(publication)
    for registry in publication.registries:
        for tag in wanted:
            before = registry.manifest(tag)
            if before is None:
                actions.append(f"{registry.name}:{tag}: create it")
            elif before.digest != publication.image.digest and not _newer(before, publication.lock.versions):
                actions.append(f"{registry.name}:{tag}: move it from {before.digest}")
    return actions


def run(publication: Publication) -> Release:
    """Tag the pushed and signed digest in every repository; record each tag in dist/release.json.

    Raises IntentError for a digest that is not recorded as signed everywhere, LockStale for one of another lock,
    BuildFailed for a variant of another image, DigestMismatch if the built index changed, RegistryError if another
    image has the fixed tag.
    """
    publication.require_origin()
    release, digest, log = publication.release, publication.image.digest, publication.log
    release.require("signed", publication.intent.names)
    index = publication.layout.index.path.read_bytes()
    wanted = tags(publication)
    for registry in publication.registries:
        for tag in wanted:
            reference, before = f"{registry.name}:{tag}", registry.manifest(tag)
            if before is not None and before.digest == digest:
                log.say(f"{reference}: nothing to do")
            elif before is not None and tag == wanted[0]:
                raise _clash(reference, digest, before.digest)
            elif before is not None and (newer := _newer(before, publication.lock.versions)):
                log.say(f"{reference} stays: it is {newer}")
                continue
            else:
                registry.tag(tag, index, INDEX)
                log.say(reference + (f" (was {before.digest.short}…)" if before else ""))
            release = publication.record(release.having(tagged=reference))
    return release


def tags(publication: Publication) -> tuple[str, ...]:
    """Return the tags of an image, the fixed one first. Raises RegistryError if another image has that one."""
    image, lock = publication.image, publication.lock
    fixed = _fixed_tag(fixed_prefix(lock), (publication.base or image).digest, publication.registries)
    return tuple(f"{tag}{image.variant.suffix}" for tag in (fixed, *moving(lock)))


def _fixed_tag(prefix: str, digest: Digest, registries: Sequence[Registry]) -> str:
    """Return the fixed tag, with the number that this digest has already, else the next one free in every repository.

    So an image has the same tag everywhere. Raises RegistryError if a repository has another image under that tag.
    """
    taken: dict[int, list[tuple[Registry, Digest]]] = {}
    for registry in registries:
        for tag in registry.tags():
            if match := re.fullmatch(re.escape(prefix) + r"([1-9]\d*)", tag):
                manifest = registry.manifest(tag)
                if manifest is not None:
                    taken.setdefault(int(match[1]), []).append((registry, manifest.digest))
    numbers = [count for count, holders in taken.items() if any(held == digest for _, held in holders)]
    count = max(numbers, default=max(taken, default=0) + 1)
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


def _newer(existing: Manifest, versions: Mapping[str, str]) -> str:
    """Return a description of the existing image if its versions are newer than these; else an empty string."""
    try:
        stated = versions_of(existing.annotations)
        if stated and age(stated) > age(versions):
            return f"newer, k3s {stated['k3s']} with docker {stated['docker']}"
    except ValueError:
        pass  # not one of our images: the tag can be moved
    return ""


def age(versions: Mapping[str, str]) -> tuple[Version, int, Version]:
    """Return a sort key of releases: k3s, its revision (`+k3s2`), docker."""
    revision = re.search(r"\+k3s(\d+)", versions["k3s"])
    return number(versions["k3s"]), int(revision[1]) if revision else 0, number(versions["docker"])
