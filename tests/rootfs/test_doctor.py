"""doctor's checks on made-up hosts: no check ever fails itself, whatever it meets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dind_k3s import doctor, finding, host_checks, own_checks
from dind_k3s.finding import Finding


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a made-up container."""
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    monkeypatch.setattr(own_checks, "tried", lambda *_: (1, "no such thing"))
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def by_id() -> dict[str, Finding]:
    return {one.id: one for one in doctor.findings()}


def test_nothing_is_there_at_all(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = by_id()
    assert found["privileged"].state == "fail"
    assert found["cgroup"].remedy == "run with --privileged"
    assert found["docker"].evidence == "docker: No such file or directory"
    # What cannot even be asked for is reported, too.
    assert found["volumes"].evidence.startswith("this check itself failed: FileNotFoundError")


@pytest.mark.parametrize("state", ["", "[]", "[1", '"x"', '{"health": 5}', "\0" * 10, '{"text": []}'])
def test_a_broken_state_is_a_warning(root: Path, state: str) -> None:
    write(root, {"/run/dind-k3s/state.json": state, "/run/dind-k3s/facts": f"{state}\n=\nstorage\ndns=\n"})
    (ready,) = own_checks.readiness()
    assert ready.state == "warn"


def test_a_good_host(root: Path) -> None:
    write(
        root,
        {
            "/proc/self/status": "CapEff:\t000001ffffffffff\n",
            "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
            "/sys/fs/cgroup/memory.max": "max\n",
            "/proc/self/cgroup": "0::/init\n",
            "/proc/meminfo": "MemTotal:        8000000 kB\n",
            "/proc/sys/net/ipv4/ip_forward": "1\n",
            "/proc/sys/fs/inotify/max_user_watches": "600000\n",
            "/proc/sys/fs/inotify/max_user_instances": "512\n",
        },
    )
    checks = (host_checks.privileges, host_checks.cgroups, host_checks.kernel, host_checks.memory, host_checks.clock)
    bad = [one.id for check in checks for one in check() if one.state != "ok"]
    assert bad == ["kmsg"]


@pytest.mark.parametrize(
    ("files", "id", "state", "words"),
    [
        ({"/sys/fs/cgroup/cgroup.controllers": "cpu memory\n"}, "cgroup-controllers", "fail", "missing: cpuset, pids"),
        ({"/proc/self/cgroup": "0::/docker/1\n"}, "cgroup-namespace", "warn", "the host's"),
        ({"/sys/fs/cgroup/memory.max": "536870912\n"}, "memory", "warn", "512 MiB"),
        ({"/usr/share/dind-k3s/manifest.json": '[{"built": "2999-01-01"}]'}, "clock", "fail", "made on 2999-01-01"),
        ({"/usr/share/dind-k3s/manifest.json": '[{"built": "x"}, 5]'}, "clock", "ok", "made on x"),
        ({"/proc/cpuinfo": "processor: 0\n"}, "machine", "fail", "emulated"),
        ({"/etc/resolv.conf": "nameserver 127.0.0.11\n"}, "dns", "warn", "127.0.0.11"),
        ({"/etc/resolv.conf": "nameserver 192.0.2.1\n"}, "dns", "ok", "192.0.2.1"),
        ({"/etc/resolv.conf": "search example.org\n"}, "dns", "warn", "no nameserver"),
        ({"/run/dind-k3s/facts": "dns=127.0.0.1\n"}, "dns", "fail", "does not answer"),
        ({"/run/dind-k3s/facts": "storage=vfs\n"}, "storage-driver", "warn", "vfs"),
        ({"/run/dind-k3s/k3s.problem": "k3s ended by itself (no luck)\n"}, "k3s-runs", "fail", "no luck"),
        ({"/run/dind-k3s/facts": ""}, "dockerd-runs", "ok", "no failure"),
    ],
)
def test_each_evidence_has_its_state(
    root: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], id: str, state: str, words: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    write(root, files)
    of_host = (host_checks.cgroups, host_checks.memory, host_checks.clock, host_checks.machine)
    checks = (*of_host, own_checks.dns, own_checks.storage, own_checks.ends)
    found = {one.id: one for check in checks for one in check()}
    assert found[id].state == state
    assert words in found[id].evidence
    assert bool(found[id].remedy) == (state != "ok")


ROUTES = [
    {"dst": "default", "gateway": "192.0.2.1", "dev": "eth0"},
    {"dst": "10.43.7.0/24", "dev": "eth0"},
    {"dst": "172.17.0.0/16", "dev": "docker0"},
]


def ip(monkeypatch: pytest.MonkeyPatch, routes: object) -> None:
    monkeypatch.setattr(own_checks, "output", lambda *_, **__: (0, json.dumps(routes)))


def test_networks_that_overlap_and_a_bridge_that_is_too_wide(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ip(monkeypatch, ROUTES)
    write(root, {"/sys/class/net/eth0/mtu": "1450\n", "/sys/class/net/docker0/mtu": "1500\n"})
    found = {one.id: one for one in own_checks.network()}
    assert found["networks"].evidence == "service-cidr 10.43.0.0/16 and 10.43.7.0/24 of eth0"
    assert found["mtu"].remedy == "large packets get lost: set mtu to 1450 in /etc/docker/daemon.json"
    write(root, {"/app/k3s/config.yaml": "service-cidr: 10.99.0.0/16\n"})
    assert {one.id: one.state for one in own_checks.network()}["networks"] == "ok"


def test_no_default_route(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ip(monkeypatch, [])
    assert next(iter(own_checks.network())).state == "fail"


@pytest.mark.parametrize(
    ("dockerd", "library", "state"),
    [
        ("29.7.2 1.40 1.54", "v25.0.15+incompatible", "ok"),
        ("29.0.0 1.44 1.52", "v24.0.7", "fail"),
        ("29.7.2 1.44 1.54", "", "ok"),
    ],
)
def test_the_pair_of_docker_and_k3s(
    root: Path, monkeypatch: pytest.MonkeyPatch, dockerd: str, library: str, state: str
) -> None:
    monkeypatch.setattr(own_checks, "output", lambda *_, **__: (0, dockerd))
    entries = [{"component": "k3s", "embedded": {"docker-client": library}}]
    write(root, {"/usr/share/dind-k3s/manifest.json": json.dumps(entries)})
    found = {one.id: one for one in own_checks.docker()}
    assert found["docker-k3s-api"].state == state


def test_a_command_that_never_answers_is_left() -> None:
    assert finding.output("sleep", "60", timeout=0.1) == (127, "sleep said nothing for 0.1 s")


def test_arguments(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["doctor", "--what"])
    assert doctor.main() == 2
    monkeypatch.setattr("sys.argv", ["doctor", "--help"])
    assert doctor.main() == 0
    assert "Exits with 0" in capsys.readouterr().out
