"""How `bench start` watches a box: when each stage of a start was reached, and which pods a stop lost."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import datetime
from enum import StrEnum
from functools import partial

from pipeline.bench import processes, reach
from pipeline.bench.boxes import Box, Kind
from pipeline.bench.reach import Cluster
from pipeline.core.errors import EngineError
from pipeline.rehearsal import pause

_POLL = 0.005  # seconds between two polls of a start
_POLL_PODS = 0.004  # seconds for each pod: a poll lists all of them, and must not cost more for many

# In the order of a start, each with what happens until then. Times are seconds since the clock of the command began.
STAGES = {
    "entrypoint": "engine, runc, bash",
    "dockerd exec": "until dockerd is executed",
    "dockerd answers": "dockerd starts",
    "cluster": "API, node and service account",
    "network": "flannel",
    "wait-ready": "until wait-ready returns",
    "pod": "first pod runs",
}
CPU = "processor"  # besides the stages: seconds that our first process and its children had used when dockerd came


class Until(StrEnum):
    """The last stage to wait for."""

    DOCKER = "dockerd answers"
    CLUSTER = "the cluster is ready"
    POD = "a new pod runs"
    SAME_POD = "the pod of an earlier start runs again"


def watch(box: Box, until: Until = Until.CLUSTER) -> dict[str, float]:
    """Poll a start until its last stage; return stage → seconds since `box.began`. Raises EngineError.

    A new pod is made as soon as pods can have a network: ours when wait-ready returns, by hand when node, account and
    network are there. One that is made before waits for kubelet's back-off, 10 s and more.
    """
    at: dict[str, float] = {}
    more: dict[str, float] = {}
    ours = box.kind is Kind.OURS
    if ours:
        at["dockerd exec"] = box.until("dockerd to be started", lambda: _has_dockerd(box), _POLL)
        more[CPU] = processes.cpu(box.pid)
    at["dockerd answers"] = box.until("dockerd to answer", lambda: reach.dockerd(box.pid, "GET", "/_ping"), _POLL)
    if until is not Until.DOCKER:
        with ThreadPoolExecutor(1) as pool, closing(Cluster(box.pid)) as cluster:
            load = partial(reach.dockerd, box.pid, "POST", "/images/load?quiet=1", content=box.place.pod)
            loading = pool.submit(load) if until is Until.POD else None
            at["cluster"] = box.until("the cluster to be ready", cluster.ready, _POLL)
            if not box.place.stub:  # which has no separate network
                at["network"] = _written(box, "run/flannel/subnet.env")
            if until is Until.SAME_POD:  # what the API reports of it may be from its earlier start
                at["pod"] = box.until("a pod to run again", lambda: reach.running_pods(box.pid) > 0)
            if ours:
                at["wait-ready"] = _written(box, "run/dind-k3s/ready/k8s")
            if loading is not None:
                loading.result()
                cluster.run("first", pause.NAME)
                at["pod"] = box.until("a pod to run", lambda: cluster.pods() > 0)
    if ours:
        at["entrypoint"] = _first_line(box)
    return {**{stage: at[stage] - box.began for stage in STAGES if stage in at}, **more}


def _has_dockerd(box: Box) -> bool:
    """Whether a child of the first process is dockerd; before, the child is the script that executes it."""
    for child in processes.children(box.pid):
        with suppress(OSError, IndexError):
            if processes.read(child).name == "dockerd":
                return True
    return False


def _written(box: Box, path: str) -> float:
    """Wait until a file has been written since the last start; return its time."""
    file = reach.root(box.pid) / path
    box.until(f"/{path} to be written", lambda: file.stat().st_mtime >= box.began, _POLL)
    return file.stat().st_mtime


def _first_line(box: Box) -> float:
    """Return when the entrypoint began: the time of its first line since the start, less the time in that line."""
    for line in str(box.place.client.logs(box.name, timestamps=True)).splitlines():
        if match := re.match(r"(\S+\.\d{6})\d*Z dind-k3s +(\d+\.\d+)s ", line):
            when = datetime.fromisoformat(f"{match[1]}+00:00").timestamp()
            if when >= box.began:
                return when - float(match[2])
    raise EngineError("the entrypoint has logged no step", found=box.last_lines())


def make_pods(box: Box, count: int) -> None:
    """Make `count` pods at once; return when dockerd runs all of them and the API reports them as Running."""
    with closing(Cluster(box.pid)) as cluster:
        before, known = reach.running_pods(box.pid), cluster.pods()
        for number in range(count):
            cluster.run(f"pod-{number}", pause.NAME)
        every = _POLL_PODS * count
        box.until(f"{count} pods to run", lambda: cluster.pods() >= known + count, every)
        box.until(f"{count} pods to be containers", lambda: reach.running_pods(box.pid) >= before + count, every)


def lost_pods(box: Box, count: int) -> int:
    """Wait until `count` pods run again after a start; return how many of them the API does not know any more."""
    box.until("all pods to run again", lambda: reach.running_pods(box.pid) >= count)
    with closing(Cluster(box.pid)) as cluster:
        return count - min(cluster.pods(None), reach.running_pods(box.pid))
