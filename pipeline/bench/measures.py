"""What `bench start` measures, in rounds that meet both sides: starts, stops, what idles; and `bench scale`: many.

Everything that comes out is plain data, ready for JSON; starting.py and scaling.py make ratios and text of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pipeline.bench import boxes, processes
from pipeline.bench.boxes import IN_POD, POD, Box, Kind, Place
from pipeline.core.log import Log

STUBBORN = 10  # pods that ignore SIGTERM, at a stop
_HEALTH_RUNS = 20  # of the health check, to have more than a clock tick
_HEALTH_EVERY = 30.0  # seconds between two of them (Dockerfile, HEALTHCHECK)
_LOOK = 0.004  # seconds between two looks, for each pod: a look lists all of them, and shall not cost more for many
_AT_ONCE = 8  # inner containers that are started at the same time

Figures = dict[str, Any]


def rounds(place: Place, runs: int, log: Log, *, warm_up: bool = True) -> Figures:
    """Starts, starts again and stops: what → a list with an entry for each round."""
    found: dict[str, list[Any]] = {}
    for number in range(0 if warm_up else 1, runs + 1):
        kept: dict[str, list[Any]] = {}
        with log.step("a round that only warms up" if not number else f"round {number} of {runs}"):
            for kind in (Kind.OURS, Kind.BARE) if number % 2 else (Kind.BARE, Kind.OURS):
                with boxes.box(place, kind) as box:
                    _add(kept, kind, boxes.watch(box, pod=True))
                    if kind is Kind.OURS:
                        _add(kept, "steps", boxes.step_seconds(box.log(box.began)))
                        if number:
                            _again(kept, box)
            if number:
                for kind in (Kind.OURS, Kind.DIND) if number % 2 else (Kind.DIND, Kind.OURS):
                    with boxes.box(place, kind, K3S_DISABLE="1") as box:
                        _add(kept, f"docker alone, {kind}", boxes.watch(box, cluster=False))
                        if kind is Kind.DIND:
                            box.dockerd.load(place.pod)
                            containers(box, STUBBORN)
                            _add(kept, f"stop, {kind}", list(box.stop()))
        if number:
            for name, values in kept.items():
                found.setdefault(name, []).extend(values)
    return found


def _add(kept: dict[str, list[Any]], name: str, value: object) -> None:
    kept.setdefault(name, []).append(value)


def _again(kept: dict[str, list[Any]], box: Box) -> None:
    """Restart, SIGKILL and start, stop with pods that ignore SIGTERM and start: each with what was lost by it."""
    box.restart()
    _add(kept, "restart", boxes.watch(box, pod=True, first=False))
    box.kill_and_start()
    _add(kept, "SIGKILL and start", boxes.watch(box, pod=True, first=False))
    pods(box, STUBBORN - 1, prefix="stubborn")  # beside the first one
    _add(kept, "stop, ours", list(box.stop()))
    box.start()
    boxes.watch(box, pod=True, first=False)
    _add(kept, "lost", _lost(box, STUBBORN))


def _lost(box: Box, count: int) -> int:
    """How many pods of `count` do not run again before the deadline."""
    box.until("all pods to run again", lambda: box.dockerd.running(IN_POD) >= count)
    cluster = box.cluster
    there = cluster.pods(None)
    cluster.close()
    return count - min(there, box.dockerd.running(IN_POD))


def pods(box: Box, count: int, prefix: str = "pod") -> float:
    """Make `count` pods at once; seconds until dockerd runs all of them and the API says so."""
    cluster = box.cluster
    before, said = box.dockerd.running(IN_POD), cluster.pods()
    started = time.monotonic()
    for number in range(count):
        cluster.run(f"{prefix}-{number}", POD)
    every = _LOOK * count
    box.until(f"{count} pods to run", lambda: cluster.pods() >= said + count, every=every)
    box.until(f"{count} pods to be containers", lambda: box.dockerd.running(IN_POD) >= before + count, every=every)
    cluster.close()
    return time.monotonic() - started


def no_pods(box: Box, count: int, prefix: str = "pod") -> float:
    """Remove them again; seconds until none is left."""
    cluster = box.cluster
    started = time.monotonic()
    for number in range(count):
        cluster.delete(f"{prefix}-{number}")

    def gone() -> bool:
        return cluster.pods(None) == 0 and box.dockerd.running("k8s_") == 0

    box.until("all pods to be gone", gone, every=_LOOK * count)
    cluster.close()
    return time.monotonic() - started


def containers(box: Box, count: int) -> float:
    """`docker run --detach` of `count` inner containers, some at the same time; seconds until all run."""
    started = time.monotonic()

    def run(number: int) -> None:
        made = box.dockerd.ask("POST", f"/containers/create?name=plain-{number}", {"Image": POD})
        box.dockerd.ask("POST", f"/containers/{made['Id']}/start")

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(run, range(count)))
    box.until(f"{count} containers to run", lambda: box.dockerd.running("/plain-") == count)
    return time.monotonic() - started


def no_containers(box: Box, count: int) -> None:
    """Remove them again."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda n: box.dockerd.ask("DELETE", f"/containers/plain-{n}?force=1"), range(count)))


