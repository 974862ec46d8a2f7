"""`bench build`: both platforms, cold and warm, compared with the usual way to build such an image (usual/Dockerfile).

Ours is the time of the whole command: Python's start, the check of the cache, the context, buildx, the layout. The
usual way gets its context ready made; its time is that of `docker buildx bake` alone. Both run on private engines.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.bench import lab, report
from pipeline.bench.lab import Lab, Took
from pipeline.bench.report import Document, Options, Page, spread
from pipeline.build import build, context
from pipeline.core import machine, records
from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant
from pipeline.engine import emulation
from pipeline.inputs import lock, versions
from pipeline.resolve import debian
from pipeline.workflow import Run

USUAL_DOCKERFILE = Path("pipeline/bench/usual/Dockerfile")

FASTER = 8.0  # × the usual way, both platforms, cold
BOTH = 1.15  # × the time of one platform
BARE = 1.5  # × `docker buildx bake` of the same file, when nothing changed

COLD, ONE = "ours, cold, both", "ours, cold, one"
NOTHING, BAKE = "ours, nothing changed", "bare bake, nothing changed"
USUAL = "usual, cold, both"
SCENARIOS = (COLD, ONE, NOTHING, BAKE, USUAL)  # docs/benchmarks/build.md says what each is


def measure(run: Run, options: Options) -> dict[str, Any]:
    """Return the report. Raises EngineError, IntentError, UpstreamError."""
    run, image = lab.of_image(run)
    platforms, host = run.intent.platforms, Platform.host()
    if host is None or host not in platforms:
        raise EngineError("the image has no platform that this machine runs natively", found=str(host))
    machine.ensure([emulation.program(platform) for platform in platforms if platform != host], run.log)
    with lab.workspace("a benchmark of the build", run.log) as folder:
        both = job(run, platforms, folder / "both")
        one = job(run, [host], folder / "one")
        bake_file = prepare_usual(replace(both, dist=folder / "usual"), run.log)
        rounds = _Rounds(run, folder)
        for number in range(1, options.runs + 1):
            with run.log.step(f"round {number} of {options.runs}"):
                rounds.usual(both, bake_file)
                rounds.ours(both, one, host)
    return {
        **lab.described(run, image, "docker", "buildx"),
        "platforms": list(platforms),
        "rounds": options.runs,
        "targets": targets(rounds.figures),
        "figures": rounds.figures,
    }


def job(run: Run, platforms: Sequence[Platform], folder: Path) -> build.Job:
    """Write the inputs for some of the platforms into `folder`, without variants: the usual way makes one image."""
    intent = replace(run.intent, platforms=tuple(platforms), variants=())
    own = replace(
        run.lock,
        intent=intent.checksum,
        artifacts=tuple(file for file in run.lock.artifacts if file.platform in platforms),
        packages=tuple(file for file in run.lock.packages if file.platform in platforms),
        guest=tuple(file for file in run.lock.guest if file.platform in platforms),
        airgap=(),
    )
    versions.write(folder / "versions.yaml", intent)
    lock.write(folder / "versions.lock.yaml", own)
    return build.Job(intent=intent, lock=own, root=run.root, dist=folder / "dist", cache=run.cache, rehearsed=True)


class _Rounds:
    """Runs every scenario once in each round, on engines that are empty at first."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.figures: dict[str, list[dict[str, Any]]] = {name: [] for name in SCENARIOS}
        self._run, self._folder = run, folder

    def ours(self, both: build.Job, one: build.Job, host: Platform) -> None:
        """Build both platforms cold, unchanged, and with a bare bake; then one platform cold on another engine."""
        layers = []
        with self._engine(both) as engine:
            self._keep(COLD, self._build(engine, both))
            layers.append(records.Image.read(both.dist).platforms[host].layers)
            self._keep(NOTHING, self._build(engine, both))
            context.prepare(both.intent, both.lock, both.cache, both.context, Log(quiet=True))
            self._keep(BAKE, bare(engine, both.dist / build.BAKE_FILE, self._run.root))
        with self._engine(one) as engine:
            took = self._build(engine, one)
            layers.append(records.Image.read(one.dist).platforms[host].layers)
        self._keep(ONE, took, **{"layers that differ": sum(a != b for a, b in zip(*layers, strict=True))})

    def usual(self, both: build.Job, bake_file: Path) -> None:
        """Build the usual way."""
        with ExitStack() as stack:
            engine = stack.enter_context(self._engine(both))
            emulators = []
            for platform in both.intent.platforms:
                handler = stack.enter_context(emulation.registered(platform, self._run.log, engine.binfmt))
                if handler is not None:
                    emulators.append(emulation.version(handler))
                elif platform != Platform.host():
                    raise EngineError(
                        f"this machine cannot emulate {platform}, which the usual way of building needs",
                        next_step=f"apt-get install qemu-user-static, which has {emulation.program(platform)}",
                    )
            shutil.rmtree(bake_file.parent / "image", ignore_errors=True)
            self._keep(USUAL, bare(engine, bake_file, self._run.root), emulators=emulators)

    def _engine(self, job: build.Job) -> AbstractContextManager[Lab]:
        shutil.rmtree(job.dist, ignore_errors=True)
        return lab.started(job.lock, self._run.cache, self._folder, self._run.log)

    def _build(self, engine: Lab, job: build.Job) -> Took:
        """Run the whole command."""
        inputs = job.dist.parent
        command = [sys.executable, "-m", "pipeline", "--versions", inputs / "versions.yaml"]
        command += ["--lock", inputs / "versions.lock.yaml", "--dist", job.dist, "--cache", job.cache]
        return engine.timed([*map(str, command), "build", "--offline"], self._run.root)

    def _keep(self, name: str, took: Took, **more: object) -> None:
        self.figures[name].append({"seconds": round(took.seconds, 2), **more})
        self._run.log.say(f"{name}: {took.seconds:.1f} s")


