from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import LockStale, VerificationFailed
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant
from pipeline.inputs import lock, versions
from pipeline.inputs.evidence import Evidence, Grade
from pipeline.inputs.lock import Artifact, Base, Lock
from pipeline.inputs.versions import Intent
from tests.helpers.examples import AIRGAP_LOCK, INTENT, LOCK, VERSIONS

ROOT = Path(__file__).resolve().parents[2]
OURS = replace(LOCK, intent=INTENT.checksum)


def test_the_committed_lock_fits_the_committed_intent_and_is_canonical() -> None:
    intent = versions.read(ROOT / "versions.yaml")
    path = ROOT / "versions.lock.yaml"
    read = lock.read(path, intent)
    assert lock.render(read) == path.read_text(encoding="utf-8")
    assert {file.component for file in read.packages} >= set(intent.packages)
    for platform in intent.platforms:
        assert read.busybox(platform) != read.kernel(platform) != read.kernel(platform, cgroup_v1=True)


texts = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f\x85\xa0"), min_size=1)
digests = st.binary(min_size=1, max_size=8).map(Digest.of)


days = st.none() | st.dates().map(str)
reasons = st.lists(st.builds(Evidence, grade=st.sampled_from(Grade), source=texts, observed=days), max_size=3).map(
    tuple
)
etags = st.none() | st.text("abc\"0'-:", min_size=1)


@given(texts, digests, reasons, etags, st.none() | st.integers(0, 1 << 40), st.sampled_from(Platform))
def test_rendering_and_parsing_are_inverse(
    text: str, digest: Digest, evidence: tuple[Evidence, ...], etag: str | None, size: int | None, platform: Platform
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
            etag=etag,
            evidence=evidence,
        )
        for name in sorted(VERSIONS)
    )
    base = Base(image=text, digest=digest, evidence=evidence)
    made = Lock(
        intent=digest,
        date="2026-11-22",
        base=base,
        versions=dict(sorted(VERSIONS.items())),
        artifacts=files,
        packages=(),
        guest=tuple(replace(file, component="busybox-static") for file in files[:1]),
    )
    assert lock.parse(lock.render(made), "x") == made


def test_a_url_with_credentials_is_refused() -> None:
    text = lock.render(OURS)
    with pytest.raises(LockStale, match="credentials"):
        lock.parse(text.replace("https://docker.example/k3s", "https://me:secret@docker.example/k3s"), "x")


def test_other_evidence_changes_the_lock_but_not_the_image() -> None:
    better = (Evidence(grade=Grade.SIGNED, source="signed"),)
    changed = replace(
        OURS,
        artifacts=tuple(replace(file, evidence=better, etag='"1"') for file in OURS.artifacts),
        packages=tuple(replace(file, evidence=better) for file in OURS.packages),
        base=replace(OURS.base, evidence=better),
    )
    assert changed.digest == OURS.digest
    assert lock.render(changed) != lock.render(OURS)


def test_grades_below_the_policy_are_listed_with_component_and_grades() -> None:
    policy = {"default": Grade.PUBLISHED, "docker": Grade.CORROBORATED, "packages": Grade.SIGNED}
    first_use = (Evidence(grade=Grade.FIRST_USE, source="https://download.docker.com/x"),)
    weak = replace(
        OURS,
        artifacts=tuple(
            replace(file, evidence=first_use) if (file.component, file.platform) == ("docker", "linux/arm64") else file
            for file in OURS.artifacts
        ),
    )
    OURS.require({})
    OURS.require({"default": Grade.PUBLISHED})
    assert weak.weak(policy) == [
        "docker 29.7.2 for linux/arm64 is first use, and the policy asks for corroborated or better",
        "package iptables 1.0-1 for linux/amd64 is published, and the policy asks for signed or better",
        "package iptables 1.0-1 for linux/arm64 is published, and the policy asks for signed or better",
    ]
    with pytest.raises(VerificationFailed, match=r"docker 29\.7\.2 for linux/arm64 is first use") as refused:
        weak.require(policy)
    assert refused.value.exit_code == 10
    assert "base image" in OURS.weak({"base": Grade.SIGNED})[0]


def test_a_lock_without_a_guest_is_refused_and_one_with_an_empty_guest_is_read() -> None:
    text = lock.render(replace(OURS, guest=()))
    assert text.endswith("\nguest: {}\n")
    assert lock.parse(text, "x").guest == ()
    with pytest.raises(LockStale, match=r"(?s)'guest'.*nox -s resolve"):
        lock.parse(text.removesuffix("guest: {}\n"), "x")


def test_the_digest_covers_the_files_of_the_image() -> None:
    assert OURS.digest == replace(OURS, guest=()).digest
    assert OURS.digest != replace(OURS, date="2026-11-23").digest
    assert OURS.digest != replace(OURS, packages=()).digest
    assert not any(file in OURS.files(platform) for platform in Platform for file in OURS.guest)


