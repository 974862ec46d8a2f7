"""The rehearsal's supplies without a network: versions of packages and of real k3s binaries, Release files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import UpstreamError
from pipeline.core.platforms import Platform
from pipeline.rehearsal import docker_packages, real_k3s, supplies
from tests.helpers.binaries import go_binary

_SET = "-X github.com/k3s-io/k3s/pkg/version.Version={} -X github.com/k3s-io/k3s/pkg/version.GitCommit=469d009f -w -s"


def test_debians_version_is_converted_to_the_vendors() -> None:
    assert docker_packages._plain("28.5.2+dfsg4-5") == "28.5.2"
    assert docker_packages._plain("0.29.1+ds1-4") == "0.29.1"
    assert docker_packages._plain("1:2.40.3~rc1-1") == "2.40.3"


def test_digests_of_a_release_file() -> None:
    text = f"Origin: Debian\nMD5Sum:\n x 1 a\nSHA256:\n {'a' * 64} 12 main/binary-amd64/Packages.xz\nOther: x\n"
    assert {name: digest.hex for name, digest in supplies._listed(text).items()} == {
        "main/binary-amd64/Packages.xz": "a" * 64
    }


def k3s(folder: Path, platform: Platform, version: str, *, trimmed: bool = False, text: bytes = b"") -> Path:
    """Write a Go program like k3s's; `trimmed`: built with -trimpath, so that its version is only in its data."""
    path = folder / f"k3s-{platform.architecture}"
    flags = "" if trimmed else _SET.format(version)
    path.write_bytes(go_binary("(devel)", flags, platform=platform) + text + f"\0{version}\0".encode())
    return path


@pytest.mark.parametrize("trimmed", [False, True], ids=["build flags", "trimpath"])
@pytest.mark.parametrize("version", ["v1.36.3+k3s1", "v1.36.3+k3s10", "v1.37.0-rc2+k3s1"])
def test_version_of_a_real_k3s_with_any_text_after_it(tmp_path: Path, version: str, trimmed: bool) -> None:
    # Go stores constants one after the other, so the next one can look like a part of the version. k3s contains an
    # archive, in which pieces of text can look like another version.
    text = version.encode() + b"0 days\0v2.6.3-k3s11.36.3+0-0.3.1952\0"
    files = {platform: k3s(tmp_path, platform, version, trimmed=trimmed, text=text) for platform in Platform}
    assert real_k3s.version(files) == version


def test_binaries_of_two_releases_are_refused(tmp_path: Path) -> None:
    files = {
        Platform.AMD64: k3s(tmp_path, Platform.AMD64, "v1.36.3+k3s1"),
        Platform.ARM64: k3s(tmp_path, Platform.ARM64, "v1.36.2+k3s1"),
    }
    with pytest.raises(UpstreamError, match="do not state one version") as failed:
        real_k3s.version(files)
    assert f"{files[Platform.ARM64]}: v1.36.2+k3s1" in (failed.value.found or "")


@pytest.mark.parametrize("version", ["v1.36.3", "v1.36.3+rke2r1"])
def test_version_of_another_program_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(UpstreamError, match="do not state one version"):
        real_k3s.version({Platform.AMD64: k3s(tmp_path, Platform.AMD64, version)})
