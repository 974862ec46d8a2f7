"""`reproduce`: the same manifests, the parts that differ, the lock of the published image."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from python_on_whales import DockerClient

from pipeline.build import build, reproduce
from pipeline.core import cache, records
from pipeline.core.annotations import KEY
from pipeline.core.errors import LockStale, RegistryError, VerificationFailed
from pipeline.core.log import Log
from pipeline.core.names import INDEX, Digest
from pipeline.core.platforms import Platform
from pipeline.engine.engine import Engine
from pipeline.inputs import lock, versions
from pipeline.oci.registry import Manifest
from tests.helpers.examples import LOCK
from tests.helpers.images import Line, make, running

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist/rehearsal"
LOG = Log(quiet=True)


def index_of(dist: Path, image: records.Image) -> Manifest:
    raw = (dist / "image/blobs/sha256" / image.digest.hex).read_bytes()
    return Manifest(raw=raw, media_type=INDEX, digest=image.digest)


def test_the_rebuilt_image_is_compared_with_the_published_one(tmp_path: Path) -> None:
    with running(tmp_path / "registry") as place:
        line = Line()
        registry = place.registry(place.name("reproduced"), line)
        theirs = make(tmp_path / "theirs", "one")
        registry.push_layout(tmp_path / "theirs/image", theirs.digest, LOG)
        ours = make(tmp_path / "ours", "one")
        reproduce.run(index_of(tmp_path / "theirs", theirs), ours, tmp_path / "ours", registry, LOG)
        arm64 = replace(theirs, platforms={Platform.ARM64: theirs.platforms[Platform.ARM64]})
        with pytest.raises(VerificationFailed, match="other platforms"):
            reproduce.run(index_of(tmp_path / "theirs", theirs), arm64, tmp_path / "theirs", registry, LOG)
        with pytest.raises(RegistryError, match="has no nothing"):
            reproduce.manifest(registry, "nothing")

        def spoil(kind: str, data: dict[str, Any]) -> None:
            if kind == "manifest":
                data["annotations"]["org.opencontainers.image.title"] = "another"

        spoilt = make(tmp_path / "spoilt", "one", change=spoil)
        with pytest.raises(VerificationFailed) as refused:
            reproduce.run(index_of(tmp_path / "theirs", theirs), spoilt, tmp_path / "spoilt", registry, LOG)
        assert "linux/amd64, annotations" in str(refused.value)
        other = make(tmp_path / "other", "two")
        with pytest.raises(VerificationFailed) as refused:
            reproduce.run(index_of(tmp_path / "theirs", theirs), other, tmp_path / "other", registry, LOG)
        for platform, built in other.platforms.items():
            before = theirs.platforms[platform].layers[0]
            assert f"{platform}, layer 1: published {before}, rebuilt {built.layers[0]}" in str(refused.value)


# Its lock


def index_with(**annotations: str) -> Manifest:
    raw = json.dumps({"manifests": [], "annotations": annotations}).encode()
    return Manifest(raw=raw, media_type=INDEX, digest=Digest.of(raw))


def test_another_lock_is_refused_with_the_commit_that_has_the_right_one(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    older = replace(LOCK, date="2026-01-01")
    for one in (older, LOCK):
        (tmp_path / "versions.lock.yaml").write_text(lock.render(one))
        git("add", ".")
        git("commit", "--quiet", "-m", "lock")
    reproduce.require_same_lock(index_with(**{f"{KEY}.lock": LOCK.digest.text}), LOCK, tmp_path)
    with pytest.raises(LockStale) as refused:
        reproduce.require_same_lock(index_with(**{f"{KEY}.lock": older.digest.text}), LOCK, tmp_path)
    assert git("rev-parse", "HEAD~1") in str(refused.value)
    with pytest.raises(LockStale, match="no commit of this history"):
        reproduce.require_same_lock(index_with(), LOCK, tmp_path)


# For real


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_cold_build_on_another_engine_gives_the_same_manifests(engine: DockerClient, tmp_path: Path) -> None:
    if not (DIST / records.IMAGE).exists():
        pytest.skip("there is no image to build again: nox -s rehearse makes one in dist/rehearsal/")
    published = records.Image.read(DIST)
    intent = versions.read(DIST / "versions.yaml")
    locked = lock.read(DIST / "versions.lock.yaml", intent)
    job = build.Job(intent=intent, lock=locked, root=ROOT, dist=DIST, cache=cache.folder(), rehearsed=True)
    text, _ = build.plan(job)
    if build.inputs_of(ROOT, text) != published.inputs:
        pytest.skip("rootfs/ or Dockerfile have changed since the rehearsal: nox -s rehearse")
    own = Engine(docker=engine, builder="default", description="the tests' own", platform=Platform.host())
    again = build.run(replace(job, dist=tmp_path), lambda: own, LOG, cold=True)
    for variant, image in again.items():
        published = records.Image.read(variant.below(DIST))
        assert {platform: built.digest for platform, built in image.platforms.items()} == {
            platform: built.digest for platform, built in published.platforms.items()
        }
