"""`bench scale`: whether what grows costs more than its share: files of the cache, tags of a registry, pods.

For each, the time at ten, a hundred, a thousand, and the exponent that fits: 1 is linear, less is better.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bench import measures, plot, processes, report, starting
from pipeline.bench.fetching import disk
from pipeline.bench.sizing import lock_of
from pipeline.core import cache as cached
from pipeline.core import machine, records
from pipeline.core.annotations import KEY
from pipeline.core.log import Log, size
from pipeline.core.names import INDEX, MANIFEST, Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.fetch import fetch
from pipeline.oci import layout
from pipeline.oci.registry import Registry
from pipeline.publish import retention
from pipeline.rehearsal import registry as local

if TYPE_CHECKING:
    from pipeline.workflow import Run

COUNTS = (10, 100, 1000)
PODS, CONTAINERS = (1, 10, 50, 100), (1, 10, 50)
FILLED = 3  # rounds at most of pods and containers, each in a container of its own
BESIDE = 1.10  # of what curl takes for the same requests
LINEAR = 1.10  # the exponent: a tenth for what a machine's noise does to a fit
FILE = 100_000  # bytes of a generated artifact

FETCH, LOOKUP, FEW = "fetch, all in the cache", "lookups in the cache", f"fetch of {COUNTS[0]} files, beside others"
PLAN, DELETE, LIST = "retention decides", "retention removes", "the registry lists its tags"
BARE = "the same requests by curl"  # beside DELETE: what is the registry's own
_AT_ONCE = 8
_TRIES = 5
_NOW = datetime(2026, 11, 1, tzinfo=UTC)
_OLD = timedelta(days=400)

Seconds = dict[str, dict[str, list[float]]]  # what → count, as text → seconds of each round


def main(run: Run, *, runs: int, write: bool, check: bool, counts: Sequence[int] = COUNTS) -> dict[str, Any]:
    """Measure, print, compare or write. Raises EngineError, IntentError, Slower."""
    image = records.Image.read(run.dist)
    own = lock_of(run, image)
    machine.require_linux_root("a benchmark of pods")
    machine.ensure(["docker-registry", "curl"], run.log)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="dind-k3s-bench-", dir=disk()) as name:
        with run.log.step(f"a cache with {', '.join(map(str, counts))} files"):
            found = caches(Path(name), run, runs, counts)
        with run.log.step(f"a registry with {', '.join(map(str, counts))} tags"):
            found |= registries(Path(name), run, runs, counts)
    with starting.prepared(run, image, own, rootfs=False) as place:
        many = []
        for number in range(1, min(runs, FILLED) + 1):
            with run.log.step(f"pods and inner containers, round {number} of {min(runs, FILLED)}"):
                many.append(measures.rounded(measures.scale(place, PODS, CONTAINERS, run.log)))
    document = describe(found, many, runs, rehearsed=image.rehearsed, stub=place.stub)
    document["versions"] = {name: own.versions[name] for name in ("docker", "k3s")}
    document["machine"]["load"] = round(load, 1)
    document = report.stored(document)
    files = {"md": render(document), "svg": draw(document)}
    report.finish("scale", document, files, run.root, run.log, write=write, check_=check)
    return document


def _timed(do: Callable[[], object], tries: int = 1) -> float:
    """Seconds; of several tries the least, for what is over before the machine does something else."""
    found = []
    for _ in range(tries):
        started = time.monotonic()
        do()
        found.append(time.monotonic() - started)
    return round(min(found), 6)


def caches(folder: Path, run: Run, runs: int, counts: Sequence[int]) -> Seconds:
    """Fetches that find everything, and lookups, with so many files; and one of a few in a cache of so many."""
    most = folder / "cache" / "sha256"
    most.mkdir(parents=True)
    chance = random.Random(1)
    wanted = []
    for number in range(max(counts)):
        data = chance.randbytes(FILE)
        digest = Digest.of(data)
        (most / digest.hex).write_bytes(data)
        wanted.append(fetch.Wanted(name=f"file {number}", urls=(), digest=digest, size=FILE))
    found: Seconds = {FETCH: {}, LOOKUP: {}, FEW: {}}
    quiet = Log(quiet=True)
    for count in counts:
        cache = folder / f"cache-{count}"
        (cache / "sha256").mkdir(parents=True)
        here, few = wanted[:count], wanted[: counts[0]]
        for file in here:
            cached.link(most / file.digest.hex, cached.path_of(cache, file.digest))
        todo: dict[str, Callable[[], object]] = {
            FETCH: partial(fetch.bring, here, cache, run.client, quiet, offline=True),
            LOOKUP: partial(_look_up, here, cache),
            FEW: partial(fetch.bring, few, cache, run.client, quiet, offline=True),
        }
        for what, do in todo.items():
            do()
            found[what][str(count)] = [_timed(do, _TRIES) for _ in range(runs)]
    return found


def _look_up(files: Sequence[fetch.Wanted], cache: Path) -> None:
    for file in files:
        cached.require(cache, file.digest)


def registries(folder: Path, run: Run, runs: int, counts: Sequence[int]) -> Seconds:
    """Retention over repositories with so many tags: the decision, then the removal, which can be had once.

    Beside the removal: a repository alike, of which curl removes the same manifests, one request after the other, too.
    """
    found: Seconds = {LIST: {}, PLAN: {}, DELETE: {}, BARE: {}}
    rule = retention.Rule(newest=3, younger=timedelta(days=90))
    program = machine.find("docker-registry") or "docker-registry"
    with local.serve(program, folder / "registry", local.free_ports()) as served:
        for count in counts:
            registry, alike = (
                Registry(run.client, ImageName(registry=served.host, repository=f"{of}/{count}"), served.credentials)
                for of in ("bench", "alike")
            )
            with run.log.step(f"{count} tags"):
                for one in (registry, alike):
                    fill(one, folder, count)
                found[LIST][str(count)] = [_timed(registry.tags, _TRIES) for _ in range(runs)]
                decide = partial(retention.plan, registry, rule, _NOW)
                found[PLAN][str(count)] = [_timed(decide) for _ in range(runs)]
                decided = decide()
                found[DELETE][str(count)] = [_timed(partial(_remove, registry, decided))]
                token = served.token(
                    [{"type": "repository", "name": alike.name.repository, "actions": ["pull", "delete"]}]
                )
                removals = _removals(alike, decided.digests, token).encode()
                curl = partial(subprocess.run, ["curl", "--fail-early", "--config", "-"], input=removals, check=True)
                found[BARE][str(count)] = [_timed(curl)]
    return found


def _remove(registry: Registry, decided: retention.Plan) -> None:
    for digest in decided.digests:
        registry.delete(digest)


def _removals(registry: Registry, digests: Sequence[Digest], token: str) -> str:
    """A configuration that has curl send them, over one connection."""
    lines = ["silent", "show-error", "fail", "request = DELETE", f'oauth2-bearer = "{token}"']
    return "\nnext\n".join("\n".join([f'url = "{registry.url}/manifests/{one}"', *lines]) for one in digests)


def fill(registry: Registry, folder: Path, count: int) -> None:
    """`count` tags: half of them releases for two platforms, ten to each k3s line, the others what is attached."""
    blobs = []
    for data, kind in ((b"{}", "config.v1+json"), (b"a layer", "layer.v1.tar+gzip")):
        path = folder / Digest.of(data).hex
        path.write_bytes(data)
        kind = f"application/vnd.oci.image.{kind}"
        blobs.append(layout.Part(digest=Digest.of(data), size=len(data), media_type=kind, path=path))
    registry.push_blobs(tuple(blobs), Log(quiet=True))
    config, layer = ({"mediaType": b.media_type, "digest": b.digest.text, "size": b.size} for b in blobs)

    def release_(number: int) -> None:
        said = {
            f"{KEY}.k3s": f"v1.{number // 10}.{number % 10}+k3s1",
            f"{KEY}.docker": "29.7.2",
            "org.opencontainers.image.created": (_NOW - _OLD).isoformat(),
        }
        entries = []
        for platform in Platform:
            about = {**said, "platform": platform.value}
            parts = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
            raw = json.dumps({**parts, "annotations": about}).encode()
            registry.tag(Digest.of(raw).text, raw, MANIFEST)
            at = {"os": "linux", "architecture": platform.architecture}
            entries.append({"mediaType": MANIFEST, "digest": Digest.of(raw).text, "size": len(raw), "platform": at})
        top = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries, "annotations": said}
        raw = json.dumps(top).encode()
        registry.tag(f"k3s-v1.{number // 10}.{number % 10}-k3s1-docker-29.7.2-r1", raw, INDEX)
        about_it = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
        signed = json.dumps({**about_it, "annotations": {"about": Digest.of(raw).text}}).encode()
        registry.tag(f"sha256-{Digest.of(raw).hex}", signed, MANIFEST)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(release_, range(count // 2)))


def exponent(points: Mapping[str, Sequence[float]]) -> float:
    """The slope of a line through the medians, both axes logarithmic. Pure."""
    xs = [math.log(float(count)) for count in points]
    ys = [math.log(max(1e-9, statistics.median(them))) for them in points.values()]
    x, y = statistics.fmean(xs), statistics.fmean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def last(points: Mapping[str, Sequence[float]]) -> float:
    """The same between the two largest counts alone, where what does not grow counts least. Pure."""
    return exponent(dict(list(points.items())[-2:]))


def describe(
    found: Seconds, many: Sequence[Mapping[str, Any]], runs: int, *, rehearsed: bool, stub: bool
) -> dict[str, Any]:
    """Return everything that a reader needs to judge or repeat it; `stub`: whether k3s is one."""
    return {
        "rehearsed": rehearsed,
        "stub k3s": stub,
        "rounds": runs,
        "machine": report.machine(),
        "targets": targets(found, many),
        "seconds": found,
        "boxes": list(many),
    }


def _points(many: Sequence[Mapping[str, Any]]) -> Seconds:
    """Pods and containers as the others: what → count, as text → seconds of each round."""
    return {
        what: {
            str(entry["count"]): [float(one[what][at]["seconds"]) for one in many]
            for at, entry in enumerate(many[0][what])
        }
        for what in ("pods", "containers")
    }


def targets(found: Seconds, many: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The exponents between the two largest counts, of each round, and what was lost."""
    lost = [max(entry["lost"] for entry in one["pods"]) for one in many]
    return [
        *(
            report.target(f"{what}: exponent, {' to '.join(list(points)[-2:])}", _each_round(points), LINEAR)
            for what, points in {**found, **_points(many)}.items()
            if what != BARE
        ),
        report.target(f"{DELETE}: beside {BARE}", _beside_curl(found), BESIDE),
        report.target("pods lost by a SIGKILL of the whole", lost, 0),
    ]


