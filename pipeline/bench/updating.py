"""`bench update`: what a release costs to push and to pull when exactly one component of the image has changed.

The image is really built once, and once more for each change, on one engine; then each is pushed to a registry that
has the first one, and its other blobs are pulled as an engine does that has the first one. An update is made on
another day, so every change comes with the next day's date.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bench import lab, plot, report
from pipeline.bench.building import Case, case
from pipeline.bench.sizing import EXACT, lock_of, stubs
from pipeline.build import build
from pipeline.core import cache as cached
from pipeline.core import machine, records, stub
from pipeline.core.errors import BuildFailed, EngineError
from pipeline.core.log import Log, seconds, size
from pipeline.core.names import Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import Image, Variant
from pipeline.engine.engine import Engine
from pipeline.fetch import base
from pipeline.inputs import versions
from pipeline.inputs.lock import Artifact, Lock
from pipeline.oci import layout
from pipeline.oci.registry import Registry
from pipeline.rehearsal import registry as local

if TYPE_CHECKING:
    from pipeline.workflow import Run

LIMIT = 1.05  # × the component's own compressed size
REAL_K3S = 66_000_000  # bytes, about what k3s publishes; it is compressed in itself
OWN = "our own files"
# What changes → its layer, counted from the top one (the manifest's, which names every digest): the Dockerfile's order.
LAYERS = {"kubectl": -3, "k3s": -4, "docker": -7, "Debian packages": -8, OWN: -2}
_EDITED = Path("rootfs/usr/local/bin/healthcheck")
_CHANGE = b"\n# changed by the benchmark\n"  # behind the end of an ELF file or a zip archive, nobody reads it


@dataclass(frozen=True, kw_only=True)
class Made:
    """An image that was built, and how long that took."""

    dist: Path
    image: Image
    seconds: float


def main(run: Run, *, runs: int, write: bool, check: bool) -> dict[str, Any]:
    """Measure, print, compare or write. Raises EngineError, IntentError, UpstreamError, BuildFailed, Slower."""
    image = records.Image.read(run.dist)
    own = lock_of(run, image)
    intent = versions.read(run.dist / "versions.yaml") if image.rehearsed else run.intent
    machine.ensure(["docker-registry"], run.log)
    load = os.getloadavg()[0]
    with lab.place("a benchmark of updates", run.log) as folder:
        first = case(intent, own, intent.platforms, folder / "first")
        cache = _cache(first, run.cache, folder / "cache")
        first = replace(first, lock=_real_size(first.lock, cache))
        made = _build_all(run, first, cache, folder, image.rehearsed)
        with run.log.step(f"pushed and pulled, {runs} rounds"):
            found = _transfer(run, made, folder, runs)
    document = describe(found, made["first"].image, own, runs, stub=bool(stubs(own, run.cache)))
    document["machine"]["load"] = round(load, 1)
    document = report.stored(document)
    files = {"md": render(document), "svg": draw(document)}
    report.finish("update", document, files, run.root, run.log, write=write, check_=check)
    return document


def _cache(first: Case, cache: Path, own: Path) -> Path:
    """A cache of our own, linked out of the shared one, so that changed files get into no other's way."""
    digests = {file.digest for file in first.lock.all_files}
    digests |= set(base.digests(first.lock.base.digest, first.intent.platforms, cache))
    (own / "sha256").mkdir(parents=True)
    for digest in digests:
        cached.link(cached.require(cache, digest), cached.path_of(own, digest))
    return own


def _put(file: Artifact, data: bytes, cache: Path, version: str | None = None) -> Artifact:
    """The artifact with other bytes, which the cache has."""
    digest = Digest.of(data)
    cached.path_of(cache, digest).write_bytes(data)
    return replace(file, digest=digest, size=len(data), version=version or file.version)


def _real_size(own: Lock, cache: Path) -> Lock:
    """Return the lock with a stub k3s that is as large as a real one: noise behind its end, which nothing reads."""

    def grown(file: Artifact) -> Artifact:
        data = cached.require(cache, file.digest).read_bytes()
        if not stub.is_stub(data):
            return file
        return _put(file, data + random.Random(file.platform.value).randbytes(REAL_K3S - len(data)), cache)

    return replace(own, artifacts=tuple(grown(one) if one.component == "k3s" else one for one in own.artifacts))


