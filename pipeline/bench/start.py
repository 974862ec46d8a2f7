"""`bench start`: what the image costs, compared with the same dockerd and k3s started by hand in a bare container.

One private engine of the lock's own artifacts runs all of it; every round has both sides, in an order that turns. What
is compared: boxes.py; how a start is watched: stages.py.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.bench import boxes, lab, processes, report, stages
from pipeline.bench.boxes import Box, Kind
from pipeline.bench.report import Document, Options, Page
from pipeline.bench.stages import Until, watch
from pipeline.core import cache as cached
from pipeline.core import records
from pipeline.core.errors import IntentError
from pipeline.core.log import Log, size
from pipeline.core.platforms import Platform
from pipeline.oci import layout
from pipeline.rehearsal import overlay, pause
from pipeline.smoke import load
from pipeline.workflow import Run

OWN_WORK = 0.5  # seconds, container start → dockerd exec
RATIO = 1.10  # the most that any start may take, compared with the same by hand
STOP = 10.0  # seconds: then docker kills
MEMORY = 40_000_000  # bytes
CPU = 0.5  # percent of a core

STUBBORN = 10  # pods that ignore SIGTERM, at a stop
WINDOW = 30.0  # seconds
_HEALTH_RUNS = 20  # of the health check, to have more than a clock tick
_HEALTH_EVERY = 30.0  # seconds between two of them (Dockerfile, HEALTHCHECK)
_OVERLAID = "dind-k3s.local/bench:1"

_STARTS = {
    "ours": "docker run",
    "bare": "by hand",
    "restart": "docker restart",
    "SIGKILL and start": "after SIGKILL",
    "docker alone, ours": "docker alone",
    "docker alone, dind": "plain dockerd",
}

Rounds = defaultdict[str, list[Any]]  # what → an entry for each round


def measure(run: Run, options: Options) -> dict[str, Any]:
    """Return the report. Raises EngineError, IntentError."""
    run, image = lab.of_image(run)
    if options.rootfs and not image.rehearsed:
        raise IntentError("--rootfs is for rehearsed images only", next_step="--dist dist/rehearsal")
    with prepared(run, image, rootfs=options.rootfs) as place:
        figures = {"rounds": rounds(place, options.runs, run.log), "idle": idle(place, options.runs, run.log)}
    return {
        **lab.described(run, image, "docker", "k3s"),
        "k3s": {"version": place.k3s, "stub": place.stub},
        "overlaid": options.rootfs,
        "rounds": options.runs,
        "machine": {"cgroup": 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1},
        "clamped": bool(place.clamp.extra_files),
        "targets": targets(figures, stub=place.stub),
        "figures": figures,
    }


@contextmanager
def prepared(run: Run, image: records.Image, *, rootfs: bool) -> Iterator[boxes.Place]:
    """Run a private engine that has the image and nothing else. Raises EngineError, IntentError."""
    host = Platform.host()
    if host is None or host not in image.platforms:
        raise IntentError(f"the image has no platform that this machine runs: {', '.join(image.platforms)}")
    with lab.workspace("a benchmark of the image", run.log) as folder:
        pod = pause.archive(busybox(cached.require(run.cache, run.lock.busybox(host).digest)), host)
        with lab.started(run.lock, run.cache, folder, run.log) as engine:
            with run.log.step("the image into a private engine"):
                whole = layout.read(run.dist / records.LAYOUT, image.digest)
                name = load.run(engine.client, whole, image, host, run.log).name
                if rootfs:
                    context = folder / "context"
                    context.mkdir()
                    overlay.build(engine.client, name, _OVERLAID, run.root, context)
                    name = _OVERLAID
            yield boxes.place(engine.client, name, pod, folder)


def busybox(package: Path) -> bytes:
    """Return the static busybox of Debian's package, the one program of the pods."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
        return (Path(folder) / "usr/bin/busybox").read_bytes()


def rounds(place: boxes.Place, runs: int, log: Log) -> Rounds:
    """Return the figures of all starts, restarts and stops; a first round only warms up."""
    results: Rounds = defaultdict(list)
    for number in range(runs + 1):
        kept: Rounds = defaultdict(list)
        turn = 1 if number % 2 else -1
        with log.step(f"round {number} of {runs}" if number else "warm-up round"):
            for kind in (Kind.OURS, Kind.BARE)[::turn]:
                with boxes.box(place, kind) as box:
                    kept[kind].append(watch(box, Until.POD))
                    if kind is Kind.OURS and number:
                        _again(kept, box)
            for kind in (Kind.OURS, Kind.DIND)[::turn] if number else ():
                with boxes.box(place, kind, K3S_DISABLE="1") as box:
                    kept[f"docker alone, {kind}"].append(watch(box, Until.DOCKER))
        for name, values in kept.items() if number else ():
            results[name] += values
    return results


def _again(kept: Rounds, box: Box) -> None:
    """Restart; SIGKILL and start; stop with pods that ignore SIGTERM, and start. Adds times and lost pods to `kept`."""
    box.restart()
    kept["restart"].append(watch(box, Until.SAME_POD))
    box.kill()
    box.start()
    kept["SIGKILL and start"].append(watch(box, Until.SAME_POD))
    stages.make_pods(box, STUBBORN - 1)  # besides the first one
    kept["stop, ours"].append(box.stop())
    box.start()
    watch(box, Until.SAME_POD)
    kept["lost"].append(stages.lost_pods(box, STUBBORN))


