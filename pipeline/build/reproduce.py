"""Stage `reproduce`: build a published image again, from its lock alone, and compare both.

Each platform's manifest must be equal, and with it every byte of config and layers. The index is not: its provenance
attestations have times and ids of one build.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from pipeline.core.annotations import KEY
from pipeline.core.errors import LockStale, PipelineError, RegistryError, VerificationFailed
from pipeline.core.log import Log
from pipeline.core.records import LAYOUT, Image
from pipeline.inputs.lock import Lock, parse
from pipeline.oci.index import Document, by_platform
from pipeline.oci.registry import Manifest, Registry

_LOCK = "versions.lock.yaml"


def manifest(registry: Registry, reference: str) -> Manifest:
    """Return a published index or manifest. Raises RegistryError when there is none."""
    published = registry.manifest(reference)
    if published is None:
        raise RegistryError(f"{registry.name} has no {reference}", next_step="`nox -s verify` lists the tags")
    return published


def require_same_lock(index: Manifest, lock: Lock, root: Path) -> None:
    """Raise LockStale unless the image was built from this lock; it names a commit with the right one."""
    stated = index.annotations.get(f"{KEY}.lock", "")
    if stated == lock.digest.text:
        return
    commit = _commit_with(stated, root)
    raise LockStale(
        "the image was built from another lock",
        expected=stated or "an index with the digest of its lock",
        found=lock.digest.text,
        next_step=f"git worktree add ../then {commit}, and reproduce it there"
        if commit
        else "check out the commit that it was released from; no commit of this history has its lock",
    )


def _commit_with(digest: str, root: Path) -> str:
    """Return the newest commit whose lock has that digest; empty without one, or without git."""
    try:
        commits = _git(root, "log", "--format=%H", "--", _LOCK).split()
        for commit in commits:
            try:
                if parse(_git(root, "show", f"{commit}:{_LOCK}"), commit).digest.text == digest:
                    return commit
            except PipelineError:
                continue  # a lock of another format
    except (OSError, subprocess.CalledProcessError):
        pass
    return ""


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True).stdout


def run(index: Manifest, image: Image, dist: Path, registry: Registry, log: Log) -> None:
    """Compare the image that was rebuilt into `dist` with the published index.

    Raises VerificationFailed with the parts that differ; RegistryError.
    """
    published = by_platform(index.document)
    expected, found = sorted(platform.value for platform in image.platforms), sorted(published)
    if expected != found:
        raise VerificationFailed(
            "the published image has other platforms", expected=", ".join(expected), found=", ".join(found)
        )
    differences: list[str] = []
    for platform, built in image.platforms.items():
        digest = published[platform.value]["digest"]
        if digest == built.digest.text:
            log.say(f"{platform}: {built.digest}, the same bytes")
            continue
        log.say(f"{platform}: published {digest}, rebuilt {built.digest}")
        rebuilt = json.loads((dist / LAYOUT / "blobs/sha256" / built.digest.hex).read_bytes())
        differences += [f"{platform}, {text}" for text in _differences(manifest(registry, digest).document, rebuilt)]
    if differences:
        raise VerificationFailed(
            "the rebuilt image is not the published one",
            expected=f"the same manifest on {', '.join(expected)}",
            found="\n    ".join(differences),
            where=str(dist),
            next_step="check out the commit that was released; if this is it, the build is not reproducible: "
            "`nox -s pull` downloads the published layers, and diffoscope compares two of them",
        )


def _differences(published: Document, rebuilt: Document) -> Iterator[str]:
    """Yield the parts of two manifests that differ, in their order."""
    if published.get("annotations") != rebuilt.get("annotations"):
        yield "annotations"
    old, new = ([part["digest"] for part in (side["config"], *side["layers"])] for side in (published, rebuilt))
    for number, (before, after) in enumerate(zip_longest(old, new, fillvalue="none")):
        if before != after:
            yield f"{f'layer {number}' if number else 'config'}: published {before}, rebuilt {after}"
