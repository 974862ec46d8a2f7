"""`bench start` without an engine: which processes are ours, ratios, the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench import processes, report, start
from pipeline.bench.processes import Process

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ("python3", "-I", "-S", "/usr/local/lib/dind-k3s")


def process(pid: int, parent: int, name: str, *line: str) -> Process:
    return Process(pid=pid, parent=parent, name=name, line=line or (name,))


def test_a_process_is_ours_unless_dockerd_or_k3s_started_it() -> None:
    everything = [
        process(10, 5, "python3", *PYTHON, "keeper"),
        process(11, 10, "dockerd"),
        process(12, 11, "containerd"),
        process(13, 11, "docker-proxy"),
        process(14, 10, "python3", *PYTHON, "watch"),
        process(15, 10, "python3", "python3", "/usr/local/bin/k3s", "server"),
        process(16, 15, "sh"),
        process(17, 10, "containerd-shim", "/usr/local/bin/containerd-shim-runc-v2"),
        process(18, 17, "busybox"),
        process(19, 18, "k3s", "k3s"),  # somebody's k3s in a container
        process(20, 10, "run-k3s", "/bin/bash", "/usr/local/lib/dind-k3s/run-k3s"),  # still waits for dockerd
        process(21, 10, "dnsmasq"),
        process(22, 5, "dockerd"),  # the outer one
        process(23, 14, "ip"),
    ]
    assert sorted(one.pid for one in processes.descendants(everything, 10)) == [10, 14, 20, 21, 23]
    assert processes.descendants([], 10) == []


def test_memory_and_cpu_are_those_of_the_process() -> None:
    work = "import os, sys; a = bytearray(50_000_000); [None for _ in range(3_000_000)]; print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", work], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        pss, most, used = processes.proportional(child.pid), processes.most_memory(child.pid), processes.cpu(child.pid)
        assert 50_000_000 < pss <= most < 90_000_000
        assert 0.01 < used < 20
        assert processes.read(child.pid).parent == os.getpid()
        assert child.pid in processes.children(os.getpid())
        child.kill()
    assert processes.proportional(child.pid) == 0
    assert processes.cpu(child.pid) == 0


def figures(**changes: Any) -> dict[str, Any]:
    ours = {"entrypoint": 0.3, "dockerd exec": 0.7, "dockerd answers": 1.2}
    ours |= {"processor": 0.25, "cluster": 2.2, "network": 2.3, "wait-ready": 2.4, "pod": 2.6}
    bare = {"dockerd answers": 0.8, "cluster": 2.0, "network": 2.1, "pod": 2.3}
    later = {stage: when + 1 for stage, when in ours.items()}
    alone = {stage: when for stage, when in ours.items() if when < 1.35}
    rounds = {
        "ours": [ours, later],
        "bare": [bare, bare],
        "restart": [ours],
        "SIGKILL and start": [ours],
        "docker alone, ours": [alone],
        "docker alone, dind": [{"dockerd answers": 1.0}],
        "stop, ours": [[6.0, 0], [10.5, 137]],
        "lost": [0, -1, 2],
        **changes,
    }
    idle = {
        "window": 30.0,
        "cpu": [{"ours": 0.1}],
        "health check": 0.05,
        "ours": [{"name": "keeper", "proportional": 22_000_000}],
    }
    return {"rounds": rounds, "idle": idle}


def test_ratios_are_made_within_a_round() -> None:
    by_name = {one["name"].partition(", ")[0]: one for one in start.targets(figures(), stub=False)}
    seen = {name: (one["median"], one["from"], one["to"], one["holds"]) for name, one in by_name.items()}
    assert seen == {
        "own work": (0.4, 0.4, 0.4, True),
        "processor time of our own work": (0.75, 0.25, 1.25, False),
        "docker run → cluster ready": (1.35, 1.1, 1.6, False),
        "docker run → wait-ready returns": (1.381, 1.143, 1.619, False),
        "docker run → first pod Running": (1.348, 1.13, 1.565, False),
        "K3S_DISABLE=1: docker run → dockerd answers": (1.2, 1.2, 1.2, False),
        "docker stop": (8.25, 6.0, 10.5, True),
        "the same: exit codes that are not 0": (0.5, 0.0, 1.0, False),
        "pods lost by a restart": (0, 0, 2, True),
        "idle: memory of ours": (22.0, 22.0, 22.0, True),
        "idle: CPU of ours": (0.15, 0.15, 0.15, True),
    }


def test_a_stub_is_compared_with_no_real_k3s() -> None:
    stub, real = ({one["name"] for one in start.targets(figures(), stub=stub)} for stub in (True, False))
    assert {name.partition(", ")[0] for name in real - stub} == {
        "docker run → cluster ready",
        "docker run → wait-ready returns",
        "docker run → first pod Running",
    }
    assert all("stub k3s" in name for name in stub - real)


@pytest.mark.parametrize("stub", [True, False])
def test_the_page_names_the_k3s_that_was_measured(stub: bool) -> None:
    document = json.loads((ROOT / "docs/benchmarks/start.json").read_text(encoding="utf-8"))
    document["k3s"] = {"version": "v1", "stub": stub}
    text = report.generated("start", document, start.page(document))
    assert "k3s v1\n" in text
    assert ("k3s: a stub" in text) is stub


def test_the_segments_of_a_bar_are_adjacent_and_end_at_the_pod() -> None:
    ours, bare = ([*start.segments(figures()["rounds"][kind][:1])] for kind in ("ours", "bare"))
    for parts, pod in ((ours, 2.6), (bare, 2.3)):
        assert [begin for _, begin, _ in parts] == [0.0, *(end for _, _, end in parts[:-1])]
        assert parts[-1][2] == pytest.approx(pod)
    assert ("until dockerd is executed", 0.3, 0.7) in ours
    assert "until dockerd is executed" not in {what for what, _, _ in bare}