def idle(place: boxes.Place, runs: int, log: Log) -> dict[str, Any]:
    """Measure our processes in a ready cluster without pods: memory, and percent of a core in `runs` windows."""
    with log.step(f"idle, {runs} × {WINDOW:g} s"), boxes.box(place, Kind.OURS) as box:
        watch(box)
        time.sleep(5.0)  # the watchers slow down once it is ready
        windows = []
        for _ in range(runs):
            before, started = _cpu(box), time.monotonic()
            time.sleep(WINDOW)
            windows.append({"ours": 100 * (_cpu(box) - before) / (time.monotonic() - started)})
        ours = [
            {"name": " ".join(process.line), "proportional": processes.proportional(process.pid)}
            for process in processes.ours(box.pid)
        ]
        return {"window": WINDOW, "cpu": windows, "health check": health(box), "ours": ours}


def _cpu(box: Box) -> float:
    return sum(processes.cpu(process.pid) for process in processes.ours(box.pid))


def health(box: Box) -> float:
    """Return the percent of a core that the health check costs inside, at its interval."""
    script = f"for ((n = 0; n < {_HEALTH_RUNS}; n++)); do healthcheck; done >/dev/null; times"
    output = str(box.place.client.execute(box.name, ["bash", "-c", script]))
    minutes = re.findall(r"(\d+)m([\d.]+)s", output)[2:]  # the second line: of the children
    seconds = sum(60 * int(minute) + float(second) for minute, second in minutes)
    return 100 * seconds / _HEALTH_RUNS / _HEALTH_EVERY


def targets(figures: Mapping[str, Any], *, stub: bool) -> list[dict[str, Any]]:
    """Return the ratios; each of one round, or the figure of each round where there is no other side.

    `stub`: k3s is one. Ratios that depend on k3s say so in their names, so that --check compares no stub with a real
    one.
    """
    rounds, idle = figures["rounds"], figures["idle"]
    ours, stops = rounds["ours"], rounds["stop, ours"]
    pairs = list(zip(ours, rounds["bare"], strict=True))
    alone = zip(rounds["docker alone, ours"], rounds["docker alone, dind"], strict=True)
    own_work = [start["dockerd exec"] - start["entrypoint"] for start in ours]
    ready = [start["cluster"] / by_hand["cluster"] for start, by_hand in pairs]
    # By hand pods can be made when cluster and network are there. The stub has no separate network.
    usable = [max(by_hand["cluster"], by_hand.get("network", 0.0)) for by_hand in rounds["bare"]]
    returns = [start["wait-ready"] / when for start, when in zip(ours, usable, strict=True)]
    running = [start["pod"] / by_hand["pod"] for start, by_hand in pairs]
    docker = [start["dockerd answers"] / by_hand["dockerd answers"] for start, by_hand in alone]
    memory = sum(process["proportional"] for process in idle["ours"]) / 1e6
    cpu = [window["ours"] + idle["health check"] for window in idle["cpu"]]
    compared, target = "compared with by hand" + (", stub k3s" if stub else ""), report.target
    return [
        target("own work, our first line → dockerd exec", own_work, OWN_WORK, unit="s"),
        target("processor time of our own work", [start[stages.CPU] for start in ours], OWN_WORK, unit="s"),
        target(f"docker run → cluster ready, {compared}", ready, RATIO),
        target(f"docker run → wait-ready returns, {compared}", returns, RATIO),
        target(f"docker run → first pod Running, {compared}", running, RATIO),
        target("K3S_DISABLE=1: docker run → dockerd answers, compared with plain dockerd", docker, RATIO),
        target(f"docker stop, {STUBBORN} pods that ignore SIGTERM", [seconds for seconds, _ in stops], STOP, unit="s"),
        target("the same: exit codes that are not 0", [min(1, code) for _, code in stops], 0),
        target("pods lost by a restart, a SIGKILL, a stop", [max(0, count) for count in rounds["lost"]], 0),
        target("idle: memory of ours", [memory], MEMORY / 1e6, unit="MB"),
        target("idle: CPU of ours, of a core", cpu, CPU, unit="%"),
    ]


def segments(starts: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, float, float]]:
    """Yield what happens, its begin and its end in seconds, by the medians of the stages."""
    before = 0.0
    for stage, what in stages.STAGES.items():
        if all(stage in start for start in starts):
            when = max(before, statistics.median(start[stage] for start in starts))
            yield what, before, when
            before = when


def page(document: Document) -> Page:
    """Return the stages of each kind of start, and the memory of an idle cluster."""
    rounds, idle = document["figures"]["rounds"], document["figures"]["idle"]
    bars = [(name, *segment) for key, name in _STARTS.items() for segment in segments(rounds[key])]
    cells = [
        [f"{stage} ({what})", *(_cell(rounds[key], stage) for key in _STARTS)] for stage, what in stages.STAGES.items()
    ]
    memory = [[process["name"], size(process["proportional"])] for process in idle["ours"]]
    facts = [
        f"image: {document['image']}, k3s {document['k3s']['version']}",
        f"idle: no pods, windows of {idle['window']:g} s; the health check is {idle['health check']:.3f} % of a core",
    ]
    if document["overlaid"]:
        facts.append("the rehearsed image, overlaid with the checkout's rootfs/ (`--rootfs`)")
    if document["clamped"]:
        facts.append("root lacks CAP_SYS_RESOURCE here: on both sides runc is started by pipeline/rehearsal/clamp.py")
    return Page(
        bars=bars,
        tables=[
            report.table("Stages", ["seconds from the command", *_STARTS.values()], cells),
            report.table("Idle: memory of ours", ["process", "PSS"], memory),
        ],
        facts=facts,
    )


def _cell(starts: Sequence[Mapping[str, float]], stage: str) -> str:
    values = [start[stage] for start in starts if stage in start]
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
