"""`bench update`: what a release costs to push and to pull when exactly one component of the image has changed.

The image is built, and again on the next day with another k3s. What of that has another digest is what a registry or an
engine that has the first one lacks: k3s's layer, and what is sent besides whatever changes. An update of another
component sends the latter and its own layer, for each component is one layer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pipeline.bench import lab, report
from pipeline.bench.build import job
from pipeline.bench.report import Document, Options, Page, Table
from pipeline.build import build
from pipeline.core import cache as cached
from pipeline.core import records, stub
from pipeline.core.errors import BuildFailed
from pipeline.core.log import Log, size
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import Image, Variant
from pipeline.engine.engine import Engine
from pipeline.fetch import base
from pipeline.inputs.lock import Artifact, Lock
from pipeline.oci import layout
from pipeline.workflow import Run

LIMIT = 1.05  # × the component's own compressed size
REAL_K3S = 66_000_000  # bytes, about what k3s publishes; it is compressed in itself
COMPONENTS = ("kubectl", "k3s", "docker", "Debian packages", "our own files")  # each is one layer
_CHANGE = b"\n# changed by the benchmark\n"  # nothing reads what is behind the end of a program


@dataclass(frozen=True, kw_only=True)
class Made:
    """An image that was built, and the files of its layout."""

    image: Image
    parts: Mapping[Digest, layout.Part]

    @classmethod
    def read(cls, dist: Path, image: Image) -> Made:
        """Read dist/image/."""
        return cls(image=image, parts={part.digest: part for part in layout.read(dist / records.LAYOUT, image.digest)})

    def layers(self, what: str, platforms: Iterable[Platform]) -> AbstractSet[Digest]:
        """Return a component's layers; our own files are one for all platforms."""
        return {self.image.platforms[platform].layers[-1 - lab.LAYERS.index(what)] for platform in platforms}

    def pulled(self, platform: Platform) -> AbstractSet[Digest]:
        """Return what an engine that has nothing reads for one platform: index, manifest, config, layers."""
        built = self.image.platforms[platform]
        return {self.image.digest, built.digest, built.config, *built.layers}

    def size(self, digests: AbstractSet[Digest]) -> int:
        """Return the bytes of some files."""
        return sum(self.parts[digest].size for digest in digests)


def measure(run: Run, _options: Options) -> dict[str, Any]:
    """Return the report. Raises EngineError, IntentError, UpstreamError, BuildFailed."""
    subject = lab.Subject.read(run)
    with lab.place("a benchmark of updates", run.log) as folder:
        first = job(subject, subject.intent.platforms, folder, run)
        first = replace(first, cache=_cache(first, folder / "cache"))
        first = replace(first, lock=real_size(first.lock, first.cache))
        second = replace(first, lock=updated(first.lock, first.cache), dist=folder / "update")
        with lab.started(subject.lock, run.cache, folder, run.log) as lab_:
            engine = Engine(docker=lab_.client, builder="default", description="", platform=Platform.host())
            images = []
            for one in (first, second):
                with run.log.step(f"build: {one.dist.name}"):
                    made = build.run(one, lambda: engine, Log(quiet=True))
                images.append(Made.read(one.dist, made[Variant.IMAGE]))
    changes = compare(*images)
    return {
        **subject.described("docker", "k3s", "kubectl"),
        "stub k3s": bool(lab.stubs(subject.lock, run.cache)),
        "platforms": list(subject.intent.platforms),
        "host": Platform.host() or "",
        "targets": targets(changes),
        "changes": changes,
    }


def _cache(first: build.Job, own: Path) -> Path:
    """Make a separate cache, linked out of the shared one, for changed files."""
    digests = {file.digest for file in first.lock.all_files}
    digests |= set(base.digests(first.lock.base.digest, first.intent.platforms, first.cache))
    (own / "sha256").mkdir(parents=True)
    for digest in digests:
        cached.link(cached.require(first.cache, digest), cached.path_of(own, digest))
    return own


def real_size(own: Lock, cache: Path) -> Lock:
    """Return the lock with a stub k3s that is as large as a real one: noise behind its end, which nothing reads."""

    def noise(file: Artifact, data: bytes) -> bytes:
        return random.Random(file.platform.value).randbytes(REAL_K3S - len(data)) if stub.is_stub(data) else b""

    return _longer(own, cache, noise)


def updated(own: Lock, cache: Path) -> Lock:
    """Return the lock of the next day with another k3s."""
    tomorrow = (date.fromisoformat(own.date) + timedelta(days=1)).isoformat()
    return replace(_longer(own, cache, lambda *_: _CHANGE), date=tomorrow)


def _longer(own: Lock, cache: Path, more: Callable[[Artifact, bytes], bytes]) -> Lock:
    """Return the lock with more bytes behind the end of each k3s, which the cache has."""
    artifacts = []
    for file in own.artifacts:
        if file.component == "k3s":
            data = cached.require(cache, file.digest).read_bytes()
            data += more(file, data)
            digest = Digest.of(data)
            cached.path_of(cache, digest).write_bytes(data)
            file = replace(file, digest=digest, size=len(data))
        artifacts.append(file)
    return replace(own, artifacts=tuple(artifacts))


def compare(first: Made, update: Made) -> dict[str, dict[str, Any]]:
    """Return the bytes of an update of each component: of its layer, to push all platforms, to pull this machine's.

    Raises BuildFailed when the update does not change k3s's layer.
    """
    host = Platform.host()
    assert host is not None
    everywhere = update.image.platforms.keys()
    k3s = update.layers("k3s", everywhere)
    if k3s & first.parts.keys():
        raise BuildFailed("the layer of k3s did not change with it", found=", ".join(map(str, k3s)))
    push = update.size(update.parts.keys() - first.parts.keys() - k3s)
    pull = update.size(update.pulled(host) - first.pulled(host) - k3s)
    before, after = (made.image.platforms[host].layers for made in (first, update))
    others = [at - len(after) for at, digest in enumerate(after) if digest not in {*before, *k3s}]
    changes = {}
    for what in COMPONENTS:
        own, own_of_one = (update.size(update.layers(what, platforms)) for platforms in (everywhere, [host]))
        changes[what] = {
            "own": own,
            "own of one": own_of_one,
            "layers changed": others,
            "push": own + push,
            "pull": own_of_one + pull,
            "whole": update.size(update.parts.keys()),
        }
    return changes


def targets(changes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the bytes, compared with the component's own."""
    return [
        report.target(f"{what}: bytes to {way}, beside its own", [entry[way] / entry[own]], LIMIT, factor=report.EXACT)
        for what, entry in changes.items()
        for way, own in (("push", "own"), ("pull", "own of one"))
    ]


def page(document: Document) -> Page:
    """Return what is sent for each change."""
    rows = []
    for what, entry in document["changes"].items():
        others = ", ".join(lab.layer_name(at) for at in entry["layers changed"]) or "none"
        sizes = (*(entry[key] for key in ("own", "push", "own of one", "pull")), entry["push"] - entry["own"])
        rows.append([what, *map(size, sizes), others])
    columns = ["changed", "its layers", "pushed", "its layer", "pulled", "pushed besides", "other layers that changed"]
    whole = max(entry["whole"] for entry in document["changes"].values())
    return Page(
        facts=[f"pushed: {', '.join(document['platforms'])}, {size(whole)} in all; pulled: {document['host']}"],
        tables=[Table("Bytes", columns, rows)],
    )
