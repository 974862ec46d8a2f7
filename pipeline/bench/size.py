"""`bench size`: compressed bytes of each layer, compared with what vendors publish.

It only reads dist/image/ and the lock, so its figures do not change from run to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.bench import lab, report
from pipeline.bench.report import Document, Options, Page
from pipeline.components import COMPONENTS
from pipeline.core import cache as cached
from pipeline.core import records, stub
from pipeline.core.log import size
from pipeline.core.platforms import Platform
from pipeline.inputs.lock import Lock
from pipeline.oci import layout
from pipeline.workflow import Run

# The image's layers from the top: the Dockerfile makes one for each component.
LAYERS = ("manifest", "our own files", "kubectl", "k3s", "compose", "buildx", "docker", "Debian packages")
FACTOR, ALLOWANCE = 1.10, 45_000_000  # the limit: FACTOR × what is published + ALLOWANCE bytes


def measure(run: Run, _options: Options) -> dict[str, Any]:
    """Return the report. Raises IntentError, DigestMismatch."""
    run, image = lab.of_image(run)
    parts = {part.digest: part for part in layout.read(run.dist / records.LAYOUT, image.digest)}
    stubs = {
        file.platform
        for file in run.lock.artifacts
        if file.component == "k3s" and stub.is_stub(cached.require(run.cache, file.digest).read_bytes())
    }
    platforms, targets = [], []
    for platform, built in image.platforms.items():
        layers = [
            {"name": layer_name(at - len(built.layers)), "compressed": parts[digest].size}
            for at, digest in enumerate(built.layers)
        ]
        vendors = published(run.lock, platform, run.cache)
        platforms.append(describe(platform, layers, vendors))
        targets.append(target(platforms[-1], stub=platform in stubs))
    return {
        **lab.described(run, image, *COMPONENTS),
        "stub k3s": sorted(stubs),
        "platforms": platforms,
        "targets": targets,
    }


def layer_name(at: int) -> str:
    """Return the content of a layer; `at`: -1 is the top one."""
    return LAYERS[-1 - at] if -at <= len(LAYERS) else "base image"


def published(own: Lock, platform: Platform, cache: Path) -> dict[str, int]:
    """Return component → bytes of the file that its vendor publishes."""
    return {
        file.component: file.size or cached.require(cache, file.digest).stat().st_size
        for file in own.artifacts
        if file.component in COMPONENTS and file.platform == platform
    }


def describe(platform: Platform, layers: Sequence[Mapping[str, Any]], vendors: Mapping[str, int]) -> dict[str, Any]:
    """Return the figures of one platform."""
    compressed = sum(layer["compressed"] for layer in layers)
    return {"platform": platform.value, "compressed": compressed, "published": vendors, "layers": layers}


def target(entry: Mapping[str, Any], *, stub: bool) -> dict[str, Any]:
    """Return the size as a share of the limit; a stub k3s is left out on both sides, which the name states."""
    left_out = {"k3s"} if stub else set()
    compressed = sum(layer["compressed"] for layer in entry["layers"] if layer["name"] not in left_out)
    published = sum(count for name, count in entry["published"].items() if name not in left_out)
    name = f"{entry['platform']}: share of the limit" + (", k3s left out on both sides" if stub else "")
    return report.target(name, [compressed / (FACTOR * published + ALLOWANCE)], 1.0, factor=report.EXACT)


def page(document: Document) -> Page:
    """Return the layers of each platform."""
    fact = f"limit: {FACTOR:.2f} × what docker, k3s, kubectl, buildx and compose publish + {size(ALLOWANCE)}"
    return Page(facts=[fact], tables=[_layers(entry) for entry in document["platforms"]])


def _layers(entry: Mapping[str, Any]) -> str:
    vendors = entry["published"]
    rows = [
        [layer["name"], size(layer["compressed"]), size(vendors[layer["name"]]) if layer["name"] in vendors else ""]
        for layer in entry["layers"]
    ]
    rows.append(["sum", size(entry["compressed"]), size(sum(vendors.values()))])
    return report.table(f"Layers of {entry['platform']}", ["layer", "compressed", "published"], rows)
