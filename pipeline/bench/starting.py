"""`bench start`: what the image costs beside the same dockerd and k3s started by hand in a bare container.

One private engine of the lock's own artifacts runs all of it; every round has both sides, in an order that turns.
What is measured: measures.py. What is compared: boxes.py.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bench import boxes, measures, plot, processes, report
from pipeline.bench.fetching import disk
from pipeline.bench.sizing import lock_of
from pipeline.core import cache as cached
from pipeline.core import machine, records
from pipeline.core.errors import IntentError
from pipeline.core.log import size
from pipeline.core.platforms import Platform
from pipeline.engine import daemon, engine, sandbox
from pipeline.inputs.lock import Lock
from pipeline.oci import layout
from pipeline.rehearsal import overlay, pause
from pipeline.smoke import load

if TYPE_CHECKING:
    from pipeline.workflow import Run

OWN_WORK = 0.5  # seconds, container start → dockerd exec
RATIO = 1.10  # the most that any start may take, compared with the same by hand
STOP = 10.0  # seconds: then docker kills
MEMORY = 40_000_000  # bytes
CPU = 0.5  # percent of a core

WINDOW = 30.0  # seconds
_OVERLAID = "dind-k3s.local/bench:1"

# The timeline: from a stage to the next one, what happens. Stages that one side does not have are left out there.
_SEGMENTS = {
    "first process": "the engine makes it",
    "entrypoint": "runc, bash",
    "supervisor": "our steps",
    "dockerd exec": "until dockerd is executed",
    "dockerd answers": "dockerd starts",
    "k3s exec": "k3s waits for dockerd",
    "cluster": "k3s starts",
    "network": "pods' network",
    "cluster is told": "until wait-ready returns",
    "pod": "first pod",
}


def main(run: Run, *, runs: int, write: bool, check: bool, rootfs: bool) -> dict[str, Any]:
    """Measure, print, compare or write. Raises EngineError, IntentError, Slower."""
    image = records.Image.read(run.dist)
    own = lock_of(run, image)
    if rootfs and not image.rehearsed:
        raise IntentError("--rootfs changes the image, and this one is for use", next_step="--dist dist/rehearsal")
    before = os.getloadavg()[0]
    with prepared(run, image, own, rootfs=rootfs) as place:
        found = {
            "rounds": measures.rounds(place, runs, run.log),
            "idle": measures.idle(place, runs, WINDOW, run.log),
        }
        k3s = {"version": place.k3s, "stub": place.stub}
    document = describe(measures.rounded(found), runs, image, own, k3s=k3s, rootfs=rootfs)
    document["machine"]["load"] = [round(before, 1), round(os.getloadavg()[0], 1)]
    files = {"md": render(document), "svg": draw(document)}
    report.finish("start", document, files, run.root, run.log, write=write, check_=check)
    return document


@contextmanager
def prepared(run: Run, image: records.Image, own: Lock, *, rootfs: bool) -> Iterator[boxes.Place]:
    """A private engine that has the image and nothing else."""
    machine.require_linux_root("a benchmark of the start")
    machine.ensure([*sandbox.TOOLS, "dpkg-deb"], run.log)
    host = Platform.host()
    if host not in image.platforms:
        raise IntentError(f"the image has no platform that this machine runs: {', '.join(image.platforms)}")
    assert host is not None
    folder = Path(tempfile.mkdtemp(prefix="dind-k3s-bench-", dir=disk()))
    try:
        pod = pause.archive(busybox(cached.require(run.cache, own.busybox(host).digest)), host)
        binaries = engine.unpack(own, run.cache)
        with daemon.run(binaries, folder / "engine", run.log, sandboxed=True, network=False) as client:
            with run.log.step("the image into a private engine"):
                name = load.run(client, layout.read(run.dist / "image", image.digest), image, host, run.log).name
                if rootfs:
                    context = folder / "context"
                    context.mkdir()
                    overlay.build(client, name, _OVERLAID, run.root, context)
                    name = _OVERLAID
            yield boxes.place(client, name, pod, folder)
    finally:
        shutil.rmtree(folder)


def busybox(package: Path) -> bytes:
    """The static busybox of Debian's package, the one program of the pods."""
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        content = archive.extractfile("./usr/bin/busybox")
        assert content is not None
        return content.read()


