"""`bench build`: both platforms, cold and warm, beside the same image built as most are, on engines of the same kind.

A time of ours is that of the whole command: Python's start, the check of the cache, the context, buildx, the layout.
The other side (usual/Dockerfile) gets its context ready made; its time is that of `docker buildx bake` alone.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bench import lab, plot, report
from pipeline.bench.lab import Lab, Took
from pipeline.bench.sizing import lock_of
from pipeline.build import build
from pipeline.build.progress import Solve
from pipeline.core import machine, records
from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant
from pipeline.engine import emulation
from pipeline.inputs import lock, versions
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent
from pipeline.resolve import debian

if TYPE_CHECKING:
    from pipeline.workflow import Run

USUAL = Path("pipeline/bench/usual/Dockerfile")
EMULATED = 3  # rounds at most that have the usual way, which takes minutes

FASTER = 8.0  # × the usual way, both platforms, cold
BOTH = 1.15  # × the time of one platform
BARE = 1.5  # × `docker buildx bake` of the same file, when nothing changed

COLD, ONE = "ours, cold, both", "ours, cold, one"
WARM, NOTHING, BAKE = "ours, warm, both", "ours, nothing changed", "bare bake, nothing changed"
USUAL_COLD, USUAL_WARM = "usual, cold, both", "usual, warm, both"
SCENARIOS = {
    COLD: "`nox -s build` on an engine that has built nothing yet",
    ONE: "the same for this machine's platform alone",
    WARM: "dist/ is empty, the builder's cache is full: the layout is written again",
    NOTHING: "`nox -s build` once more: the cache is checked, the inputs are compared",
    BAKE: "`docker buildx bake` of the bake file that ours has written, its context ready made",
    USUAL_COLD: "the usual Dockerfile, the foreign platform emulated, its context ready made",
    USUAL_WARM: "the same once more",
}
EXPORT = "exporting to oci image format"  # BuildKit's own words
# What a build's time is made of, in its order.
PARTS = ("Python, check of the cache", "context", "steps", "layers packed and written")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One set of inputs, as the command wants them."""

    intent: Intent
    lock: Lock
    folder: Path  # versions.yaml, versions.lock.yaml, dist/

    @property
    def dist(self) -> Path:
        """Where the image comes to lie."""
        return self.folder / "dist"

    def job(self, dist: Path, cache: Path) -> build.Job:
        """What `build` would be asked for, for its context."""
        return build.Job(intent=self.intent, lock=self.lock, root=self.folder, dist=dist, cache=cache, rehearsed=False)


def main(run: Run, *, runs: int, write: bool, check: bool) -> dict[str, Any]:
    """Measure, print, compare or write. Raises EngineError, IntentError, UpstreamError, Slower."""
    image = records.Image.read(run.dist)
    own = lock_of(run, image)
    intent = versions.read(run.dist / "versions.yaml") if image.rehearsed else run.intent
    load = os.getloadavg()[0]
    host = Platform.host()
    if host not in intent.platforms:
        raise EngineError("this machine is of no platform of the image", found=str(host))
    assert host is not None
    foreign = [platform for platform in intent.platforms if platform != host]
    machine.ensure([emulation.program(platform) for platform in foreign], run.log)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SCENARIOS}
    with lab.place("a benchmark of the build", run.log) as folder:
        disk = lab.file_system(folder)
        both = case(intent, own, intent.platforms, folder / "both")
        one = case(intent, own, (host,), folder / "one")
        usual = prepare_usual(both, folder / "usual", run.root, run.cache, run.log)
        for number in range(1, runs + 1):
            with run.log.step(f"round {number} of {runs}"):
                kept = _round(run, both, one, usual if number <= EMULATED else None, folder, image.rehearsed)
                for name, took in kept.items():
                    found[name].append(took)
    document = describe(found, image, own, intent.platforms)
    document["machine"] |= {"load": round(load, 1), "disk": disk}
    document = report.stored(document)
    files = {"md": render(document), "svg": draw(document)}
    report.finish("build", document, files, run.root, run.log, write=write, check_=check)
    return document


def case(intent: Intent, own: Lock, platforms: Sequence[Platform], folder: Path) -> Case:
    """The inputs for some of the platforms, without variants: the usual way makes one image."""
    intent = replace(intent, platforms=tuple(platforms), variants=())
    own = replace(
        own,
        intent=intent.checksum,
        artifacts=tuple(file for file in own.artifacts if file.platform in platforms),
        packages=tuple(file for file in own.packages if file.platform in platforms),
        guest=tuple(file for file in own.guest if file.platform in platforms),
        airgap=(),
    )
    versions.write(folder / "versions.yaml", intent)
    lock.write(folder / "versions.lock.yaml", own)
    return Case(intent=intent, lock=own, folder=folder)


