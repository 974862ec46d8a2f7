from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import lock, versions
from pipeline.errors import LockStale
from pipeline.lock import Artifact, Base, Evidence, Lock
from pipeline.oci import Digest
from pipeline.platforms import Platform
from tests.examples import INTENT, LOCK, VERSIONS

ROOT = Path(__file__).resolve().parent.parent
OURS = replace(LOCK, intent=INTENT.checksum)


def test_the_committed_lock_fits_the_committed_intent_and_is_canonical() -> None:
    intent = versions.read(ROOT / "versions.yaml")
    path = ROOT / "versions.lock.yaml"
    read = lock.read(path, intent)
    assert lock.render(read) == path.read_text(encoding="utf-8")
    assert {file.component for file in read.packages} >= set(intent.packages)


texts = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f\x85\xa0"), min_size=1)
digests = st.binary(min_size=1, max_size=8).map(Digest.of)


@given(texts, digests, st.sampled_from(Evidence), st.none() | st.integers(0, 1 << 40), st.sampled_from(Platform))
def test_what_is_rendered_is_read_back(
    text: str, digest: Digest, evidence: Evidence, size: int | None, platform: Platform
) -> None:
    files = tuple(
        Artifact(
            component=name,
            version=VERSIONS[name],
            platform=platform,
            origin="docker",
            path=f"{name}%2B1",
            url="https://x/y",
            digest=digest,
            size=size,
            evidence=evidence,
            source=text,
        )
        for name in sorted(VERSIONS)
    )
    base = Base(image="debian:x", digest=digest, evidence=evidence, source=text)
    made = Lock(
        intent=digest,
        date="2026-11-22",
        base=base,
        versions=dict(sorted(VERSIONS.items())),
        artifacts=files,
        packages=(),
    )
    assert lock.parse(lock.render(made), "x") == made


def test_a_stale_lock_is_refused_with_the_command_that_renews_it(tmp_path: Path) -> None:
    path = tmp_path / "versions.lock.yaml"
    lock.write(path, OURS)
    assert lock.read(path, INTENT).intent == INTENT.checksum
    with pytest.raises(LockStale, match="nox -s resolve") as refused:
        lock.read(path, replace(INTENT, base="docker.io/library/debian:sid"))
    assert refused.value.exit_code == 5


def test_a_lock_that_lacks_a_platform_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "versions.lock.yaml"
    lock.write(path, replace(OURS, artifacts=tuple(file for file in OURS.artifacts if file.platform == "linux/amd64")))
    with pytest.raises(LockStale, match="k3s for linux/arm64"):
        lock.read(path, INTENT)


@pytest.mark.parametrize("text", ["", "a: 1", "intent: x", "- a", "intent: [", "intent: sha256:" + "0" * 63])
def test_what_is_no_lock_is_refused(text: str) -> None:
    with pytest.raises(LockStale):
        lock.parse(text, "x")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "versions.lock.yaml"
    lock.write(path, OURS)
    before = path.read_text(encoding="utf-8")

    def killed(_self: Path, _target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        lock.write(path, replace(OURS, date="2027-01-01"))
    assert path.read_text(encoding="utf-8") == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
