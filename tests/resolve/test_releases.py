"""Releases of channels, with an upstream that is late, down, or contradicts itself."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from pipeline.core.errors import DigestMismatch, UpstreamError
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant
from pipeline.inputs import changes, lock
from pipeline.inputs.evidence import Grade
from pipeline.inputs.versions import UPSTREAM, KnownFix
from tests.helpers import vendors as fake
from tests.helpers.vendors import CHANNELS, Vendors, times

COLLECTION = f"{UPSTREAM['k3s-channels']}/v1-release/channels"
TAGS = f"{UPSTREAM['github']}/k3s-io/k3s.git/info/refs?service=git-upload-pack"


def asks(vendors: Vendors, **components: str) -> None:
    vendors.intent = replace(vendors.intent, components={**CHANNELS, **components})


@pytest.mark.parametrize(
    ("component", "asked", "version"),
    [
        ("docker", "stable", "29.7.2"),
        ("docker", "latest", "29.7.2"),
        ("docker", "29", "29.7.2"),
        ("docker", "28.5", "28.5.2"),
        ("docker", "28.5.2", "28.5.2"),
        ("buildx", "latest", "0.36.1"),
        ("buildx", "0", "0.36.1"),
        ("compose", "5.3", "5.3.1"),
        ("k3s", "stable", "v1.37.1+k3s1"),
        ("k3s", "latest", "v1.37.1+k3s1"),
        ("k3s", "v1.36", "v1.36.5+k3s1"),
        ("k3s", "v1.37.0+k3s1", "v1.37.0+k3s1"),
        ("kubectl", "k3s", "v1.37.1"),
        ("kubectl", "v1.36", "v1.36.5"),
        ("kubectl", "v1.37.0", "v1.37.0"),
    ],
)
def test_every_kind_of_channel(vendors: Vendors, component: str, asked: str, version: str) -> None:
    asks(vendors, **{component: asked})
    assert vendors.resolve().versions[component] == version


def test_kubectl_follows_the_minor_of_k3s(vendors: Vendors) -> None:
    asks(vendors, k3s="v1.36")
    assert vendors.resolve().versions["kubectl"] == "v1.36.5"


def test_no_version_depends_on_the_api_with_a_quota(vendors: Vendors) -> None:
    expected = vendors.resolve().versions
    api = [url for request in vendors.asked if (url := str(request.url)).startswith("https://api.github.com/")]
    assert sorted(url.partition("/repos/")[2] for url in api) == [
        "docker/buildx/releases/tags/v0.36.1",
        "docker/compose/releases/tags/v5.4.0",
        "k3s-io/k3s/releases/tags/v1.37.1%2Bk3s1",
    ]
    for url in api:
        vendors.gives(url, "", status=403, headers={"X-RateLimit-Remaining": "0"})
    assert vendors.resolve().versions == expected


# Docker: the listing and the tags must agree.


def test_an_archive_without_a_tag_is_skipped(vendors: Vendors, capsys: pytest.CaptureFixture[str]) -> None:
    vendors.release("docker", "29.8.0")
    vendors.listing("29.8.0", "29.7.2", "28.5.2")
    assert vendors.resolve().versions["docker"] == "29.7.2"
    assert "skipped docker 29.8.0: moby/moby has no such tag" in capsys.readouterr().err


def test_a_tag_without_an_archive_is_skipped(vendors: Vendors, capsys: pytest.CaptureFixture[str]) -> None:
    vendors.refs("docker", "docker-v29.8.0", "docker-v29.7.2")
    vendors.listing("29.8.0", "29.7.2", platforms=[Platform.AMD64])
    assert vendors.resolve().versions["docker"] == "29.7.2"
    assert "skipped docker 29.8.0: a platform's archive is not listed" in capsys.readouterr().err


def test_docker_releases_are_sorted_as_numbers(vendors: Vendors) -> None:
    vendors.release("docker", "29.10.0")
    vendors.listing("29.7.2", "29.10.0")
    vendors.refs("docker", "docker-v29.10.0", "docker-v29.7.2")
    assert vendors.resolve().versions["docker"] == "29.10.0"


# buildx and compose: downwards until the files of all platforms exist.


@pytest.mark.parametrize(
    ("component", "newer", "expected"),
    [("buildx", ("0.38.0", "0.37.0"), "0.36.1"), ("compose", ("5.6.0", "5.5.0"), "5.4.0")],
)
def test_a_release_that_lacks_a_platform_is_skipped(
    vendors: Vendors, component: str, newer: tuple[str, str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vendors.refs(component, *(f"v{one}" for one in (*newer, expected)))
    vendors.release(component, newer[1], platforms=[Platform.AMD64])
    assert vendors.resolve().versions[component] == expected
    log = capsys.readouterr().err
    assert f"skipped {component} {newer[0]}: {component} {newer[0]} for linux/amd64 does not exist (yet)" in log
    assert f"skipped {component} {newer[1]}: {component} {newer[1]} for linux/arm64 does not exist (yet)" in log


def test_an_exact_version_is_never_skipped(vendors: Vendors) -> None:
    asks(vendors, buildx="0.99.0")
    with pytest.raises(UpstreamError, match=r"buildx 0\.99\.0 for linux/amd64 does not exist"):
        vendors.resolve()


@pytest.mark.parametrize("status", [403, 410, 500, 503])
@pytest.mark.parametrize("component", ["docker", "buildx", "k3s", "kubectl"])
def test_any_other_status_stops_the_run(vendors: Vendors, status: int, component: str) -> None:
    version = vendors.resolve().versions[component]
    vendors.gives(vendors.url(component, version, Platform.ARM64), "", status=status)
    with pytest.raises(UpstreamError, match="unexpected answer") as refused:
        vendors.resolve()
    assert refused.value.found == f"status {status}"


def test_a_channel_without_a_release(vendors: Vendors) -> None:
    asks(vendors, compose="6")
    with pytest.raises(UpstreamError, match="no suitable compose 6"):
        vendors.resolve()


# k3s: the channel server, then the tags, then the lock.


@pytest.mark.parametrize("broken", ["down", "missing", "the literal word", "a candidate", "html"])
def test_k3s_without_its_channels_uses_the_tags(
    vendors: Vendors, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    match broken:
        case "down":
            vendors.answers[COLLECTION] = httpx.ConnectError("refused")
        case "missing":
            del vendors.answers[COLLECTION]
        case "the literal word":
            vendors.channels(stable="stable")
        case "a candidate":
            vendors.channels(stable="v1.38.0-rc1+k3s1")
        case "html":
            vendors.gives(COLLECTION, "<html>")
    vendors.recorded(TAGS, "k3s-refs.txt")
    vendors.release("k3s", "v1.37.1+k3s2")
    vendors.release("k3s", "v1.38.0+k3s1")
    locked = vendors.resolve(intent=replace(vendors.intent, components={**CHANNELS, "k3s": "v1.37.0+k3s1"}))
    assert vendors.resolve(locked).versions["k3s"] == "v1.37.1+k3s2", "the lock's minor, its newest release"
    assert "using its tags, then the lock" in capsys.readouterr().err


def test_k3s_without_channels_and_tags_uses_the_lock(vendors: Vendors) -> None:
    locked = vendors.resolve()
    for url in (COLLECTION, TAGS):
        vendors.answers[url] = httpx.ReadTimeout("slow")
    assert vendors.resolve(locked).versions["k3s"] == locked.versions["k3s"]
    asks(vendors, k3s="v1.36")
    with pytest.raises(UpstreamError, match=r"no suitable k3s v1\.36"):
        vendors.resolve(locked)


def test_k3s_without_anything_stops_and_never_uses_the_channels_name(vendors: Vendors) -> None:
    for url in (COLLECTION, TAGS):
        vendors.gives(url, "stable")
    with pytest.raises(UpstreamError, match="no suitable k3s stable"):
        vendors.resolve()
    assert not any("/download/stable" in str(request.url) for request in vendors.asked)


def test_k3s_channel_ahead_of_its_files_gives_the_previous_release(vendors: Vendors) -> None:
    vendors.channels(stable="v1.37.2+k3s1")
    vendors.refs("k3s", "v1.37.2+k3s1", "v1.37.1+k3s1", "v1.38.0+k3s1")
    assert vendors.resolve().versions["k3s"] == "v1.37.1+k3s1"


def test_k3s_channel_that_went_back_is_logged(vendors: Vendors, capsys: pytest.CaptureFixture[str]) -> None:
    locked = vendors.resolve()
    vendors.channels(stable="v1.36.5+k3s1")
    assert vendors.resolve(locked).versions["k3s"] == "v1.36.5+k3s1"
    assert "went back from v1.37.1+k3s1 (in the lock) to v1.36.5+k3s1" in capsys.readouterr().err


# Cooldown.


def test_a_young_release_is_skipped_and_logged(vendors: Vendors, capsys: pytest.CaptureFixture[str]) -> None:
    vendors.refs("buildx", "v0.37.0", "v0.36.1")
    vendors.release("buildx", "0.37.0", days=2.9)
    assert vendors.resolve().versions["buildx"] == "0.37.0", "without a cooldown it is taken"
    vendors.intent = replace(vendors.intent, cooldown={"default": 3})
    assert vendors.resolve().versions["buildx"] == "0.36.1"
    log = capsys.readouterr().err
    assert "skipped buildx 0.37.0: its files are from 2026-11-22, and its cooldown is 3 days" in log


@pytest.mark.parametrize(
    ("cooldown", "version"),
    [
        ({"default": 3}, "0.36.1"),
        ({"default": 3, "buildx": 0}, "0.37.0"),
        ({"buildx": 2}, "0.37.0"),
        ({"k3s": 9}, "0.37.0"),
    ],
)
def test_a_component_can_have_its_own_cooldown(vendors: Vendors, cooldown: dict[str, int], version: str) -> None:
    vendors.refs("buildx", "v0.37.0", "v0.36.1")
    vendors.release("buildx", "0.37.0", days=2.5)
    vendors.intent = replace(vendors.intent, cooldown=cooldown)
    assert vendors.resolve().versions["buildx"] == version


@pytest.mark.parametrize("component", ["docker", "buildx", "compose", "k3s", "kubectl"])
def test_every_component_cools_down(vendors: Vendors, component: str) -> None:
    before = vendors.resolve().versions
    vendors.release(component, before[component], days=0.5)
    vendors.refs("docker", "docker-v29.7.2", "docker-v29.7.1")
    vendors.listing("29.7.2", "29.7.1")
    vendors.release("docker", "29.7.1")
    vendors.refs("compose", "v5.4.0", "v5.3.1")
    after = vendors.resolve(intent=replace(vendors.intent, cooldown={"default": 7})).versions
    older = {"docker": "29.7.1", "buildx": "0.36.0", "compose": "5.3.1", "k3s": "v1.37.0+k3s1", "kubectl": "v1.37.0"}
    assert after[component] == older[component]


def test_exact_versions_locked_ones_and_known_fixes_have_no_cooldown(
    vendors: Vendors, capsys: pytest.CaptureFixture[str]
) -> None:
    vendors.refs("buildx", "v0.37.0", "v0.36.1")
    vendors.release("buildx", "0.37.0", days=0.1)
    locked = vendors.resolve()
    cool = replace(vendors.intent, cooldown={"default": 30})
    assert (
        vendors.resolve(intent=replace(cool, components={**CHANNELS, "buildx": "0.37.0"})).versions["buildx"]
        == "0.37.0"
    )
    assert vendors.resolve(locked, cool).versions["buildx"] == "0.37.0"
    fix = KnownFix(component="buildx", version="0.37.0", reason="CVE-2026-1234")
    assert vendors.resolve(intent=cool).versions["buildx"] == "0.36.1"
    assert vendors.resolve(intent=replace(cool, known_fixes=(fix,))).versions["buildx"] == "0.37.0"
    assert "is a known fix, so its cooldown is ignored: CVE-2026-1234" in capsys.readouterr().err


def test_a_release_of_unknown_age_counts_as_young(vendors: Vendors) -> None:
    vendors.intent = replace(vendors.intent, cooldown={"compose": 1})
    for platform in Platform:
        vendors.gives(vendors.url("compose", "5.4.0", platform), "x")
    with pytest.raises(UpstreamError, match=r"does not report its date"):
        vendors.resolve(intent=replace(vendors.intent, components={**CHANNELS, "compose": "5.4"}))


def test_the_youngest_platform_decides(vendors: Vendors) -> None:
    vendors.intent = replace(vendors.intent, cooldown={"compose": 5})
    vendors.release("compose", "5.4.0", days=1, platforms=[Platform.ARM64])
    assert vendors.resolve().versions["compose"] == "5.3.1"


def test_each_file_is_requested_once(vendors: Vendors) -> None:
    vendors.intent = replace(vendors.intent, cooldown={"default": 3})
    vendors.resolve()
    url = vendors.url("buildx", "0.36.1", Platform.AMD64)
    assert times(vendors, url, "HEAD") == 1
    assert fake.times(vendors, url) == 0, "its checksum is published, so it is not downloaded"


# The variant airgap


AIRGAP = "v1.37.1+k3s1"


def test_system_images_are_resolved_with_k3s_and_kept(vendors: Vendors) -> None:
    vendors.intent = replace(vendors.intent, variants=(Variant.AIRGAP,))
    made = vendors.resolve()
    assert [(file.component, file.version, file.platform) for file in made.airgap] == [
        ("k3s-airgap-images", AIRGAP, platform) for platform in Platform
    ]
    for file in made.airgap:
        assert file.path.endswith(f"/v1.37.1%2Bk3s1/k3s-airgap-images-{file.platform.architecture}.tar.zst")
        assert file.grade is Grade.PUBLISHED
        source = f"{file.path.rpartition('/')[0]}/sha256sum-{file.platform.architecture}.txt"
        assert file.evidence[0].source == f"{UPSTREAM['github']}/{source}"
    assert lock.render(vendors.resolve(made)) == lock.render(made)
    assert vendors.resolve(made, replace(vendors.intent, variants=())).airgap == ()


def test_a_lock_gets_system_images_if_they_are_requested(vendors: Vendors) -> None:
    before = vendors.resolve()
    made = vendors.resolve(before, replace(vendors.intent, variants=(Variant.AIRGAP,)))
    assert before.airgap == ()
    assert changes.lines(before, made) == [
        *(f"system images k3s-airgap-images ({arch}): none → {AIRGAP}" for arch in ("amd64", "arm64")),
    ]
    text = changes.markdown(before, made, ())
    assert "| k3s-airgap-images | amd64, arm64 | — | v1.37.1+k3s1 |" in text
    assert "| linux/arm64 airgap | — |" in text


def test_a_release_without_system_images_is_skipped(vendors: Vendors, capsys: pytest.CaptureFixture[str]) -> None:
    vendors.intent = replace(vendors.intent, variants=(Variant.AIRGAP,))
    del vendors.answers[vendors.url("k3s-airgap-images", AIRGAP, Platform.ARM64)]
    assert vendors.resolve().versions["k3s"] == "v1.37.0+k3s1"
    log = " ".join(capsys.readouterr().err.split())
    assert f": k3s-airgap-images {AIRGAP} for linux/arm64 does not exist (yet)" in log
    asks(vendors, k3s=AIRGAP)
    with pytest.raises(UpstreamError, match=r"k3s-airgap-images .* does not exist"):
        vendors.resolve()


def test_a_changed_checksum_is_refused(vendors: Vendors) -> None:
    vendors.intent = replace(vendors.intent, variants=(Variant.AIRGAP,))
    made = vendors.resolve()
    vendors.release("k3s", AIRGAP, text="replaced")
    spoiled = replace(made, artifacts=tuple(file for file in made.artifacts if file.component != "k3s"))
    with pytest.raises(DigestMismatch, match=r"k3s-airgap-images .* another digest than the lock"):
        vendors.resolve(spoiled)
