from __future__ import annotations

import json

import pytest

from pipeline import upstream
from pipeline.errors import UpstreamError
from pipeline.platforms import Platform

# Trimmed from what download.docker.com answers, with the entries that have broken scripts.
LISTING = """<html><body><h1>Index of linux/static/stable/x86_64/</h1><pre>
<a href="docker-29.7.2.tgz">docker-29.7.2.tgz</a>
<a href="docker-29.10.0.tgz">docker-29.10.0.tgz</a>
<a href="docker-17.09.0-ce.tgz">docker-17.09.0-ce.tgz</a>
<a href="docker-30.0.0-rc.1.tgz">docker-30.0.0-rc.1.tgz</a>
<a href="docker-rootless-extras-31.0.0.tgz">docker-rootless-extras-31.0.0.tgz</a>
<a href="docker-28.5.2.tgz">docker-28.5.2.tgz</a>
</pre></body></html>"""

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
def test_what_a_channel_can_mean(asked: str, fitting: list[str]) -> None:
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


@pytest.mark.parametrize("document", ["<html>503</html>", "[]", '{"data": 1}'])
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
    ],
)
def test_the_vendors_three_ways_to_write_a_checksum(text: str, name: str) -> None:
    assert upstream.checksum(text, name).hex == HEX


@pytest.mark.parametrize(
    ("text", "name"), [("", "k3s"), (f"{HEX}  k3s-arm64\n", "k3s"), ("<html>", ""), ("ab  k3s", "k3s")]
)
def test_a_checksum_that_is_not_listed(text: str, name: str) -> None:
    with pytest.raises(UpstreamError, match="does not list"):
        upstream.checksum(text, name)


def test_paths_are_the_vendors() -> None:
    k3s = upstream.published("k3s", "v1.37.1+k3s1", Platform.ARM64)
    assert k3s.path == "k3s-io/k3s/releases/download/v1.37.1%2Bk3s1/k3s-arm64"
    assert k3s.checksums is not None
    assert k3s.checksums.endswith("/sha256sum-arm64.txt")
    docker = upstream.published("docker", "29.7.2", Platform.AMD64)
    assert (docker.path, docker.checksums) == ("linux/static/stable/x86_64/docker-29.7.2.tgz", None)
