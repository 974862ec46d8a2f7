"""Stage `reproduce`: build a published image again, from its lock and nothing else, and compare both.

What must be equal is each platform's manifest, and with it every byte of config and layers. The index is not: its
provenance attestations hold times and ids of one build.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.annotations import KEY, REHEARSAL, variant_of
from pipeline.core.errors import LockStale, PipelineError, RegistryError, VerificationFailed
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import LAYOUT, Image, Variant
from pipeline.inputs.lock import Lock, parse
from pipeline.oci import difference
from pipeline.oci.index import by_platform
from pipeline.oci.registry import Manifest, Registry

_SHOWN = 20  # differences; the rest is counted
_LOCK = "versions.lock.yaml"


def published(registry: Registry, reference: str) -> Manifest:
    """The published index. Raises RegistryError when there is none."""
    index = registry.manifest(reference)
    if index is None:
        raise RegistryError(f"{registry.name} has no {reference}", next_step="which tags there are: nox -s verify")
    return index


def require_same_lock(index: Manifest, lock: Lock, root: Path) -> None:
    """That the image was built from this very lock. Raises LockStale that names a commit which has the right one."""
    stated = index.annotations.get(f"{KEY}.lock", "")
    if stated == lock.digest.text:
        return
    commit = _commit_with(stated, root)
    raise LockStale(
        "that image was built from another lock than the one that lies here",
        expected=stated or "an index that says which lock it was built from",
        found=lock.digest.text,
        next_step=f"git worktree add ../then {commit}, and reproduce it there"
        if commit
        else "check out the commit that it was released from; its lock is in no commit of this history",
    )


def is_rehearsed(index: Manifest) -> bool:
    """Whether it is made of stand-ins, which it says of itself."""
    return REHEARSAL in index.annotations


def variant(index: Manifest) -> Variant:
    """Which of the lock's images it is."""
    return variant_of(index.annotations)


def _commit_with(digest: str, root: Path) -> str:
    """The newest commit whose lock has that digest; empty when there is none, or no git here."""
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
    """Hold the image that was rebuilt into `dist` against the published index.

    Raises VerificationFailed with the layers and paths that differ; RegistryError when it cannot be read.
    """
    theirs = by_platform(index.document)
    expected, found = sorted(platform.value for platform in image.platforms), sorted(theirs)
    if expected != found:
        raise VerificationFailed(
            "the published image has other platforms", expected=", ".join(expected), found=", ".join(found)
        )
    differences: list[str] = []
    for platform, built in image.platforms.items():
        entry = theirs[platform.value]
        if entry["digest"] == built.digest.text:
            log.say(f"{platform}: {built.digest}, the same bytes")
            continue
        log.say(f"{platform}: published {entry['digest']}, rebuilt {built.digest}")
        with _sides(platform, Digest(entry["digest"]), built.digest, dist / LAYOUT, registry) as (old, new):
            differences += [f"{platform} {text}" for text in difference.between(old, new)]
    if differences:
        more = [f"and {len(differences) - _SHOWN} more"] if len(differences) > _SHOWN else []
        raise VerificationFailed(
            "the rebuilt image is not the published one",
            expected=f"the same manifest on {', '.join(expected)}",
            found="\n    ".join([*differences[:_SHOWN], *more]),
            where=str(registry.name),
            next_step="is this checkout the commit that was released? If it is, the build is not reproducible: mend it",
        )


@contextmanager
def _sides(
    platform: Platform, old: Digest, new: Digest, layout: Path, registry: Registry
) -> Iterator[tuple[difference.Side, difference.Side]]:
    """The published image, its blobs downloaded as they are needed, and the rebuilt one."""

    def ours(digest: Digest) -> Path:
        return layout / "blobs" / "sha256" / digest.hex

    theirs = registry.manifest(old.text)
    if theirs is None:
        raise RegistryError(f"{registry.name} lacks the manifest of {platform}", expected=old.text, found="none")
    folder = Path(tempfile.mkdtemp(prefix="dind-k3s-reproduce-"))
    try:
        yield (
            difference.Side(manifest=theirs.document, blob=_downloading(registry, folder)),
            difference.Side(manifest=json.loads(ours(new).read_bytes()), blob=ours),
        )
    finally:
        shutil.rmtree(folder)


def _downloading(registry: Registry, folder: Path) -> Callable[[Digest], Path]:
    def get(digest: Digest) -> Path:
        path = folder / digest.hex
        if not path.exists():
            registry.download(digest, path)
        return path

    return get
