"""What the image passes to k3s of each minor from 1.22 to 1.37: the stub takes it, and that version has all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from dind_k3s import k3s

from pipeline.rehearsal.stub_k3s import config

Version = tuple[int, ...]

# The first and the last release of each minor that can run pods with docker, as far as it matters here.
VERSIONS = ["1.22.0", "1.22.17", "1.23.0", "1.23.17", "1.24.4", "1.24.17", *(f"1.{minor}.0" for minor in range(25, 38))]
VERSIONS += ["1.31.14", "1.32.13"]

# The first version of each minor that knows a setting. Older minors than the first one lack it, others have it.
SINCE: dict[str, tuple[Version, ...]] = {
    "egress-selector-mode": ((1, 22, 10), (1, 23, 7), (1, 24, 1)),  # k3s-io/k3s#5596
    "embedded-registry": ((1, 26, 13), (1, 27, 10), (1, 28, 6), (1, 29, 1)),  # docs.k3s.io/installation/registry-mirror
    "vpn-auth": ((1, 25, 11), (1, 26, 6), (1, 27, 3)),  # docs.k3s.io/networking/distributed-multicloud
    "failCgroupV1": ((1, 31, 0),),  # kubelet's
    "fail-cgroupv1": ((1, 31, 0),),
}
DROP_INS_SINCE = (1, 32, 1)  # k3s reads <data-dir>/agent/etc/kubelet.conf.d from here on (k3s-io/k3s#2116)


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image's Python programs read and write below `tmp_path`."""
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))


def started(root: Path, version: Version, env: dict[str, str], profile: str = "dev") -> config.Config:
    """What the stub makes of what our configuration hands to it. AssertionError for what that version of k3s lacks."""
    facts = {"cgroup": "1", "dns": "192.0.2.1"}
    plan = k3s.plan(env, facts, version, profile)
    for name, text in plan.files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace('"/app/k3s', f'"{root}/app/k3s'))
        if not text:
            path.unlink()
    role, *arguments = (root / "run/dind-k3s/k3s.args").read_text().split("\0")[:-1]
    named = {"K3S_CONFIG_FILE": str(root / "run/dind-k3s/k3s/config.yaml"), **env}
    loaded = config.load(arguments, named, command=role)
    if version < DROP_INS_SINCE:
        assert not (root / k3s.DROP_IN.lstrip("/")).exists()
    settings = {**config.read_files(Path(named["K3S_CONFIG_FILE"]), must_exist=True), **loaded.kubelet}
    settings |= config.parse_arguments(arguments)
    for argument in settings.get("kubelet-arg", []):
        settings[argument.partition("=")[0]] = []
    assert not [name for name in settings if not knows(name, version)]
    return loaded


def knows(name: str, version: Version) -> bool:
    """Whether this version has the setting: it is not older than the first of its minor, or of the last before it."""
    firsts = SINCE.get(name, ((0, 0, 0),))
    return version >= ([first for first in firsts if first[:2] == version[:2]] or firsts)[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_takes_all_that_it_gets_and_cleans_no_image_away(
    tmp_path: Path, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = tuple(int(part) for part in version.split("."))
    server = started(tmp_path, numbers, {"K3S_TLS_SAN": "a.example"})
    assert server.kubelet["imageGCHighThresholdPercent"] == 100
    assert server.kubelet["evictionHard"]["imagefs.available"] == "0%"
    # kubelet does not start on cgroup v1 from 1.35 on unless this is false.
    assert server.kubelet.get("failCgroupV1", numbers >= (1, 35)) is False
    assert "Unknown" not in capsys.readouterr().err
    assert "a.example" in server.tls_sans
    agent = started(tmp_path, numbers, {"K3S_URL": "https://server:6443", "K3S_TOKEN": "secret"})
    assert (agent.server, agent.token) == ("https://server:6443", "secret")
    assert agent.kubelet == server.kubelet
    assert started(tmp_path, numbers, {}, "edge").kubelet["imageGCHighThresholdPercent"] == 85
    assert "traefik" in started(tmp_path, numbers, {}, "ci").disabled


@pytest.mark.parametrize(("name", "version"), [("egress-selector-mode", (1, 22, 9)), ("failCgroupV1", (1, 30, 9))])
def test_a_setting_is_not_known_before_its_version(name: str, version: Version) -> None:
    assert not knows(name, version)
    assert knows(name, (1, 37, 1))


@pytest.mark.parametrize("flag", ["network-plugin", "containerd"])
def test_a_flag_that_kubelet_lacks_is_refused_when_kubelet_starts(flag: str) -> None:
    loaded = config.load(["--docker", f"--kubelet-arg={flag}=x"], {})
    assert loaded.kubelet_refusal == f"failed to parse kubelet flag: unknown flag: --{flag}"


def test_a_drop_in_counts_less_than_a_flag(tmp_path: Path) -> None:
    folder = tmp_path / "agent/etc/kubelet.conf.d"
    folder.mkdir(parents=True)
    (folder / "10.conf").write_text('{"kind": "KubeletConfiguration", "imageGCHighThresholdPercent": 100}')
    arguments = ["--docker", f"--data-dir={tmp_path}"]
    assert config.load(arguments, {}).kubelet["imageGCHighThresholdPercent"] == 100
    arguments.append("--kubelet-arg=image-gc-high-threshold=90")
    assert config.load(arguments, {}).kubelet["imageGCHighThresholdPercent"] == 90