def _round(
    run: Run, both: Case, one: Case, usual: Path | None, folder: Path, rehearsed: bool
) -> dict[str, dict[str, Any]]:
    """Every scenario once; `usual`: the other side's bake file, None to leave it out."""
    kept: dict[str, dict[str, Any]] = {}
    layers = []

    def keep(name: str, took: Took) -> None:
        kept[name] = told(took)
        run.log.say(f"{name}: {took.seconds:.1f} s, {took.processor:.1f} s of processor")

    if usual is not None:
        kept[USUAL_COLD]["emulators"] = _usual(run, both, usual, folder, keep)
    with lab.started(both.lock, run.cache, folder, run.log) as engine:
        shutil.rmtree(both.dist, ignore_errors=True)
        keep(COLD, ours(engine, both, run, rehearsed))
        layers.append(records.Image.read(both.dist).platforms[one_of(one)].layers)
        keep(NOTHING, ours(engine, both, run, rehearsed))
        build.prepare(both.job(both.dist, run.cache), Log(quiet=True))
        keep(BAKE, bare(engine, both.dist / build.BAKE_FILE, run.root))
        shutil.rmtree(both.dist)
        keep(WARM, ours(engine, both, run, rehearsed))
    with lab.started(one.lock, run.cache, folder, run.log) as engine:
        shutil.rmtree(one.dist, ignore_errors=True)
        keep(ONE, ours(engine, one, run, rehearsed))
        layers.append(records.Image.read(one.dist).platforms[one_of(one)].layers)
    kept[ONE]["layers that differ"] = sum(a != b for a, b in zip(*layers, strict=True))
    return kept


def _usual(run: Run, both: Case, bake_file: Path, folder: Path, keep: Callable[[str, Took], None]) -> list[str]:
    """The other side, cold and warm; returns what emulated."""
    emulators = []
    with ExitStack() as stack:
        engine = stack.enter_context(lab.started(both.lock, run.cache, folder, run.log))
        for platform in both.intent.platforms:
            handler = stack.enter_context(emulation.registered(platform, run.log, engine.binfmt))
            if handler is None and platform != Platform.host():
                raise EngineError(
                    f"this machine cannot emulate {platform}, which the usual way of building needs",
                    next_step=f"apt-get install qemu-user-static, which has {emulation.program(platform)}",
                )
            if handler is not None:
                emulators.append(emulation.version(handler))
        keep(USUAL_COLD, bare(engine, bake_file, run.root))
        keep(USUAL_WARM, bare(engine, bake_file, run.root))
    return emulators


def one_of(case: Case) -> Platform:
    """The one platform of a case."""
    (platform,) = case.intent.platforms
    return platform


def ours(engine: Lab, case: Case, run: Run, rehearsed: bool) -> Took:
    """The whole command."""
    files = (case.folder / "versions.yaml", case.folder / "versions.lock.yaml", case.dist, run.cache)
    command = [sys.executable, "-m", "pipeline.bench.builder", *map(str, files), *(["rehearsed"] if rehearsed else [])]
    return engine.timed(command, run.root)