@pytest.mark.parametrize("platform", Platform)
def test_the_newest_kernel_is_the_default_and_cgroup_v1_gets_the_one_that_has_it(platform: Platform) -> None:
    newest, older = f"-cloud-{platform.architecture}", f"-50-cloud-{platform.architecture}"
    assert OURS.kernel(platform).component == f"linux-image-6.12.118+deb13{newest}"
    assert OURS.kernel(platform, cgroup_v1=True).component == f"linux-image-6.1.0{older}"
    assert OURS.busybox(platform).platform == platform


@pytest.mark.parametrize(
    ("versions", "newest", "with_cgroup_v1"),
    [
        (["6.1.99-1", "6.1.176-1", "6.12.9-1", "6.12.118-1"], "6.12.118-1", "6.1.176-1"),
        (["6.1.176-1"], "6.1.176-1", "6.1.176-1"),
        (["6.1.176-2", "6.1.176-10"], "6.1.176-10", "6.1.176-10"),
        (["7.0.1-1", "6.11.1-1", "6.10.11-1"], "7.0.1-1", "6.10.11-1"),
    ],
)
def test_kernels_are_compared_by_their_versions(versions: list[str], newest: str, with_cgroup_v1: str) -> None:
    kernels = tuple(
        replace(OURS.kernel(Platform.AMD64), component=f"linux-image-{version}", version=version)
        for version in versions
    )
    made = replace(OURS, guest=kernels)
    assert made.kernel(Platform.AMD64).version == newest
    assert made.kernel(Platform.AMD64, cgroup_v1=True).version == with_cgroup_v1


def test_an_incomplete_guest_is_reported_with_the_command_that_renews_the_lock() -> None:
    new = replace(OURS, guest=(OURS.kernel(Platform.AMD64),))
    with pytest.raises(LockStale, match="kernel for linux/arm64"):
        new.kernel(Platform.ARM64)
    with pytest.raises(LockStale, match=r"kernel below 6\.11 \(cgroup v1\) for linux/amd64"):
        new.kernel(Platform.AMD64, cgroup_v1=True)
    with pytest.raises(LockStale, match="busybox-static for linux/amd64") as refused:
        new.busybox(Platform.AMD64)
    assert refused.value.next_step == lock.RENEW


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
def test_an_invalid_lock_is_refused(text: str) -> None:
    with pytest.raises(LockStale):
        lock.parse(text, "x")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("source: a test", "source: [a, test]"),
        ("grade: published", "grade: trusted"),
        ("observed: '2026-11-22'", "observed: {}"),
        ("origin: docker", "origin: [docker]"),
        ("url: https", "url: {https: 1}\n        x: https"),
        ("runc: 1.3.3", "runc: [1.3.3]"),
        ("docker:\n    runc: 1.3.3", "docker: 1.3.3"),
    ],
)
def test_an_invalid_entry_is_refused(before: str, after: str) -> None:
    text = lock.render(replace(OURS, embedded={"docker": {"runc": "1.3.3"}}))
    assert before in text
    with pytest.raises(LockStale):
        lock.parse(text.replace(before, after, 1), "x")


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_not_yaml_is_refused(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "versions.lock.yaml"
    path.write_bytes(raw)
    with pytest.raises(LockStale):
        lock.read(path, INTENT)


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


# The variant airgap


ASKED = replace(INTENT, variants=(Variant.AIRGAP,))
WITH = replace(AIRGAP_LOCK, intent=INTENT.checksum)


def _read(made: Lock, folder: Path, intent: Intent = ASKED) -> Lock:
    path = folder / "versions.lock.yaml"
    lock.write(path, made)
    return lock.read(path, intent)


def test_system_images_are_read_if_the_variant_is_requested(tmp_path: Path) -> None:
    read = _read(WITH, tmp_path)
    assert set(read.airgap) == set(WITH.airgap)
    assert read.variants == (Variant.IMAGE, Variant.AIRGAP)
    assert {*read.airgap} < {*read.all_files}
    assert not {*read.airgap} & {file for platform in Platform for file in read.files(platform)}


def test_system_images_are_ignored_if_the_variant_is_not_requested(tmp_path: Path) -> None:
    read = _read(WITH, tmp_path, INTENT)
    assert read.airgap == ()
    assert read.digest == OURS.digest
    assert read.digest != WITH.digest


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(OURS, id="a lock from before"),
        pytest.param(replace(WITH, airgap=WITH.airgap[:1]), id="one platform"),
        pytest.param(replace(WITH, airgap=tuple(replace(a, version="v1.36.0+k3s1") for a in WITH.airgap)), id="older"),
    ],
)
def test_a_lock_with_incomplete_system_images_has_no_variant(made: Lock, tmp_path: Path) -> None:
    assert _read(made, tmp_path).variants == (Variant.IMAGE,)


def test_system_images_have_the_policy_of_k3s() -> None:
    weak = replace(WITH, airgap=tuple(replace(a, evidence=()) for a in WITH.airgap))
    assert WITH.weak({"default": Grade.PUBLISHED}) == []
    (first, *_) = weak.weak({"k3s": Grade.PUBLISHED})
    assert first.startswith("k3s-airgap-images v1.37.1+k3s1 for linux/amd64 is first use, and the policy asks for")