def memory(box: Box) -> dict[str, int]:
    """Bytes (PSS) by whose they are."""
    return {
        group: sum(processes.memory(one.pid).proportional for one in them)
        for group, them in processes.groups(box.pid).items()
    }


def idle(place: Place, runs: int, window: float, log: Log) -> Figures:
    """A ready cluster without pods: what every process of ours has, and what it used in each of `runs` windows."""
    with log.step(f"idle, {runs} × {window:g} s"), boxes.box(place, Kind.OURS) as box:
        boxes.watch(box)
        time.sleep(min(5.0, window))  # the watchers slow down once it is ready
        windows = []
        for _ in range(runs):
            before = _cpu(box)
            started = time.monotonic()
            time.sleep(window)
            took = time.monotonic() - started
            after = _cpu(box)
            used = {
                group: sum(after[group].get(pid, 0.0) - before[group].get(pid, 0.0) for pid in after[group])
                for group in after
            }
            windows.append({group: round(100 * seconds / took, 4) for group, seconds in used.items()})
        ours = [
            {
                "name": label(one.line) or one.name,
                "proportional": processes.memory(one.pid).proportional,
                "resident": processes.memory(one.pid).resident,
                "cpu": round(100 * (processes.cpu(one.pid) - before[processes.OURS].get(one.pid, 0.0)) / took, 4),
            }
            for one in processes.groups(box.pid)[processes.OURS]
        ]
        return {"window": window, "cpu": windows, "health check": _health(box), "ours": ours, "memory": memory(box)}


def label(line: Sequence[str]) -> str:
    """A command line in short: programs without their folders, no options."""
    return " ".join([word.rpartition("/")[2] for word in line if not word.startswith("-")][:3])


def _cpu(box: Box) -> dict[str, dict[int, float]]:
    return {
        group: {one.pid: processes.cpu(one.pid) for one in them} for group, them in processes.groups(box.pid).items()
    }


def _health(box: Box) -> float:
    """Percent of a core that the health check costs inside, at its interval."""
    script = f"for ((n = 0; n < {_HEALTH_RUNS}; n++)); do healthcheck; done >/dev/null; times"
    said = str(box.place.client.execute(box.name, ["bash", "-c", script]))
    minutes = re.findall(r"(\d+)m([\d.]+)s", said)[2:]  # the second line: of the children
    seconds = sum(60 * int(minute) + float(second) for minute, second in minutes)
    return round(100 * seconds / _HEALTH_RUNS / _HEALTH_EVERY, 4)


def scale(place: Place, many_pods: Sequence[int], many_containers: Sequence[int], log: Log) -> Figures:
    """Many pods, then many inner containers: seconds, memory; what a SIGKILL of the whole loses of the most pods."""
    found: dict[str, list[Any]] = {"pods": [], "containers": []}
    with boxes.box(place, Kind.OURS) as box:
        boxes.watch(box)
        box.dockerd.load(place.pod)
        for count in many_pods:
            entry: Figures = {"count": count, **_timed(box, partial(pods, box, count)), "lost": 0}
            if count == many_pods[-1]:
                box.kill_and_start()
                boxes.watch(box)
                entry["lost"] = _lost(box, count)
                entry["back after"] = time.time() - box.began
            entry["removed in"] = no_pods(box, count)
            found["pods"].append(entry)
            log.say(f"{count} pods: {entry['seconds']:.1f} s")
        for count in many_containers:
            entry = {"count": count, **_timed(box, partial(containers, box, count))}
            found["containers"].append(entry)
            no_containers(box, count)
            log.say(f"{count} containers: {entry['seconds']:.1f} s")
    return found


def _timed(box: Box, do: Callable[[], float]) -> Figures:
    """Its seconds, the processor time that went into it by whose it is, and the memory afterwards."""
    before = processes.used_by(box.pid)
    seconds = do()
    used = {group: value - before.get(group, 0.0) for group, value in processes.used_by(box.pid).items()}
    return {"seconds": seconds, "processor": used, "memory": memory(box)}


def rounded(found: Mapping[str, Any]) -> Figures:
    """Milliseconds are enough."""
    return {name: _rounded(value) for name, value in found.items()}


def _rounded(value: object) -> object:
    match value:
        case float():
            return round(value, 3)
        case dict():
            return {name: _rounded(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_rounded(inner) for inner in value]
    return value
