from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import components
from pipeline.core.errors import UpstreamError
from pipeline.core.platforms import Platform
from pipeline.resolve import upstream

RECORDED = Path(__file__).parents[1] / "data/upstream"  # README.md there has the sources


def recorded(name: str) -> str:
    return (RECORDED / name).read_text(encoding="utf-8")


LISTING = recorded("docker-listing.html")
REFS = (
    "001e# service=git-upload-pack\n0000"
    "003f1111111111111111111111111111111111111111 refs/tags/v0.9.1\n"
    "00401111111111111111111111111111111111111111 refs/tags/v0.36.1\n"
    "00431111111111111111111111111111111111111111 refs/tags/v0.36.1^{}\n"
    "00441111111111111111111111111111111111111111 refs/tags/v0.37.0-rc2\n"
    "00401111111111111111111111111111111111111111 refs/heads/v9.9.9\n0000"
)


def test_dockers_listing_is_sorted_as_numbers_and_candidates_are_left_out() -> None:
    assert upstream.listed_docker(LISTING) == ["29.10.0", "29.7.2", "28.5.2"]


def test_tags_of_a_repository() -> None:
    assert upstream.tagged(REFS, "buildx") == ["0.36.1", "0.9.1"]
    assert upstream.tagged(recorded("moby-refs.txt"), "docker") == ["29.10.0", "29.7.2", "28.5.2"]


def test_candidates_of_k3s_are_left_out_and_its_revisions_count() -> None:
    assert upstream.tagged(recorded("k3s-refs.txt"), "k3s") == [
        "v1.38.0+k3s1",
        "v1.37.1+k3s2",
        "v1.37.1+k3s1",
        "v1.37.0+k3s1",
        "v1.36.5+k3s1",
    ]


@pytest.mark.parametrize("huge", ["9" * 5000, "٣", "²"])
def test_numbers_of_insane_length_are_not_versions(huge: str) -> None:
    assert upstream.listed_docker(f'<a href="docker-{huge}.1.1.tgz">') == []
    assert upstream.tagged(f" refs/tags/v{huge}.1.1\n", "compose") == []
    with pytest.raises(UpstreamError):
        upstream.kubectl_channel(f"v1.37.{huge}", "1.37")


@pytest.mark.parametrize(
    ("channel", "version"), [("stable", "v1.37.1+k3s1"), ("latest", "v1.38.0+k3s1"), ("v1.36", "v1.36.5+k3s1")]
)
def test_the_channels_of_k3s(channel: str, version: str) -> None:
    assert upstream.k3s_channel(recorded("k3s-channels.json"), channel) == version


@pytest.mark.parametrize("channel", ["testing", "v1.39", "v1.99"])
def test_channels_without_a_release(channel: str) -> None:
    with pytest.raises(UpstreamError, match="points to no release"):
        upstream.k3s_channel(recorded("k3s-channels.json"), channel)


@pytest.mark.parametrize("text", ["", "<html>", "v1.36.4", "v1.37", "v1.37.1-rc.0", "stable", "v1.37.1\nv1.37.2"])
def test_an_invalid_channel_of_kubectl(text: str) -> None:
    with pytest.raises(UpstreamError, match=r"channel 1\.37 has no release"):
        upstream.kubectl_channel(text, "1.37")


def test_kubectls_patches_downwards() -> None:
    assert list(upstream.patches(upstream.kubectl_channel("v1.37.2\n", "1.37"))) == ["v1.37.2", "v1.37.1", "v1.37.0"]


def test_the_digests_that_github_records() -> None:
    checksums = recorded("buildx-checksums.txt")
    digests = upstream.assets(recorded("github-release.json"))
    for name in ("buildx-v0.36.1.linux-amd64", "buildx-v0.36.1.linux-arm64"):
        assert digests[name] == upstream.checksum(checksums, name)
    assert "checksums.txt" not in digests, "a file without a digest is one without a witness"


@pytest.mark.parametrize(
    "document", ["", "[]", '{"assets": 1}', '{"assets": [1]}', '{"message": "Not Found"}', "[" * 99999]
)
def test_a_release_that_github_does_not_describe(document: str) -> None:
    with pytest.raises(UpstreamError, match="does not describe"):
        upstream.assets(document)


@pytest.mark.parametrize(
    ("asked", "fitting"),
    [
        ("latest", ["29.10.0", "29.7.2", "28.5.2"]),
        ("stable", ["29.10.0", "29.7.2", "28.5.2"]),
        ("28", ["28.5.2"]),
        ("29.7", ["29.7.2"]),
        ("2", []),
        ("29.1", []),
        ("29.10.0", ["29.10.0"]),
    ],
)
def test_versions_of_a_channel(asked: str, fitting: list[str]) -> None:
    assert [version for version in upstream.listed_docker(LISTING) if upstream.fits(version, asked)] == fitting


@pytest.mark.parametrize(
    ("latest", "good"), [("v1.37.1+k3s1", True), ("stable", False), ("", False), ("v1.38.0-rc1+k3s1", False)]
)
def test_a_channel_must_point_to_a_release(latest: str, good: bool) -> None:
    document = json.dumps({"data": [{"id": "stable", "latest": latest}]})
    if good:
        assert upstream.k3s_channel(document, "stable") == latest
    else:
        with pytest.raises(UpstreamError, match="points to no release"):
            upstream.k3s_channel(document, "stable")


@pytest.mark.parametrize("document", ["<html>503</html>", "[]", '{"data": 1}', '{"data": [1]}', "[" * 99999])
def test_channels_that_are_not_json(document: str) -> None:
    with pytest.raises(UpstreamError):
        upstream.k3s_channel(document, "stable")


HEX = "ab" * 32


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"{HEX}  k3s\n{'0' * 64}  k3s-airgap-images-amd64.tar\n", "k3s"),
        (f"{HEX} *buildx-v0.36.1.linux-amd64\n", "buildx-v0.36.1.linux-amd64"),
        (f"{HEX}\n", ""),
        (
            recorded("k3s-sha256sum-amd64.txt").replace(
                "92b94582eb7b34a8cf532e6006842b9ed215a6783cf56a3dd6271fd35243b2c0", HEX
            ),
            "k3s",
        ),
    ],
)
def test_the_formats_of_checksum_files(text: str, name: str) -> None:
    assert upstream.checksum(text, name).hex == HEX


@pytest.mark.parametrize(
    ("text", "name"), [("", "k3s"), (f"{HEX}  k3s-arm64\n", "k3s"), ("<html>", ""), ("ab  k3s", "k3s")]
)
def test_a_checksum_that_is_not_listed(text: str, name: str) -> None:
    with pytest.raises(UpstreamError, match="does not list"):
        upstream.checksum(text, name)


def test_paths_are_the_vendors() -> None:
    k3s = components.published("k3s", "v1.37.1+k3s1", Platform.ARM64)
    assert k3s.path == "k3s-io/k3s/releases/download/v1.37.1%2Bk3s1/k3s-arm64"
    assert k3s.checksums is not None
    assert k3s.checksums.endswith("/sha256sum-arm64.txt")
    docker = components.published("docker", "29.7.2", Platform.AMD64)
    assert (docker.path, docker.checksums) == ("linux/static/stable/x86_64/docker-29.7.2.tgz", None)