def describe(
    found: Mapping[str, Any], runs: int, image: records.Image, own: Lock, *, k3s: Mapping[str, Any], rootfs: bool
) -> dict[str, Any]:
    """Return everything that a reader needs to judge or repeat it; `k3s`: its version, and whether it is a stub."""
    return {
        "rehearsed": image.rehearsed,
        "k3s": dict(k3s),
        "overlaid": rootfs,
        "image": image.annotations.get("org.opencontainers.image.version", ""),
        "rounds": runs,
        "machine": {**report.machine(), "cgroup": 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1},
        "versions": {name: own.versions[name] for name in ("docker", "k3s")},
        "clamped": not machine.has_capability(machine.CAP_SYS_RESOURCE),
        "targets": targets(found, stub=bool(k3s["stub"])),
        "figures": dict(found),
    }


def targets(found: Mapping[str, Any], *, stub: bool) -> list[dict[str, Any]]:
    """Return the ratios; each of one round, or the figure of each round where there is no other side.

    `stub`: k3s is one. Ratios that depend on k3s say so in their names, so that --check compares no stub with a real
    one.
    """
    rounds = found["rounds"]
    ours, bare = rounds["ours"], rounds["bare"]
    alone = list(zip(rounds["docker alone, ours"], rounds["docker alone, dind"], strict=True))
    pairs = list(zip(ours, bare, strict=True))
    by_hand = "compared with by hand" + (", stub k3s" if stub else "")
    return [
        report.target("own work, our first line → dockerd exec", [_own_work(one) for one in ours], OWN_WORK, unit="s"),
        report.target("processor time of our own work", [one[boxes.CPU] for one in ours], OWN_WORK, unit="s"),
        report.target(f"docker run → cluster ready, {by_hand}", [a["cluster"] / b["cluster"] for a, b in pairs], RATIO),
        report.target(
            f"docker run → wait-ready returns, {by_hand}", [a["cluster is told"] / _usable(b) for a, b in pairs], RATIO
        ),
        report.target(f"docker run → first pod Running, {by_hand}", [a["pod"] / b["pod"] for a, b in pairs], RATIO),
        report.target(
            "K3S_DISABLE=1: docker run → dockerd answers, compared with plain dockerd",
            [a["dockerd answers"] / b["dockerd answers"] for a, b in alone],
            RATIO,
        ),
        report.target(
            f"docker stop, {measures.STUBBORN} pods that ignore SIGTERM",
            [seconds for seconds, _ in rounds["stop, ours"]],
            STOP,
            unit="s",
        ),
        report.target("the same: exit codes that are not 0", [min(1, code) for _, code in rounds["stop, ours"]], 0),
        report.target("pods lost by a restart, a SIGKILL, a stop", [max(0, count) for count in rounds["lost"]], 0),
        report.target("idle: memory of ours", [memory_of_ours(found["idle"]) / 1e6], MEMORY / 1e6, unit="MB"),
        report.target("idle: CPU of ours, of a core", cpu_of_ours(found["idle"]), CPU, unit="%"),
    ]


def _usable(one: Mapping[str, float]) -> float:
    """Return when pods can be made by hand: cluster and network are there. The stub has no network of its own."""
    return max(one["cluster"], one.get("network", 0.0))


def _own_work(one: Mapping[str, float]) -> float:
    return one["dockerd exec"] - one["entrypoint"]


def memory_of_ours(idle: Mapping[str, Any]) -> int:
    """Bytes (PSS)."""
    return sum(one["proportional"] for one in idle["ours"])


def cpu_of_ours(idle: Mapping[str, Any]) -> list[float]:
    """Percent of a core in each window, with the health check."""
    return [window[processes.OURS] + idle["health check"] for window in idle["cpu"]]


