"""Versions inside the locked files: crafted files of every format, and the real ones of the rehearsal."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.cache import path_of
from pipeline.core.errors import Incompatible, UpstreamError
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.inputs import lock
from pipeline.inputs.lock import Lock
from pipeline.inspect import embedded
from pipeline.rehearsal import origin, supplies
from tests.helpers.binaries import binary, go_binary, tarred
from tests.helpers.examples import LOCK, artifact

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LOG = Log(quiet=True)
CRI = {
    "github.com/docker/docker": "v28.5.2 => github.com/docker/docker v25.0.15-0.20260325154711-d2dbc0547253",
    "github.com/containerd/containerd/v2": "v2.2.3 => github.com/k3s-io/containerd/v2 v2.3.4-k3s1",
    "github.com/Mirantis/cri-dockerd": "v0.3.19 => github.com/k3s-io/cri-dockerd v0.3.19-k3s5",
}


def docker(platform: Platform, *, runc: str = "1.3.3") -> bytes:
    """Return docker's archive."""
    return gzip.compress(
        tarred(
            {
                "docker/docker": go_binary("(devel)", "-X main.Version=29.7.2", platform=platform),
                "docker/dockerd": go_binary("(devel)", modules={"github.com/moby/buildkit": "v0.27.0"}),
                "docker/containerd": go_binary("(devel)", platform=platform) + b"\0v2.2.1\0",
                "docker/runc": go_binary("(devel)", platform=platform) + f"\0{runc}\0".encode(),
                "docker/docker-init": binary("tini version 0.19.0 - git.de40ad0\0", platform),
            }
        )
    )


def k3s(platform: Platform) -> bytes:
    """Return a k3s file: a program without a version, which contains zstd's magic number, and its archive."""
    inside = {
        "./bin/cni": b"\0" * 5000,
        "./bin/k3s": go_binary("(devel)", modules=CRI, platform=platform),
        "./bin/runc": go_binary("(devel)", platform=platform) + b"\x001.4.2\0",
        "./etc/strongswan": b"text",
    }
    decoy = b"\x28\xb5\x2f\xfd and no frame"
    return go_binary("(devel)", platform=platform) + decoy + zstd.compress(tarred(inside)) + b"more of the program" * 9


FILES: Mapping[str, Callable[[Platform], bytes]] = {
    "docker": docker,
    "k3s": k3s,
    "buildx": lambda platform: go_binary(
        "v0.36.1",
        modules={"github.com/moby/buildkit": "v0.27.1", "github.com/moby/moby/client": "v0.3.0"},
        platform=platform,
    ),
    "compose": lambda platform: go_binary(
        "v5.4.0", modules={"github.com/compose-spec/compose-go/v2": "v2.10.1"}, platform=platform
    ),
    "kubectl": lambda platform: go_binary("v1.37.1", modules={"k8s.io/client-go": "(devel)"}, platform=platform),
}
TOLD = {
    "buildx": {"buildkit": "v0.27.1", "go": "1.25.1", "moby-client": "v0.3.0"},
    "compose": {"compose-go": "v2.10.1", "go": "1.25.1"},
    "docker": {
        "buildkit": "v0.27.0",
        "containerd": "v2.2.1",
        "docker-cli": "29.7.2",
        "docker-init": "0.19.0",
        "go": "1.25.1",
        "runc": "1.3.3",
    },
    "k3s": {
        "containerd": "v2.3.4-k3s1",
        "cri-dockerd": "v0.3.19-k3s5",
        "docker-client": "v25.0.15-0.20260325154711-d2dbc0547253",
        "go": "1.25.1",
        "runc": "1.4.2",
    },
    "kubectl": {"go": "1.25.1"},
}


def cached(cache: Path, **other: bytes) -> Lock:
    """Return a lock of crafted files in the cache; `other`: arm64's file of a component."""
    (cache / "sha256").mkdir(parents=True, exist_ok=True)
    files = []
    for component, make in FILES.items():
        for platform in Platform:
            data = make(platform)
            if component in other and platform == Platform.ARM64:
                data = other[component]
            path_of(cache, Digest.of(data)).write_bytes(data)
            files.append(artifact(component, platform, data))
    return replace(LOCK, artifacts=tuple(files))


