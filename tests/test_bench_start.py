"""`bench start` without an engine: whose a process is, what the lines of a start say, ratios, the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench import boxes, measures, processes, starting
from pipeline.bench.processes import CONTAINERS, DOCKER, K3S, OURS, SHIMS, Process

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ("python3", "-I", "-S", "/usr/local/lib/dind-k3s")


def process(pid: int, parent: int, name: str, *line: str) -> Process:
    return Process(pid=pid, parent=parent, name=name, line=line or (name,))


def test_a_process_is_its_parents_unless_it_is_known() -> None:
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
    ]
    found = processes.sort({one.pid: one for one in everything}, 10)
    assert {group: sorted(one.pid for one in them) for group, them in found.items()} == {
        OURS: [10, 14, 20, 21],
        DOCKER: [11, 12, 13],
        K3S: [15, 16],
        SHIMS: [17],
        CONTAINERS: [18, 19],
    }
    assert processes.sort({}, 10)[OURS] == []
    assert measures.label(everything[0].line) == "python3 dind-k3s keeper"


def test_memory_and_cpu_are_those_of_the_process() -> None:
    work = "import os, sys; a = bytearray(50_000_000); [None for _ in range(3_000_000)]; print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", work], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        memory, used = processes.memory(child.pid), processes.cpu(child.pid)
        assert 50_000_000 < memory.proportional <= memory.resident < 90_000_000
        assert 0.01 < used < 20
        assert abs(processes.began(child.pid) - processes.began(os.getpid())) < 3600
        assert child.pid in processes.children(os.getpid())
        child.kill()
    assert processes.memory(child.pid).resident == 0
    assert processes.cpu(child.pid) == 0


LINES = [
    (100.020, "dind-k3s   0.010s  privileges privileged"),
    (100.031, "dind-k3s   0.020s  lock      both volumes are ours alone"),
    (100.080, "dind-k3s   0.070s  configure profile dev, storage driver overlay2"),
    (100.091, "dind-k3s   0.080s  configure dockerd --debug"),
    (100.091, "[dockerd] dind-k3s is no word of ours here"),
    (100.092, "dind-k3s   0.081s  start     supervisor, then dockerd, then k3s"),
]


def test_the_seconds_of_a_step_are_those_since_the_line_before() -> None:
    found = boxes.step_seconds(LINES)
    assert [step for step, _ in found] == ["privileges", "lock", "configure", "start"]
    assert dict(found) == pytest.approx({"privileges": 0.01, "lock": 0.01, "configure": 0.06, "start": 0.001})


def figures(**changes: Any) -> dict[str, Any]:
    ours = {"first process": 0.2, "entrypoint": 0.3, "supervisor": 0.5, "dockerd exec": 0.7, "dockerd answers": 1.2}
    ours |= {"docker is told": 1.3, "k3s exec": 1.4, "API": 2.0, "node": 2.1, "account": 2.2}
    ours |= {"processor": 0.25, "cluster": 2.2, "network": 2.3, "cluster is told": 2.4, "pod": 2.6}
    bare = {"first process": 0.2, "dockerd exec": 0.3, "k3s exec": 0.4, "dockerd answers": 0.8}
    bare |= {"API": 1.9, "node": 2.0, "account": 2.0, "cluster": 2.0, "network": 2.1, "pod": 2.3}
    later = {stage: when + 1 for stage, when in ours.items()}
    alone = {stage: when for stage, when in ours.items() if when < 1.35}
    memory = {OURS: 30_000_000, DOCKER: 100_000_000, SHIMS: 0, K3S: 500_000_000, CONTAINERS: 0}
    window = {OURS: 0.1, DOCKER: 0.2, SHIMS: 0.0, K3S: 4.0, CONTAINERS: 0.0}
    rounds = {
        "ours": [ours, later],
        "bare": [bare, bare],
        "steps": [boxes.step_seconds(LINES), [["lock", 0.02]]],
        "restart": [ours],
        "SIGKILL and start": [ours],
        "docker alone, ours": [alone],
        "docker alone, dind": [{"dockerd exec": 0.3, "dockerd answers": 1.0}],
        "stop, ours": [[6.0, 0], [10.5, 137]],
        "stop, dind": [[10.6, 137]],
        "lost": [0, -1, 2],
        **changes,
    }
    ours_idle = [{"name": "keeper", "proportional": 22_000_000, "resident": 30_000_000, "cpu": 0.02}]
    idle = {"window": 30.0, "cpu": [window], "health check": 0.05, "ours": ours_idle, "memory": memory}
    return {"rounds": rounds, "idle": idle}


def test_ratios_are_made_within_a_round() -> None:
    found = {one["name"].partition(", ")[0]: one for one in starting.targets(figures(), stub=False)}
    seen = {name: (one["median"], one["from"], one["to"], one["holds"]) for name, one in found.items()}
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
    stub, real = ({one["name"] for one in starting.targets(figures(), stub=stub)} for stub in (True, False))
    assert {name.partition(", ")[0] for name in real - stub} == {
        "docker run → cluster ready",
        "docker run → wait-ready returns",
        "docker run → first pod Running",
    }
    assert all("stub k3s" in name for name in stub - real)


@pytest.mark.parametrize(("stub", "text"), [(True, "**k3s is a stub here** (v1)"), (False, "k3s is real (v1).")])
def test_the_page_says_which_k3s_was_measured(stub: bool, text: str) -> None:
    document = json.loads((ROOT / "docs/benchmarks/start.json").read_text(encoding="utf-8"))
    page = starting.render({**document, "k3s": {"version": "v1", "stub": stub}})
    assert text in page
    assert ("The next step is to measure it with one" in page) is stub


def test_the_parts_of_a_bar_add_up_to_the_pod() -> None:
    ours, bare = (starting.segments(figures()["rounds"][kind][:1]) for kind in ("ours", "bare"))
    assert sum(ours.values()) == pytest.approx(2.6)
    assert sum(bare.values()) == pytest.approx(2.3)
    assert ours["our steps"] == pytest.approx(0.2)
    assert bare["k3s waits for dockerd"] == 0, "by hand it is started before dockerd answers"


def test_page_and_drawing_are_what_the_figures_give() -> None:
    folder = ROOT / "docs/benchmarks"
    document = json.loads((folder / "start.json").read_text(encoding="utf-8"))
    assert starting.render(document) == (folder / "start.md").read_text(encoding="utf-8")
    assert starting.draw(document) == (folder / "start.svg").read_text(encoding="utf-8")