def _each_round(points: Mapping[str, Sequence[float]]) -> list[float]:
    rounds = zip(*points.values(), strict=True)
    return [last({count: [value] for count, value in zip(points, values, strict=True)}) for values in rounds]


def _beside_curl(found: Seconds) -> list[float]:
    """Retention's removals beside curl's, of the largest repository."""
    ours, bare = (list(found[what].values())[-1] for what in (DELETE, BARE))
    return [one / other for one, other in zip(ours, bare, strict=True)]


def draw(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/scale.svg: seconds for each one, beside those with ten."""
    rows = []
    for what, points in {**document["seconds"], **_points(document["boxes"])}.items():
        if what == FEW or "10" not in points:
            continue
        ten = statistics.median(points["10"]) / 10
        for count, values in points.items():
            if int(count) > 10:
                each = statistics.median(values) / int(count) / ten
                rows.append(plot.Row(name=f"{_SHORT.get(what, what)}, {count}", parts={"for each": each}, limit=1.0))
    return plot.bars("Time for each, beside ten: linear is 1, or less", rows, "×")


_SHORT = {FETCH: "fetch", LOOKUP: "lookups", PLAN: "decides", DELETE: "removes", LIST: "lists", BARE: "curl removes"}


def render(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/scale.md."""
    seconds = document["seconds"]
    counts = list(next(iter(seconds.values())))
    rows = [
        [
            what,
            *(_cell(points[count], int(count) if what != FEW else 1) for count in counts),
            f"{exponent(points):.2f}",
            f"{last(points):.2f}",
        ]
        for what, points in seconds.items()
    ]
    fitted = ", ".join(f"{what} {exponent(points):.2f}" for what, points in _points(document["boxes"]).items())
    lines = [
        "# Benchmark: scale",
        "",
        f"Written by `{report.command('scale', document)}`; every figure: [scale.json](scale.json).",
        "",
        f"Medians of {document['rounds']} rounds, of {len(document['boxes'])} for pods and containers; the exponent is "
        "the slope of a line through the logarithms: 1 is linear. Small counts have more of what does not grow, so "
        "what is judged is the exponent between the two largest.",
        *report.busy(document),
        "",
        *report.machine_lines(document),
        "",
        *report.targets_table(document["targets"]),
        "",
        "![time for each](scale.svg)",
        "",
        "## Cache and registry",
        "",
        *report.table(["", *counts, "exponent", "of the last two"], rows),
        "",
        f"Files of {size(FILE)}. Half of the tags are releases for two platforms, ten to each k3s line, the other half "
        "what is attached to them, in a real docker-registry on loopback; removals are those of all but the newest "
        "three of each line, once.",
        "",
        "**What dominates.** A fetch that finds everything reads and hashes every file, so bytes count and not their "
        "number; how many other files lie in the cache decides nothing. "
        f"Retention asks for each tag's manifest and each index's parts, {_each(seconds[PLAN])} a tag: the limit is "
        "the registry's time to answer. A removal is one request, for which docker-registry 2.8 reads every tag of the "
        "repository: with n tags and as many removals its own work grows with their square, whoever asks. curl, with "
        f"the same requests to a repository alike, has the exponent {last(seconds[BARE]):.2f}, and ours takes "
        f"{statistics.median(_beside_curl(seconds)):.2f} × its time. The next step would be a registry that knows "
        "which tags a manifest has.",
        "",
        "## Pods and inner containers",
        *(["", "k3s is a stub here: its own memory and time are not a real one's."] if document["stub k3s"] else []),
        *_many(document["boxes"]),
        "",
        f"Processor time is that of {', '.join(_STARTERS.values())}.",
        "",
        f"Exponents over all counts: {fitted}. {_starting(document)}",
    ]
    return "\n".join(lines) + "\n"


def _many(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables of many pods and of many inner containers, an empty line before each; medians of the rounds."""
    lines = []
    for what in ("pods", "containers"):
        rows = []
        for them in zip(*(one[what] for one in rounds), strict=True):
            count = them[0]["count"]
            seconds = [entry["seconds"] for entry in them]
            middle = statistics.median(seconds)
            whole = statistics.median(sum(entry["memory"].values()) for entry in them)
            ours = statistics.median(entry["memory"][processes.OURS] for entry in them)
            cells = [
                count,
                f"{middle:.2f} s ({min(seconds):.2f}-{max(seconds):.2f})",
                f"{1000 * middle / count:.0f} ms",
                " + ".join(f"{_processor(them, group):.0f}" for group in _STARTERS) + " ms",
            ]
            cells += [size(round(whole)), size(round(ours))]
            if what == "pods":
                cells.append(f"{statistics.median(entry['removed in'] for entry in them):.1f} s")
                back = [entry["back after"] for entry in them if "back after" in entry]
                lost = max(entry["lost"] for entry in them)
                cells.append(f"{statistics.median(back):.1f} s, {lost} lost" if back else "")
            rows.append(cells)
        name = f"inner {what}" if what == "containers" else what
        columns = [name, "all run after", "each", "processor for each", "memory", "of it ours"]
        more = ["removed in", "after SIGKILL and start all run in"] if what == "pods" else []
        lines += ["", *report.table([*columns, *more], rows)]
    return lines


_STARTERS = {processes.DOCKER: "dockerd and containerd", processes.SHIMS: "shims and runc", processes.K3S: "k3s"}


def _processor(entries: Sequence[Mapping[str, Any]], group: str) -> float:
    """Milliseconds of processor time that a group used for each pod or container; median of the rounds."""
    each: list[float] = [1000 * entry["processor"].get(group, 0.0) / entry["count"] for entry in entries]
    return statistics.median(each)


def _starting(document: Mapping[str, Any]) -> str:
    """What starting a pod costs and whose it is; when it grows, what grows most."""
    few, many = ([one["pods"][at] for one in document["boxes"]] for at in (-2, -1))
    before, after = ({group: _processor(entries, group) for group in _STARTERS} for entries in (few, many))
    parts = ", ".join(f"{_STARTERS[group]} {before[group]:.0f} and {after[group]:.0f} ms" for group in _STARTERS)
    text = (
        f"Processor time for each of {few[0]['count']} and of {many[0]['count']} pods: {parts}. What dominates is runc "
        "and its shim, started once for each."
    )
    target = next(one for one in document["targets"] if one["name"].startswith("pods: exponent"))
    if not target["holds"]:
        most = max(_STARTERS, key=lambda group: after[group] - before[group])
        text += f" The exponent of the pods does not hold, and what grows most is {_STARTERS[most]}"
        stub = most == processes.K3S and document["stub k3s"]
        text += ", a stub: the next step is to measure with a real one." if stub else "."
    return text


def _cell(values: Sequence[float], count: int) -> str:
    middle = statistics.median(values)
    whole = f"{1000 * middle:.1f} ms" if middle < 1 else f"{middle:.1f} s"
    return f"{whole} ({1000 * middle / count:.2f} ms each)" if count > 1 else whole


def _each(points: Mapping[str, Sequence[float]]) -> str:
    count, values = list(points.items())[-1]
    return f"{1000 * statistics.median(values) / int(count):.1f} ms"