def changed(own: Lock, what: str, asked: Sequence[str], cache: Path) -> Lock:
    """The lock of the next day with one component changed; `asked`: the packages that versions.yaml names."""
    tomorrow = (date.fromisoformat(own.date) + timedelta(days=1)).isoformat()
    own = replace(own, date=tomorrow)
    if what == OWN:
        return own
    if what == "Debian packages":
        small = {
            platform: min((f for f in own.packages if f.platform == platform and f.component in asked), key=_bytes)
            for platform in own.platforms
        }
        edit = {file: _repacked(cached.require(cache, file.digest)) for file in small.values()}
        packages = tuple(_put(file, edit[file], cache) if file in edit else file for file in own.packages)
        return replace(own, packages=packages)

    def edited(file: Artifact) -> Artifact:
        path = cached.require(cache, file.digest)
        data = _rearchived(path) if what == "docker" else path.read_bytes() + _CHANGE
        return _put(file, data, cache, f"{file.version}.1")

    artifacts = tuple(edited(file) if file.component == what else file for file in own.artifacts)
    return replace(own, artifacts=artifacts, versions={**own.versions, what: f"{own.versions[what]}.1"})


def _bytes(file: Artifact) -> int:
    return file.size or 0


def _rearchived(path: Path) -> bytes:
    """docker's archive with every program changed at its end."""
    made = io.BytesIO()
    with (
        tarfile.open(path) as before,
        gzip.GzipFile(fileobj=made, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as after,
    ):
        for member in before:
            stream = before.extractfile(member)
            data = stream.read() + _CHANGE if stream else b""
            member.size = len(data)
            after.addfile(member, io.BytesIO(data))
    return made.getvalue()


def _repacked(path: Path) -> bytes:
    """A Debian package with a higher version and nothing else changed."""
    with tempfile.TemporaryDirectory(prefix="dind-k3s-bench-") as name:
        tree, out = Path(name) / "tree", Path(name) / "out.deb"
        subprocess.run(["dpkg-deb", "-R", str(path), str(tree)], check=True)
        control = tree / "DEBIAN/control"
        text = control.read_text(encoding="utf-8")
        lines = [f"{line}+bench1" if line.startswith("Version: ") else line for line in text.splitlines()]
        control.write_text("\n".join(lines) + "\n", encoding="utf-8")
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(tree), str(out)], check=True, capture_output=True)
        return out.read_bytes()


