"""Pods and inner containers of a box, by the number: what `bench start` and `bench scale` measure."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from pipeline.bench import reach
from pipeline.bench.boxes import POD, Box
from pipeline.bench.reach import Cluster

_LOOK = 0.004  # seconds between two looks, for each pod: a look lists all of them, and shall not cost more for many
_AT_ONCE = 8  # inner containers that are started at the same time


def pods(box: Box, count: int, prefix: str = "pod") -> float:
    """Make `count` pods at once; return the seconds until dockerd runs all of them and the API says so."""
    with closing(Cluster(box.pid)) as cluster:
        before, known = box.pods_running(), cluster.pods()
        started = time.monotonic()
        for number in range(count):
            cluster.run(f"{prefix}-{number}", POD)
        every = _LOOK * count
        box.until(f"{count} pods to run", lambda: cluster.pods() >= known + count, every)
        box.until(f"{count} pods to be containers", lambda: box.pods_running() >= before + count, every)
        return time.monotonic() - started


def no_pods(box: Box, count: int, prefix: str = "pod") -> None:
    """Remove them again."""
    with closing(Cluster(box.pid)) as cluster:
        for number in range(count):
            cluster.delete(f"{prefix}-{number}")
        box.until("all pods to be removed", lambda: cluster.pods(None) == 0, _LOOK * count)
        box.until("their containers to be removed", lambda: reach.running(box.pid, "k8s_") == 0, _LOOK * count)


def lost(box: Box, count: int) -> int:
    """Wait until `count` pods run again after a start; return how many of them the API does not know any more."""
    box.until("all pods to run again", lambda: box.pods_running() >= count)
    with closing(Cluster(box.pid)) as cluster:
        return count - min(cluster.pods(None), box.pods_running())


def containers(box: Box, count: int) -> float:
    """Run `count` inner containers, some at the same time; return the seconds until all run."""
    started = time.monotonic()

    def run(number: int) -> None:
        made = reach.dockerd(box.pid, "POST", f"/containers/create?name=plain-{number}", json={"Image": POD}).json()
        reach.dockerd(box.pid, "POST", f"/containers/{made['Id']}/start")

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(run, range(count)))
    box.until(f"{count} containers to run", lambda: reach.running(box.pid, "/plain-") == count)
    return time.monotonic() - started


def no_containers(box: Box, count: int) -> None:
    """Remove them again."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda n: reach.dockerd(box.pid, "DELETE", f"/containers/plain-{n}?force=1"), range(count)))