def medians(starts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Stage → its median, in the order of STAGES."""
    return {
        stage: statistics.median(one[stage] for one in starts)
        for stage in boxes.STAGES
        if all(stage in one for one in starts)
    }


def segments(starts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What happens → its seconds: the differences of the medians, in their order."""
    at = {stage: when for stage, when in medians(starts).items() if stage in _SEGMENTS}
    found, before = {}, 0.0
    for stage, when in at.items():
        found[_SEGMENTS[stage]] = max(0.0, when - before)
        before = max(before, when)
    return found


def draw(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/start.svg."""
    rounds = document["figures"]["rounds"]
    names = {"ours": "docker run", "bare": "by hand", "restart": "docker restart", "SIGKILL and start": "after SIGKILL"}
    rows = [plot.Row(name=name, parts=segments(rounds[key])) for key, name in names.items()]
    return plot.bars("From the command to a running pod: where the seconds go", rows, "s")


def render(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/start.md."""
    found = document["figures"]
    rounds = found["rounds"]
    lines = [
        "# Benchmark: start",
        "",
        f"Written by `{report.command('start', document)}`; every figure: [start.json](start.json).",
        "",
        f"The image {document['image']} on a private engine, {document['rounds']} rounds after one that warms up; in "
        "each the image, and by hand: the same image with another entrypoint, a script that starts dockerd, waits for "
        "its socket to be there, and starts k3s with the same arguments (pipeline/bench/boxes.py). The clock begins "
        "before `docker run`; both are watched from outside. `dind`: docker-init and dockerd, as docker:dind has them.",
        *_remarks(document),
        "",
        *report.machine_lines(document),
        f"- cgroup v{document['machine']['cgroup']}",
        "",
        *report.targets_table(document["targets"]),
        "",
        "![where the seconds go](start.svg)",
        "",
        "## Stages",
        "",
        *report.table(
            ["seconds from the command", *_COLUMNS],
            [
                [f"{stage} ({what})", *cells]
                for stage, what in boxes.STAGES.items()
                if any(cells := [_cell(rounds[column], stage) for column in _COLUMNS])
            ],
        ),
        "",
        *_dominates(document),
        "",
        "## Our steps",
        "",
        *report.table(
            ["step", "median", "from", "to"],
            [
                [step, *(f"{1000 * value:.0f} ms" for value in (statistics.median(all_), min(all_), max(all_)))]
                for step, all_ in steps(rounds["steps"]).items()
            ],
        ),
        *_stops(rounds),
        *_idle(found["idle"]),
    ]
    return "\n".join(lines) + "\n"


_COLUMNS = ("ours", "bare", "restart", "SIGKILL and start", "docker alone, ours", "docker alone, dind")


def _remarks(document: Mapping[str, Any]) -> list[str]:
    lines = ["", _about_k3s(document)]
    before, after = document["machine"].get("load", (0, 0))
    if before > report.BUSY:
        lines += [
            "",
            f"**The machine was busy with other work** (load average {before:g} before, {after:g} after, on "
            f"{document['machine']['cores']} cores): seconds are several times what a quiet machine needs, and their "
            "limits are not to be judged by this run. Ratios and processor time are closer to the truth.",
        ]
    if document["overlaid"]:
        lines += ["", "The image is the rehearsed one with the rootfs/ of the checkout over it (`--rootfs`)."]
    if document["clamped"]:
        lines += [
            "",
            "Root lacks CAP_SYS_RESOURCE on this machine: both sides start inner containers through a wrapper of runc "
            "(pipeline/rehearsal/clamp.py), which costs each of them the start of a Python.",
        ]
    return lines


def _about_k3s(document: Mapping[str, Any]) -> str:
    version = document["k3s"]["version"]
    if document["k3s"]["stub"]:
        return (
            f"**k3s is a stub here** ({version}), which is ready in under a second where a real one takes ten and "
            "more. So the ratios of a whole start are those of the hardest case: our seconds are all there, and what "
            "they are divided by is missing. Memory and CPU of k3s and pods are the stub's, too."
        )
    return (
        f"k3s is real ({version}). Nothing can be pulled here, so on both sides its add-ons are disabled and its pause "
        "image is a static binary. The first pod is made as soon as pods can have a network: ours when wait-ready "
        "returns, by hand when node, service account and flannel's subnet.env are there."
    )


def _cell(starts: Sequence[Mapping[str, float]], stage: str) -> str:
    values = [one[stage] for one in starts if stage in one]
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def steps(rounds: Sequence[Sequence[Sequence[Any]]]) -> dict[str, list[float]]:
    """Step → its seconds in each round, in the order of the steps; one that a round did not have took nothing."""
    tables = [{str(step): float(seconds) for step, seconds in one} for one in rounds]
    order = dict.fromkeys(step for one in tables for step in one)
    return {step: [one.get(step, 0.0) for one in tables] for step in order}


def _dominates(document: Mapping[str, Any]) -> list[str]:
    rounds = document["figures"]["rounds"]
    ours, bare = segments(rounds["ours"]), segments(rounds["bare"])
    at, by_hand = medians(rounds["ours"]), medians(rounds["bare"])
    more = at["cluster"] - by_hand["cluster"]
    own = {name: ours[name] for name in ("our steps", "until dockerd is executed", "k3s waits for dockerd")}
    told = ", ".join(f"{name} {value:.2f} s" for name, value in sorted(own.items(), key=lambda item: -item[1]))
    top = sorted(steps(rounds["steps"]).items(), key=lambda item: -statistics.median(item[1]))[:3]
    slow = ", ".join(f"{name} {1000 * statistics.median(values):.0f} ms" for name, values in top)
    pod = at["pod"] - by_hand["pod"]
    lines = [
        f"The cluster is ready {more:.2f} s later than by hand, the first pod runs {pod:.2f} s later. Ours are: "
        f"{told}; the slowest steps are {slow}. dockerd itself takes {ours['dockerd starts']:.2f} s "
        f"({bare['dockerd starts']:.2f} s by hand), k3s {ours['k3s starts']:.2f} s ({bare['k3s starts']:.2f} s).",
    ]
    if document["k3s"]["stub"]:
        lines.append(
            f"The ratio holds where by hand takes {more / (RATIO - 1):.0f} s or more, if the difference stays the same "
            "with a real k3s; that is a calculation and not a measurement. The next step is to measure it with one: "
            "`nox -s rehearse -- --k3s …` and this command again, or [bench.yml](../../.github/workflows/bench.yml)."
        )
    alone, plain = (medians(rounds[f"docker alone, {kind}"])["dockerd answers"] for kind in ("ours", "dind"))
    lines.append(
        f"With K3S_DISABLE=1 dockerd answers {alone - plain:.2f} s later than a plain one, which needs {plain:.2f} s: "
        "a tenth of that is little more than the start of a Python. Those seconds are what makes the image start on "
        "any cgroup, iptables and storage, and say what it lacks; the next step would be to do before dockerd is "
        "executed only what it waits for."
    )
    return lines


def _stops(rounds: Mapping[str, Any]) -> list[str]:
    rows = [
        [name, *report.spread([seconds for seconds, _ in rounds[key]]), ", ".join(str(code) for _, code in rounds[key])]
        for name, key in (
            (f"ours, {measures.STUBBORN} pods", "stop, ours"),
            (f"dind, {measures.STUBBORN} containers", "stop, dind"),
        )
    ]
    return [
        "",
        "## `docker stop`, with what ignores SIGTERM",
        "",
        *report.table(["", "median", "from", "to", "exit codes"], rows),
        "",
        "137: docker's ten seconds were over and everything was killed.",
    ]


def _idle(idle: Mapping[str, Any]) -> list[str]:
    rows: list[list[object]] = [
        [one["name"], size(one["proportional"]), size(one["resident"]), f"{one['cpu']:.3f} %"]
        for one in sorted(idle["ours"], key=lambda one: -int(one["proportional"]))
    ]
    rows.append(["healthcheck, every 30 s", "", "", f"{idle['health check']:.3f} %"])
    rows += [
        [f"({group})", size(count), "", f"{statistics.median(window[group] for window in idle['cpu']):.3f} %"]
        for group, count in idle["memory"].items()
        if group != processes.OURS and count
    ]
    return [
        "",
        f"## Idle: a ready cluster without pods, windows of {idle['window']:g} s",
        "",
        *report.table(["process", "memory (PSS)", "resident", "of a core"], rows),
    ]