def bare(engine: Lab, bake_file: Path, root: Path) -> Took:
    """`docker buildx bake` of a file's target `image`, its stream made readable afterwards."""
    document = json.loads(bake_file.read_text(encoding="utf-8"))
    target = re.search(r"dest=([^,]+)", document["target"]["image"]["output"][0])
    assert target is not None
    shutil.rmtree(root / target[1], ignore_errors=True)
    command = [str(engine.binaries.bin / "docker"), "buildx", "bake", "--progress=rawjson"]
    took = engine.timed(
        [*command, "--file", os.path.relpath(bake_file, root), Variant.IMAGE.value],
        root,
        {"BUILDX_BAKE_ENTITLEMENTS_FS": "0", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"},
    )
    solve = Solve()
    return replace(took, said="\n".join(line for raw in took.said.splitlines() for line in solve.feed(raw)))


def told(took: Took) -> dict[str, Any]:
    """One run as plain data: its seconds, its parts, its slowest steps."""
    steps = {name: float(seconds) for seconds, name in re.findall(r"^\s*([\d.]+) s  (\S.*)$", took.said, re.M)}
    stages = {name: _seconds(text) for name, text in re.findall(r"✓ (.+) · (.+)$", took.said, re.M)}
    export = sum(seconds for name, seconds in steps.items() if name.startswith(EXPORT))
    context = stages.get("put the build context together", 0.0)
    if "build" in stages:
        before = max(0.0, took.seconds - stages["build"])
        inside = stages["build"] - context - export
    else:
        before, inside = 0.0, took.seconds - export
    slowest = sorted(steps.items(), key=lambda item: -item[1])[:5]
    return {
        "seconds": round(took.seconds, 2),
        "processor": round(took.processor, 2),
        "parts": {
            name: round(max(0.0, value), 2)
            for name, value in zip(PARTS, (before, context, inside, export), strict=True)
        },
        "slowest": [[name, seconds] for name, seconds in slowest if seconds >= 0.1],
    }


def _seconds(text: str) -> float:
    """What log.seconds wrote: `0.4 s`, `2 min 5 s`."""
    minutes, seconds = re.fullmatch(r"(?:(\d+) min )?([\d.]+) s", text).groups()  # type: ignore[union-attr]
    return 60 * float(minutes or 0) + float(seconds)


def prepare_usual(both: Case, folder: Path, root: Path, cache: Path, log: Log) -> Path:
    """The other side's context, bake file and index of packages; returns the bake file's path."""
    context = build.prepare(both.job(folder, cache), log)
    with log.step("Debian's index, for apt"):
        for platform in both.intent.platforms:
            packages = context / "artifacts" / platform.architecture / "packages"
            index = index_with(debian.index(cache / "apt" / platform.architecture), dict(_stanzas(packages)))
            # xz, as Debian's mirrors have it
            (packages / "Packages.xz").write_bytes(lzma.compress(index.encode(), preset=1))
    below = os.path.relpath(context, root)
    target = {
        "context": ".",
        "dockerfile": str(USUAL),
        "platforms": [platform.value for platform in both.intent.platforms],
        "contexts": {"base": f"oci-layout://{below}/base@{both.lock.base.digest}", "artifacts": f"{below}/artifacts"},
        "args": {"PACKAGES": " ".join(both.intent.packages)},
        "output": [f"type=oci,dest={os.path.relpath(folder, root)}/image,tar=false,oci-mediatypes=true"],
    }
    path = folder / build.BAKE_FILE
    records.write_json(path, {"target": {Variant.IMAGE.value: target}})
    return path


def index_with(whole: str, ours: Mapping[str, str]) -> str:
    """Debian's index, the stanzas of some packages, by name, in the place of its own for them. Pure."""
    stanzas = (stanza.strip("\n") for stanza in whole.split("\n\n"))
    others = (text for text in stanzas if text and text.partition("\n")[0].removeprefix("Package: ") not in ours)
    return "\n\n".join([*others, *ours.values()]) + "\n"


def _stanzas(packages: Path) -> Iterator[tuple[str, str]]:
    """Name → what apt wants to know of it (deb822(5), Packages): its own fields, and where its file is."""
    for path in sorted(packages.glob("*.deb")):
        fields = subprocess.run(["dpkg-deb", "-f", str(path)], capture_output=True, text=True, check=True).stdout
        where = f"Filename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {Digest.of_file(path).hex}"
        yield re.search(r"^Package: (\S+)", fields, re.M)[1], fields.rstrip("\n") + "\n" + where  # type: ignore[index]


def describe(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    image: records.Image,
    own: Lock,
    platforms: Sequence[Platform],
) -> dict[str, Any]:
    """Everything that a reader needs to judge or repeat it."""
    return {
        "rehearsed": image.rehearsed,
        "platforms": list(platforms),
        "rounds": len(found[COLD]),
        "rounds with the usual way": len(found[USUAL_COLD]),
        "machine": report.machine(),
        "versions": {name: own.versions[name] for name in ("docker", "buildx")},
        "targets": targets(found),
        "figures": {name: list(them) for name, them in found.items()},
    }


def targets(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The ratios; each of one round."""

    def ratios(above: str, below: str, what: str = "seconds") -> list[float]:
        # The usual way is not in every round.
        return [a[what] / b[what] for a, b in zip(found[above], found[below], strict=False)]

    return [
        report.target("cold, both platforms: the usual way beside ours", ratios(USUAL_COLD, COLD), FASTER, most=False),
        report.target("cold: both platforms beside one", ratios(COLD, ONE), BOTH),
        report.target("nothing changed: the whole command beside a bare bake", ratios(NOTHING, BAKE), BARE),
        report.target(
            "layers that differ between two cold builds, by two engines",
            [one["layers that differ"] for one in found[ONE]],
            0,
        ),
    ]


def draw(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/build.svg."""
    rows = [
        plot.Row(name=name, parts=parts)
        for name, them in document["figures"].items()
        if them and (parts := _parts(them))
    ]
    return plot.bars("Building both platforms: where the seconds go", rows, "s")


def _parts(them: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The parts of the run in the middle."""
    middle = sorted(them, key=lambda one: float(one["seconds"]))[len(them) // 2]
    return {name: middle["parts"][name] for name in PARTS if middle["parts"][name]}


def render(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/build.md."""
    found = document["figures"]
    platforms = " and ".join(document["platforms"])
    rows = [
        [name, *report.spread([one["seconds"] for one in them]), f"{_median(them, 'processor'):.1f} s", SCENARIOS[name]]
        for name, them in found.items()
        if them
    ]
    lines = [
        "# Benchmark: build",
        "",
        f"Written by `{report.command('build', document)}`; every figure: [build.json](build.json).",
        "",
        f"{platforms}, {report.rounds(document)}, the usual way in "
        f"{document['rounds with the usual way']} of them. Each cold build has a private engine of its own that has "
        f"never built anything. Files and packages are "
        "in the cache on both sides, so the network is left out. The usual way is "
        f"[a Dockerfile](../../{USUAL}) whose RUN steps install the same Debian packages with each platform's own "
        f"apt, the foreign one emulated by {', '.join(found[USUAL_COLD][0]['emulators'])}, and which copies the same "
        "files. Its apt reads Debian's whole "
        "index, as every such build does, from a file; its context is ready made.",
        *report.busy(document),
        "",
        *report.machine_lines(document),
        "",
        *report.targets_table(document["targets"]),
        "",
        "![where the seconds go](build.svg)",
        "",
        *report.table(["", "median", "from", "to", "processor", "what"], rows),
        "",
        *_dominates(document),
    ]
    for name in (COLD, USUAL_COLD):
        if found[name]:
            steps = [[f"`{step}`", f"{seconds:.1f} s"] for step, seconds in found[name][0]["slowest"]]
            lines += ["", f"## The slowest steps: {name}", "", *report.table(["step", "of the first round"], steps)]
    return "\n".join(lines) + "\n"


def _median(them: Sequence[Mapping[str, Any]], what: str) -> float:
    return statistics.median(float(one[what]) for one in them)


def _dominates(document: Mapping[str, Any]) -> list[str]:
    found, cores = document["figures"], int(document["machine"]["cores"])
    cold, one, usual = found[COLD], found[ONE], found[USUAL_COLD]
    parts = sorted(_parts(cold).items(), key=lambda item: -item[1])
    whole = sum(value for _, value in parts)
    shares = ", ".join(f"{name} {value / whole:.0%}" for name, value in parts)
    work = {name: _median(them, "processor") for name, them in found.items() if them}
    busy = work[ONE] / _median(one, "seconds") / cores
    least = max(1.0, work[COLD] / cores / _median(one, "seconds"))
    (emulated, longest), *_ = usual[0]["slowest"]
    ratio = _median(usual, "seconds") / _median(cold, "seconds")
    used = work[COLD] / _median(cold, "seconds") / cores
    many = work[COLD] / (2 * cores) / used
    return [
        f"**What dominates.** A cold build of ours is {shares}. The steps are above all the unpacking of Debian's "
        "packages and Python's byte code; packing is gzip, which BuildKit does on one core for each layer. The usual "
        "way packs the same bytes, and has one step more that all wait for: "
        f"{longest / _median(usual, 'seconds'):.0%} of its time is `{emulated.partition(' RUN')[0]}`, emulated, and "
        f"one program after the other. In processor time it needs {work[USUAL_COLD] / work[COLD]:.1f} × ours.",
        "",
        *(
            [
                f"**{FASTER:g} times** is not reached: {ratio:.1f} on {cores} cores, of which ours keeps {used:.0%} "
                f"busy, so that its {work[COLD]:.0f} s of processor time are the limit here; they would have to be "
                f"{work[COLD] * ratio / FASTER:.0f} s. The emulated step is no quicker with more cores. A calculation "
                f"and not a measurement: with {2 * cores} such cores, as busy, ours takes {many:.0f} s, and that step "
                f"alone {longest / many:.1f} × as long. The next step is to measure it on such a machine: "
                "[bench.yml](../../.github/workflows/bench.yml).",
                "",
            ]
            if ratio < FASTER
            else []
        ),
        f"**Both platforms beside one.** Both take {work[COLD] / work[ONE]:.2f} × the processor time of one, for "
        "unpacking and packing a second platform is work of its own. What hides it in time is what one platform "
        f"leaves idle: of {cores} cores {1 - busy:.0%}, so that {least:.2f} is the least that can be had here."
        + (
            f" {BOTH:g} wants cores that one platform cannot use; the next step is the same as above."
            if _median(cold, "seconds") > BOTH * _median(one, "seconds")
            else ""
        ),
        "",
        f"**Nothing changed.** {_median(found[NOTHING], 'seconds'):.1f} s, most of it the check of every file of the "
        "cache and the start of Python; no engine is asked for. A bare bake takes "
        f"{_median(found[BAKE], 'seconds'):.1f} s, for it reads the context and writes the layout again.",
    ]