def _build_all(run: Run, first: Case, cache: Path, folder: Path, rehearsed: bool) -> dict[str, Made]:
    """`first` and each change → its image. Raises BuildFailed when a change does not change its layer."""
    root = folder / "root"
    root.mkdir()
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copyfile(run.root / name, root / name)
    shutil.copytree(run.root / "rootfs", root / "rootfs", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    made: dict[str, Made] = {}
    with lab.started(first.lock, cache, folder, run.log) as running:
        engine = Engine(docker=running.client, builder="default", description="", platform=Platform.host())
        for what in ("first", *LAYERS):
            with run.log.step(f"build: {what}"):
                own = first.lock if what == "first" else changed(first.lock, what, first.intent.packages, cache)
                edited = root / _EDITED
                before = edited.read_bytes()
                if what == OWN:
                    edited.write_bytes(before + _CHANGE)
                dist = folder / f"dist-{['first', *LAYERS].index(what)}"
                started = time.monotonic()
                job = build.Job(intent=first.intent, lock=own, root=root, dist=dist, cache=cache, rehearsed=rehearsed)
                images = build.run(job, lambda: engine, Log(quiet=True))
                took = time.monotonic() - started
                edited.write_bytes(before)
                made[what] = Made(dist=dist, image=images[Variant.IMAGE], seconds=took)
    for what, at in LAYERS.items():
        for platform, built in made[what].image.platforms.items():
            if built.layers[at] == made["first"].image.platforms[platform].layers[at]:
                raise BuildFailed(f"the layer of {what} did not change with it", found=str(built.layers[at]))
    return made


def _parts(made: Made) -> dict[Digest, layout.Part]:
    return {part.digest: part for part in layout.read(made.dist / records.LAYOUT, made.image.digest)}


def to_pull(made: Made, platform: Platform) -> list[layout.Part]:
    """What an engine that has nothing reads for one platform: index, manifest, config, layers."""
    parts, built = _parts(made), made.image.platforms[platform]
    wanted = [made.image.digest, built.digest, built.config, *built.layers]
    return [parts[digest] for digest in dict.fromkeys(wanted)]


def _transfer(run: Run, made: Mapping[str, Made], folder: Path, runs: int) -> dict[str, dict[str, Any]]:
    host = Platform.host()
    assert host is not None
    program = machine.find("docker-registry") or "docker-registry"
    found = {what: sizes(made, what, host) for what in LAYERS}
    with local.serve(program, folder / "registry", local.free_ports()) as served:
        for number in range(runs):
            name = ImageName(registry=served.host, repository=f"bench/{number}")
            writing, reading = Registry(run.client, name, served.credentials), Registry(run.client, name)
            before = made["first"]
            writing.push_layout(before.dist / records.LAYOUT, before.image.digest, Log(quiet=True))
            have = {part.digest for part in to_pull(before, host)}
            for what, entry in found.items():
                one = made[what]
                started = time.monotonic()
                pushed = writing.push_layout(one.dist / records.LAYOUT, one.image.digest, Log(quiet=True))
                entry["push seconds"].append(round(time.monotonic() - started, 3))
                entry["push"] = max(entry["push"], pushed.bytes_sent)
                started = time.monotonic()
                entry["pull"] = _pull(reading, to_pull(one, host), have)
                entry["pull seconds"].append(round(time.monotonic() - started, 3))
    for what, entry in found.items():
        entry["build seconds"] = round(made[what].seconds, 1)
    return found


def _pull(registry: Registry, wanted: Sequence[layout.Part], have: set[Digest]) -> int:
    """Read what is not there yet, hashed on its way; returns the bytes. An engine also unpacks it."""
    brought = 0
    for part in wanted:
        if part.digest in have:
            continue
        if part.media_type.endswith((".manifest.v1+json", ".index.v1+json")):
            answer = registry.manifest(part.digest.text)
            if answer is None:
                raise EngineError("the registry lacks what was pushed a moment ago", found=part.digest.text)
            brought += len(answer.raw)
        else:
            with registry.blob(part.digest) as chunks:
                brought += sum(len(chunk) for chunk in chunks)
    return brought


def sizes(made: Mapping[str, Made], what: str, host: Platform) -> dict[str, Any]:
    """The component's layers, and which others have another digest than before."""
    before, after = made["first"].image, made[what].image
    parts = _parts(made[what])
    layers = {platform: built.layers[LAYERS[what]] for platform, built in after.platforms.items()}
    others = [
        number - len(built.layers)
        for platform, built in after.platforms.items()
        for number, digest in enumerate(built.layers)
        if platform == host and digest != before.platforms[platform].layers[number]
    ]
    return {
        "own": sum(parts[digest].size for digest in set(layers.values())),  # our own files are one layer for all
        "own of one": parts[layers[host]].size,
        "layers changed": [number for number in others if number != LAYERS[what]],
        "whole": sum(part.size for part in parts.values()),
        "push": 0,
        "pull": 0,
        "push seconds": [],
        "pull seconds": [],
    }


def describe(
    found: Mapping[str, Mapping[str, Any]], image: Image, own: Lock, runs: int, *, stub: bool
) -> dict[str, Any]:
    """Return everything that a reader needs to judge or repeat it; `stub`: whether k3s is one."""
    return {
        "rehearsed": image.rehearsed,
        "stub k3s": stub,
        "platforms": list(image.platforms),
        "host": Platform.host() or "",
        "rounds": runs,
        "machine": report.machine(),
        "versions": {name: own.versions[name] for name in ("docker", "k3s", "kubectl")},
        "targets": targets(found),
        "changes": {what: dict(entry) for what, entry in found.items()},
    }


def targets(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bytes beside the component's own; they are the same in every round."""
    return [
        report.target(f"{what}: bytes to {way}, beside its own", [entry[way] / entry[own]], LIMIT, factor=EXACT)
        for what, entry in found.items()
        for way, own in (("push", "own"), ("pull", "own of one"))
    ]


def draw(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/update.svg."""
    rows = []
    for what, entry in document["changes"].items():
        parts = {"the component": entry["own"] / 1e6, "everything else": (entry["push"] - entry["own"]) / 1e6}
        rows.append(plot.Row(name=what, parts=parts, limit=LIMIT * entry["own"] / 1e6))
    whole = max(entry["whole"] for entry in document["changes"].values()) / 1e6
    rows.append(plot.Row(name="the whole image", parts={"everything else": whole}))
    return plot.bars("What an update sends, both platforms", rows, "MB")


def render(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/update.md."""
    found = document["changes"]
    rows = []
    for what, entry in found.items():
        push = f"{statistics.median(entry['push seconds']):.2f} s"
        pull = f"{statistics.median(entry['pull seconds']):.2f} s"
        others = ", ".join(_layer(number) for number in entry["layers changed"]) or "none"
        cells = [size(entry["own"]), size(entry["push"]), push, size(entry["own of one"]), size(entry["pull"]), pull]
        rows.append([what, *cells, seconds(entry["build seconds"]), others])
    beside = {what: entry["push"] - entry["own"] for what, entry in found.items()}
    least = min(beside.values())
    late = [what for what, entry in found.items() if entry["push"] > LIMIT * entry["own"]]
    lines = [
        "# Benchmark: update",
        "",
        f"Written by `{report.command('update', document)}`; every figure: [update.json](update.json).",
        "",
        f"{' and '.join(document['platforms'])}. The image is built, then once more for each change, dated one day "
        "later, as an update is; each is pushed to a registry on loopback that has the first, and what "
        f"{document['host']} needs of it is read from there by something that has the first. Bytes are those of files: "
        "layers, configs, manifests, attestations, index. "
        f"Seconds are the median of {document['rounds']} rounds: sending and hashing, without an engine's unpacking.",
        *(
            [
                "",
                f"**k3s is a stub**, with noise behind its end so that it is as large as a real one "
                f"({size(REAL_K3S)}, which is compressed in itself). A change is a few bytes at the end of each "
                "program of a component; of the packages, a higher version of the smallest; of our own files, a "
                "line. How much "
                "of a component differs makes no difference: a layer is sent as a whole.",
            ]
            if document["stub k3s"]
            else []
        ),
        *report.busy(document),
        "",
        *report.machine_lines(document),
        "",
        *report.targets_table(document["targets"]),
        "",
        "![what an update sends](update.svg)",
        "",
        *report.table(
            [
                "changed",
                "its layers",
                "pushed",
                "in",
                "its layer",
                "pulled",
                "in",
                "built in",
                "other layers that changed",
            ],
            rows,
        ),
        "",
        f"**What dominates** is the component's layer, sent whole. Beside it every update sends at least "
        f"{size(least)}: the layer with the manifest of all digests, and for each platform a config, a manifest and "
        f"an attestation of "
        "provenance that names every file. That is the limit, whatever changed. The other layers keep their digests "
        "though the day is another, because the Dockerfile gives all files one time.",
    ]
    if late:
        told = ", ".join(
            f"{what} (by {size(round(found[what]['push'] - LIMIT * found[what]['own']))})" for what in late
        )
        lines += [
            "",
            f"Above the target: {told}, which is what is sent beside any component, and more than a twentieth of a "
            "small one. The next step would be a provenance of mode=min, which names no file; it is not made, because "
            "those names are what it is for.",
        ]
    return "\n".join(lines) + "\n"


def _layer(number: int) -> str:
    names = {-1: "manifest", -2: OWN, -3: "kubectl", -4: "k3s", -5: "compose", -6: "buildx", -7: "docker"}
    return names.get(number, "Debian packages" if number == -8 else "base image")