def test_every_component_has_its_versions_for_both_platforms(tmp_path: Path) -> None:
    assert embedded.of_lock(cached(tmp_path), tmp_path, LOG) == TOLD


def test_platforms_that_disagree_are_an_error_message(tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match=r"docker 29\.7\.2 does not have the same runc") as refused:
        embedded.of_lock(cached(tmp_path, docker=docker(Platform.ARM64, runc="1.3.4")), tmp_path, LOG)
    assert "1.3.3 for linux/amd64, 1.3.4 for linux/arm64" in str(refused.value)


def test_a_version_of_one_platform_is_left_out_and_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = embedded.of_lock(cached(tmp_path, kubectl=b"#!/bin/sh\n"), tmp_path, LOG)
    assert "kubectl" not in result
    assert "kubectl v1.37.1: no version of go for linux/arm64" in capsys.readouterr().err


@pytest.mark.parametrize(
    "data", [b"", b"#!/usr/bin/env python3\nPK\x03\x04", b"\x28\xb5\x2f\xfd", b"x\x28\xb5\x2f\xfdy"]
)
def test_a_stub_k3s_has_no_versions(data: bytes) -> None:
    assert list(embedded.bundled(data)) == []


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_archive_does_not_crash(tmp_path: Path, part: float) -> None:
    whole = docker(Platform.AMD64)
    path = tmp_path / "docker.tgz"
    path.write_bytes(whole[: int(len(whole) * part)])
    assert embedded.read("docker", path) == {}


@pytest.mark.parametrize("count", range(20))
def test_an_archive_truncated_in_its_header_does_not_crash(tmp_path: Path, count: int) -> None:
    path = tmp_path / "docker.tgz"
    path.write_bytes(docker(Platform.AMD64)[:count])
    assert embedded.read("docker", path) == {}


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_k3s_file_does_not_crash(tmp_path: Path, part: float) -> None:
    whole = k3s(Platform.AMD64)
    path = tmp_path / "k3s"
    path.write_bytes(whole[: int(len(whole) * part)])
    assert embedded.read("k3s", path).items() <= TOLD["k3s"].items()


def test_a_missing_file_is_reported_with_the_command(tmp_path: Path) -> None:
    locked = cached(tmp_path)
    path_of(tmp_path, locked.artifacts[3].digest).unlink()
    with pytest.raises(UpstreamError, match="nox -s fetch"):
        embedded.of_lock(locked, tmp_path, LOG)


def test_embedded_versions_are_in_the_lock_and_do_not_change_the_image() -> None:
    made = replace(LOCK, embedded=TOLD)
    text = lock.render(made)
    assert lock.parse(text, "x").embedded == TOLD
    assert lock.render(lock.parse(text, "x")) == text
    assert made.digest == LOCK.digest
    assert "embedded" not in lock.render(LOCK)


def test_embedded_versions_are_kept_for_the_same_bytes_only() -> None:
    previous = replace(LOCK, embedded=TOLD)
    assert embedded.kept(previous, LOCK) == TOLD
    assert embedded.kept(None, LOCK) == {}
    other = replace(LOCK.artifacts[0], digest=Digest.of(b"another"))
    assert other.component == "docker"
    made = replace(LOCK, artifacts=(other, *LOCK.artifacts[1:]))
    assert set(embedded.kept(previous, made)) == set(TOLD) - {"docker"}


@pytest.mark.engine
def test_the_real_binaries_of_both_platforms(supplied: supplies.Supplies) -> None:
    """Debian's dockerd, containerd and runc, and the vendor's kubectl, from the rehearsal's origin."""
    version = supplied.versions["docker"]
    inside = [embedded.read("docker", origin.path_of(supplied.root, "docker", version, one)) for one in Platform]
    assert inside[0] == inside[1]
    assert inside[0]["docker-cli"].startswith(version)
    assert {"containerd", "runc", "docker-init", "go"} <= inside[0].keys()
    version = supplied.versions["kubectl"]
    kubectl = [embedded.read("kubectl", origin.path_of(supplied.root, "kubectl", version, one)) for one in Platform]
    assert kubectl[0] == kubectl[1]
    assert kubectl[0]["go"].startswith("1.")
