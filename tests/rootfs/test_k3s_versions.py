"""What the image passes to k3s, taken by the stand-in of every version from 1.22 to 1.37: it refuses what one lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from dind_k3s import k3s

from pipeline.rehearsal.standin import config, flags, kubelet
from pipeline.rehearsal.standin.failure import Failure

# The first and the last release of each minor that can run pods with docker, as far as it matters here.
VERSIONS = ["1.22.0", "1.22.17", "1.23.0", "1.23.17", "1.24.4", "1.24.17", *(f"1.{minor}.0" for minor in range(25, 38))]
VERSIONS += ["1.31.14", "1.32.13"]


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image's Python programs read and write below `tmp_path`."""
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))


def started(root: Path, version: str, env: dict[str, str], profile: str = "dev") -> config.Config:
    """What the stand-in of a version makes of what our configuration hands to it."""
    facts = {"cgroup": "1", "dns": "192.0.2.1"}
    plan = k3s.plan(env, facts, flags.numbers(version), profile)
    for name, text in plan.files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace('"/app/k3s', f'"{root}/app/k3s'))
        if not text:
            path.unlink()
    role, *arguments = (root / "run/dind-k3s/k3s.args").read_text().split("\0")[:-1]
    named = {"K3S_CONFIG_FILE": str(root / "run/dind-k3s/k3s/config.yaml"), **env}
    return config.load(arguments, named, command=role, version=f"v{version}+standin")


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_takes_all_that_it_gets_and_cleans_no_image_away(tmp_path: Path, version: str) -> None:
    server = started(tmp_path, version, {"K3S_TLS_SAN": "a.example"})
    assert server.kubelet["imageGCHighThresholdPercent"] == 100
    assert server.kubelet["evictionHard"]["imagefs.available"] == "0%"
    assert server.kubelet.get("failCgroupV1", False) is False
    assert not [warning for warning in server.warnings if "Unknown" in warning]
    assert "a.example" in server.tls_sans
    agent = started(tmp_path, version, {"K3S_URL": "https://server:6443", "K3S_TOKEN": "secret"})
    assert (agent.server, agent.token) == ("https://server:6443", "secret")
    assert agent.kubelet == server.kubelet
    assert started(tmp_path, version, {}, "edge").kubelet["imageGCHighThresholdPercent"] == 85
    assert "traefik" in started(tmp_path, version, {}, "ci").disabled


@pytest.mark.parametrize(
    ("version", "arguments", "lacks"),
    [
        ("1.22.9", ["--docker", "--egress-selector-mode=disabled"], "egress-selector-mode"),
        ("1.24.3", ["--docker"], "docker"),
    ],
)
def test_the_stand_in_refuses_what_its_version_lacks(version: str, arguments: list[str], lacks: str) -> None:
    with pytest.raises(Failure, match=lacks):
        config.load(arguments, {}, version=f"v{version}+standin")


@pytest.mark.parametrize(("version", "flag"), [("1.30.9", "fail-cgroupv1"), ("1.37.1", "containerd")])
def test_a_flag_that_its_kubelet_lacks_is_refused_when_kubelet_starts(version: str, flag: str) -> None:
    loaded = config.load(["--docker", f"--kubelet-arg={flag}=x"], {}, version=f"v{version}+standin")
    assert loaded.kubelet_refusal == f"failed to parse kubelet flag: unknown flag: --{flag}"


def test_drop_ins_are_not_read_before_1_32_1(tmp_path: Path) -> None:
    folder = tmp_path / "agent/etc/kubelet.conf.d"
    folder.mkdir(parents=True)
    (folder / "10.conf").write_text('{"kind": "KubeletConfiguration", "imageGCHighThresholdPercent": 100}')
    for version, percent in (((1, 32, 0), 85), ((1, 32, 1), 100)):
        assert kubelet.effective([], tmp_path, version)["imageGCHighThresholdPercent"] == percent
    assert kubelet.effective(["image-gc-high-threshold=90"], tmp_path, (1, 37, 1))["imageGCHighThresholdPercent"] == 90