def bare(engine: Lab, bake_file: Path, root: Path) -> Took:
    """Run `docker buildx bake` on a file's target `image`."""
    command = [str(engine.binaries.bin / "docker"), "buildx", "bake", "--progress=rawjson"]
    return engine.timed(
        [*command, "--file", os.path.relpath(bake_file, root), Variant.IMAGE.value],
        root,
        {"BUILDX_BAKE_ENTITLEMENTS_FS": "0", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"},
    )


def prepare_usual(job: build.Job, log: Log) -> Path:
    """Write context, bake file and apt index of the usual way into `job.dist`; return the bake file's path."""
    context.prepare(job.intent, job.lock, job.cache, job.context, log)
    with log.step("index of Debian packages for apt"):
        for platform in job.intent.platforms:
            packages = job.context / "artifacts" / platform.architecture / "packages"
            index = index_with(debian.index(job.cache / "apt" / platform.architecture), dict(stanzas(packages)))
            # xz, as Debian's mirrors have it
            (packages / "Packages.xz").write_bytes(lzma.compress(index.encode(), preset=1))
    below = job.relative(job.context)
    target = {
        "context": ".",
        "dockerfile": str(USUAL_DOCKERFILE),
        "platforms": [platform.value for platform in job.intent.platforms],
        "contexts": {"base": f"oci-layout://{below}/base@{job.lock.base.digest}", "artifacts": f"{below}/artifacts"},
        "args": {"PACKAGES": " ".join(job.intent.packages)},
        "output": [f"type=oci,dest={job.relative(job.dist)}/image,tar=false,oci-mediatypes=true"],
    }
    path = job.dist / build.BAKE_FILE
    records.write_json(path, {"target": {Variant.IMAGE.value: target}})
    return path


def index_with(whole: str, ours: Mapping[str, str]) -> str:
    """Return Debian's index with the stanzas of some packages (by name) replaced. Pure."""
    stanzas = (stanza.strip("\n") for stanza in whole.split("\n\n"))
    others = (text for text in stanzas if text and text.partition("\n")[0].removeprefix("Package: ") not in ours)
    return "\n\n".join([*others, *ours.values()]) + "\n"


def stanzas(packages: Path) -> Iterator[tuple[str, str]]:
    """Yield name and stanza (deb822(5), Packages) of each .deb: its control fields, path, size and checksum."""
    for path in sorted(packages.glob("*.deb")):
        fields = subprocess.run(["dpkg-deb", "-f", str(path)], capture_output=True, text=True, check=True).stdout
        where = f"Filename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {Digest.of_file(path).hex}"
        yield re.search(r"^Package: (\S+)", fields, re.M)[1], fields.rstrip("\n") + "\n" + where  # type: ignore[index]


def targets(figures: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the ratios, each within one round."""

    def ratios(above: str, below: str) -> list[float]:
        return [a["seconds"] / b["seconds"] for a, b in zip(figures[above], figures[below], strict=True)]

    differ = [entry["layers that differ"] for entry in figures[ONE]]
    return [
        report.target(
            "cold, both platforms: the usual way, compared with ours", ratios(USUAL, COLD), FASTER, most=False
        ),
        report.target("cold: both platforms, compared with one", ratios(COLD, ONE), BOTH),
        report.target("nothing changed: the whole command, compared with a bare bake", ratios(NOTHING, BAKE), BARE),
        report.target("layers that differ between two cold builds on two engines", differ, 0),
    ]


def page(document: Document) -> Page:
    """Return the seconds of each scenario."""
    figures = document["figures"]
    seconds = {name: [float(entry["seconds"]) for entry in figures[name]] for name in SCENARIOS}
    emulators = ", ".join(figures[USUAL][0]["emulators"])
    bars = [(name, "median", 0.0, statistics.median(values)) for name, values in seconds.items()]
    rows = [[name, *spread(values)] for name, values in seconds.items()]
    return Page(
        bars=bars,
        tables=[report.table("Times", ["build", "median", "from", "to"], rows)],
        facts=[f"platforms: {', '.join(document['platforms'])}", f"emulated by {emulators}"],
    )
