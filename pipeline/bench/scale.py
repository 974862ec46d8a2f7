"""`bench scale`: whether what grows costs more than its share: files of the cache, tags of a registry, pods.

For each, the time at ten, a hundred, a thousand, and the exponent that fits: 1 is linear, less is better.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.bench import boxes, lab, measures, reach, report, start
from pipeline.bench.boxes import Kind
from pipeline.bench.report import Document, Options, Page, Table
from pipeline.core import cache as cached
from pipeline.core import machine
from pipeline.core.annotations import KEY
from pipeline.core.log import Log, size
from pipeline.core.names import INDEX, MANIFEST, Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.fetch import fetch
from pipeline.oci import layout
from pipeline.oci.registry import Registry
from pipeline.publish import retention
from pipeline.rehearsal import registry as local
from pipeline.workflow import Run

COUNTS = (10, 100, 1000)
PODS, CONTAINERS = (1, 10, 50, 100), (1, 10, 50)
BESIDE = 1.10  # of what curl takes for the same requests
LINEAR = 1.10  # the exponent: a tenth for what a machine's noise does to a fit
FILE = 100_000  # bytes of a generated artifact

FETCH, LOOKUP, FEW = "fetch, all in the cache", "lookups in the cache", f"fetch of {COUNTS[0]} files, beside others"
PLAN, DELETE, LIST = "retention decides", "retention removes", "the registry lists its tags"
BARE = "the same requests by curl"  # compared with DELETE: what is the registry's own
_AT_ONCE = 8
_TRIES = 5
_NOW = datetime(2026, 11, 1, tzinfo=UTC)

Seconds = dict[str, dict[str, list[float]]]  # what → count, as text → seconds of each round
Boxes = Sequence[Mapping[str, Any]]  # one round each: pods and containers → an entry for each count


def measure(run: Run, options: Options, counts: Sequence[int] = COUNTS) -> dict[str, Any]:
    """Return the report. Raises EngineError, IntentError."""
    subject = lab.Subject.read(run)
    machine.require_linux_root("a benchmark of pods")
    machine.ensure(["docker-registry", "curl"], run.log)
    runs = options.runs
    with lab.temporary() as folder:
        with run.log.step(f"a cache with {', '.join(map(str, counts))} files"):
            seconds = caches(folder, run, runs, counts)
        with run.log.step(f"a registry with {', '.join(map(str, counts))} tags"):
            seconds |= registries(folder, run, runs, counts)
    with start.prepared(run, subject, rootfs=False) as place:
        many: list[dict[str, Any]] = []
        for number in range(1, runs + 1):
            with run.log.step(f"pods and inner containers, round {number} of {runs}"):
                many.append(fill_box(place, run.log))
    return {
        **subject.described("docker", "k3s"),
        "stub k3s": place.stub,
        "rounds": runs,
        "targets": targets(seconds, many),
        "seconds": seconds,
        "boxes": many,
    }


def _timed(do: Callable[[], object], tries: int = 1) -> float:
    """Return seconds; of several tries the least, for what is over before the machine does something else."""
    seconds = []
    for _ in range(tries):
        started = time.monotonic()
        do()
        seconds.append(time.monotonic() - started)
    return min(seconds)


def _each(do: Callable[[Digest], object], digests: Iterable[Digest]) -> None:
    for digest in digests:
        do(digest)


def _file(number: int) -> bytes:
    return random.Random(number).randbytes(FILE)


def caches(folder: Path, run: Run, runs: int, counts: Sequence[int]) -> Seconds:
    """Time fetches that find everything, and lookups, with so many files; and one of a few in a cache of so many."""
    wanted = [
        fetch.Wanted(name=f"file {number}", urls=(), digest=Digest.of(_file(number)), size=FILE)
        for number in range(max(counts))
    ]
    results: Seconds = {FETCH: {}, LOOKUP: {}, FEW: {}}
    for count in counts:
        cache, here, few = folder / f"cache-{count}", wanted[:count], wanted[: counts[0]]
        (cache / "sha256").mkdir(parents=True)
        for number, file in enumerate(here):
            cached.path_of(cache, file.digest).write_bytes(_file(number))
        todo: dict[str, Callable[[], object]] = {
            FETCH: partial(fetch.bring, here, cache, run.client, Log(quiet=True), offline=True),
            LOOKUP: partial(_each, partial(cached.require, cache), [file.digest for file in here]),
            FEW: partial(fetch.bring, few, cache, run.client, Log(quiet=True), offline=True),
        }
        for what, do in todo.items():
            do()
            results[what][str(count)] = [_timed(do, _TRIES) for _ in range(runs)]
    return results


def registries(folder: Path, run: Run, runs: int, counts: Sequence[int]) -> Seconds:
    """Time retention over repositories with so many tags: the decision, and once the removal.

    For comparison curl removes the same manifests of another repository alike, one request after the other, too.
    """
    results: Seconds = {LIST: {}, PLAN: {}, DELETE: {}, BARE: {}}
    rule = retention.Rule(newest=3, younger=timedelta(days=90))
    program = machine.find("docker-registry") or "docker-registry"
    with local.serve(program, folder / "registry", local.free_ports()) as served:
        for count in counts:
            ours, alike = (
                Registry(run.client, ImageName(registry=served.host, repository=f"{of}/{count}"), served.credentials)
                for of in ("bench", "alike")
            )
            with run.log.step(f"{count} tags"):
                for registry in (ours, alike):
                    fill(registry, folder, count)
                decide = partial(retention.plan, ours, rule, _NOW)
                digests = decide().digests
                token = served.token(
                    [{"type": "repository", "name": alike.name.repository, "actions": ["pull", "delete"]}]
                )
                curl = ["curl", "--silent", "--show-error", "--fail", "--fail-early", "--request", "DELETE"]
                curl += ["--oauth2-bearer", token, *(f"{alike.url}/manifests/{digest}" for digest in digests)]
                results[LIST][str(count)] = [_timed(ours.tags, _TRIES) for _ in range(runs)]
                results[PLAN][str(count)] = [_timed(decide) for _ in range(runs)]
                results[DELETE][str(count)] = [_timed(partial(_each, ours.delete, digests))]
                results[BARE][str(count)] = [_timed(partial(subprocess.run, curl, check=True))]
    return results


def fill(registry: Registry, folder: Path, count: int) -> None:
    """Make `count` tags: half of them releases for two platforms, ten to each k3s line, the others what is attached."""
    blobs = []
    for data, kind in ((b"{}", "config.v1+json"), (b"a layer", "layer.v1.tar+gzip")):
        path = folder / Digest.of(data).hex
        path.write_bytes(data)
        media_type = f"application/vnd.oci.image.{kind}"
        blobs.append(layout.Part(digest=Digest.of(data), size=len(data), media_type=media_type, path=path))
    registry.push_blobs(tuple(blobs), Log(quiet=True))
    config, layer = ({"mediaType": b.media_type, "digest": b.digest.text, "size": b.size} for b in blobs)

    def put(annotations: Mapping[str, str], *, tag: str = "", **content: Any) -> dict[str, Any]:
        content = content or {"mediaType": MANIFEST, "config": config, "layers": [layer]}
        raw = json.dumps({"schemaVersion": 2, **content, "annotations": annotations}).encode()
        registry.tag(tag or Digest.of(raw).text, raw, content["mediaType"])
        return {"mediaType": content["mediaType"], "digest": Digest.of(raw).text, "size": len(raw)}

    def release(number: int) -> None:
        version = f"v1.{number // 10}.{number % 10}"
        annotations = {
            f"{KEY}.k3s": f"{version}+k3s1",
            f"{KEY}.docker": "29.7.2",
            "org.opencontainers.image.created": (_NOW - timedelta(days=400)).isoformat(),
        }
        manifests = [
            {
                **put({**annotations, "platform": platform.value}),
                "platform": {"os": "linux", "architecture": platform.architecture},
            }
            for platform in Platform
        ]
        fixed = f"k3s-{version}-k3s1-docker-29.7.2-r1"
        index = put(annotations, tag=fixed, mediaType=INDEX, manifests=manifests)
        put({"about": index["digest"]}, tag=index["digest"].replace(":", "-"))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(release, range(count // 2)))


def fill_box(place: boxes.Place, log: Log) -> dict[str, list[dict[str, Any]]]:
    """Run many pods, then many inner containers; return their seconds, and what a SIGKILL loses of the most pods."""
    results: dict[str, list[dict[str, Any]]] = {"pods": [], "containers": []}
    with boxes.box(place, Kind.OURS) as box:
        boxes.watch(box)
        reach.load(box.pid, place.pod)
        for count in PODS:
            entry = {"count": count, "seconds": measures.pods(box, count), "lost": 0}
            if count == PODS[-1]:
                box.kill()
                box.start()
                boxes.watch(box)
                entry["lost"] = measures.lost(box, count)
            measures.no_pods(box, count)
            results["pods"].append(entry)
            log.say(f"{count} pods: {entry['seconds']:.1f} s")
        for count in CONTAINERS:
            entry = {"count": count, "seconds": measures.containers(box, count)}
            measures.no_containers(box, count)
            results["containers"].append(entry)
            log.say(f"{count} containers: {entry['seconds']:.1f} s")
    return results


def exponent(points: Mapping[str, Sequence[float]]) -> float:
    """Return the slope of a line through the medians of the two largest counts, both axes logarithmic. Pure.

    Small counts have more of what does not grow.
    """
    (few, before), (many, after) = ((float(count), statistics.median(them)) for count, them in [*points.items()][-2:])
    return math.log(max(1e-9, after) / max(1e-9, before)) / math.log(many / few)


def _points(many: Boxes) -> Seconds:
    """Return pods and containers as the others: what → count, as text → seconds of each round."""
    return {
        what: {
            str(entry["count"]): [float(one[what][at]["seconds"]) for one in many]
            for at, entry in enumerate(many[0][what])
        }
        for what in ("pods", "containers")
    }


def targets(seconds: Seconds, many: Boxes) -> list[dict[str, Any]]:
    """Return the exponents of each round, and what was lost."""
    entries = []
    for what, points in {**seconds, **_points(many)}.items():
        if what != BARE:
            rounds = zip(*points.values(), strict=True)
            exponents = [exponent({c: [v] for c, v in zip(points, values, strict=True)}) for values in rounds]
            entries.append(report.target(f"{what}: exponent, {' to '.join(list(points)[-2:])}", exponents, LINEAR))
    ours, bare = ([*seconds[what].values()][-1] for what in (DELETE, BARE))
    beside = [one / other for one, other in zip(ours, bare, strict=True)]
    lost = [max(entry["lost"] for entry in one["pods"]) for one in many]
    entries.append(report.target(f"{DELETE}: beside {BARE}", beside, BESIDE))
    return [*entries, report.target("pods lost by a SIGKILL of the whole", lost, 0)]


def page(document: Document) -> Page:
    """Return the seconds of each count and the exponents."""
    everything: Seconds = {**document["seconds"], **_points(document["boxes"])}
    counts = sorted({count for points in everything.values() for count in points}, key=int)
    rows = [
        [what, *(_cell(points.get(count, ())) for count in counts), f"{exponent(points):.2f}"]
        for what, points in everything.items()
    ]
    return Page(
        facts=[f"rounds of pods and containers: {len(document['boxes'])}", f"files of {size(FILE)}"],
        tables=[Table("Medians", ["count", *counts, "exponent of the last two"], rows)],
    )


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = statistics.median(values)
    return f"{1000 * middle:.1f} ms" if middle < 1 else f"{middle:.1f} s"
