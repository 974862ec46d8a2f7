"""Which runtime is tried, and what shows that there is no room for another container."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dind_k3s import containerd, limits, trial


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))


@pytest.mark.parametrize(
    ("args", "config", "runtime"),
    [
        ([], {}, "runc"),
        (["--add-runtime", "mine=/opt/runc-mine", "--default-runtime", "mine"], {}, "/opt/runc-mine"),
        (["--default-runtime=crun"], {"runtimes": {"crun": {"path": "/usr/bin/crun"}}}, "/usr/bin/crun"),
        ([], {"default-runtime": "kata", "runtimes": {"kata": {"runtimeType": "io.containerd.kata.v2"}}}, "kata"),
    ],
)
def test_the_default_runtime_is_tried(tmp_path: Path, args: list[str], config: dict[str, object], runtime: str) -> None:
    assert trial.default_runtime() == "runc"  # before there is a configuration
    (tmp_path / "run/dind-k3s").mkdir(parents=True)
    (tmp_path / "run/dind-k3s/dockerd.args").write_text("".join(f"{arg}\0" for arg in args))
    (tmp_path / "run/dind-k3s/daemon.json").write_text(json.dumps(config))
    assert trial.default_runtime() == runtime


@pytest.mark.parametrize(("group", "folder"), [("0::/", ""), ("7:pids:/docker/one", "pids/docker/one")])
def test_the_pids_limit_and_what_it_refused_are_read_on_both_versions(tmp_path: Path, group: str, folder: str) -> None:
    cgroup = tmp_path / "sys/fs/cgroup" / folder
    cgroup.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
    assert limits.processes()[1] == float("inf")
    (cgroup / "pids.current").write_text("70\n")
    (cgroup / "pids.max").write_text("100\n")
    (cgroup / "pids.events").write_text("max 3\n")
    assert limits.processes() == (70, 100)
    assert limits.refused_processes() == 3
    assert "70 processes are in use, this container's pids limit is 100" in trial.shortage()
    (cgroup / "pids.max").write_text("max\n")
    assert trial.shortage() == ""


FOLLOW = """
import sys
from dind_k3s import board, docker_api, trial
docker_api.SOCKET = sys.argv[1]
trial.follow(docker_api.Docker(), board.Board(board.STAGES, "server"))
"""


def test_nothing_is_started_before_containerd_listens(tmp_path: Path) -> None:
    runc, tried = tmp_path / "bin/runc", tmp_path / "tried"
    runc.parent.mkdir()
    runc.write_text(f"#!/bin/sh\n: >{tried}\n")
    runc.chmod(0o755)
    environment = {"PATH": f"{runc.parent}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["DIND_K3S_TEST_ROOT"] = str(tmp_path)
    path = str(tmp_path / "docker.sock")
    with socket.socket(socket.AF_UNIX) as dockerd:
        dockerd.bind(path)
        dockerd.listen()
        dockerd.settimeout(30)
        with subprocess.Popen([sys.executable, "-c", FOLLOW, path], env=environment) as process:
            try:
                for _ in range(3):  # it asks dockerd, which does not answer yet
                    dockerd.accept()[0].close()
                assert not tried.exists()
                socket_of_containerd = tmp_path / containerd.SOCKET.lstrip("/")
                socket_of_containerd.parent.mkdir(parents=True)
                socket_of_containerd.touch()
                deadline = time.monotonic() + 30
                while not tried.exists():
                    assert time.monotonic() < deadline
            finally:
                process.kill()
