"""`bench size`: its limit, a stub k3s, the names of layers, and layers that depend on no date."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench import report, size
from pipeline.core.platforms import Platform

ROOT = Path(__file__).resolve().parents[2]
LAYERS = [
    {"name": name, "compressed": count}
    for name, count in {"base image": 50_000_000, "docker": 70_000_000, "k3s": 60_000_000}.items()
]
VENDORS = {"docker": 80_000_000, "k3s": 70_000_000}


def target(*, stub: bool) -> dict[str, Any]:
    return size.target(size.describe(Platform.AMD64, LAYERS, VENDORS), stub=stub)


def test_the_limit_is_110_percent_of_what_is_published_and_45_megabytes() -> None:
    assert target(stub=False)["median"] == pytest.approx(180 / (1.1 * 150 + 45), abs=0.001)
    assert target(stub=False)["holds"]


def test_a_stub_k3s_is_named_and_left_out_on_both_sides() -> None:
    entry = target(stub=True)
    assert entry["median"] == pytest.approx(120 / (1.1 * 80 + 45), abs=0.001)
    assert entry["name"] == "linux/amd64: share of the limit, k3s left out on both sides"
    assert "k3s" not in target(stub=False)["name"], "so --check compares no stub with a real one"


def test_the_page_has_every_layer_and_their_sum() -> None:
    document = {
        "rehearsed": False,
        "machine": {"processor": "x", "cores": 2, "memory": 1, "system": "Linux", "sha256 instructions": True},
        "versions": {},
        "stub k3s": [],
        "platforms": [size.describe(Platform.AMD64, LAYERS, VENDORS)],
        "targets": [target(stub=False)],
    }
    text = report.generated("size", document, size.page(document))
    assert "| docker | 70.0 MB | 80.0 MB |" in text
    assert "| base image | 50.0 MB |  |" in text
    assert "| sum | 180.0 MB | 150.0 MB |" in text
    assert "stub" not in text
    assert "k3s: a stub" in report.generated("size", {**document, "stub k3s": ["linux/amd64"]}, size.page(document))


def test_layers_are_named_in_the_order_of_the_dockerfile() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    *copied, variant = re.findall(r"^COPY --link --from=(\S+) /layer/ /$", text, re.M)
    assert variant == "system-images"
    named = {"packages": "Debian packages", "own": "our own files"}
    layers = [named.get(stage, stage) for stage in copied]
    assert [size.layer_name(at) for at in range(-len(copied), 0)] == layers
    assert size.layer_name(-len(copied) - 1) == "base image"


def test_every_stage_that_becomes_a_layer_settles_its_files() -> None:
    """Otherwise a layer would depend on the day of its build, and an update of one component would ship all layers."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = {stage.split("\n", 1)[0].rpartition(" AS ")[2]: stage for stage in re.split(r"^FROM ", text, flags=re.M)}
    copied = re.findall(r"^COPY --link --from=(\S+) /layer/ /$", text, re.M)
    assert len(copied) == len(size.LAYERS) + 1, "system images"
    for name in copied:
        lines = [line for line in stages[name].splitlines() if line and line != "EOF" and not line.startswith("#")]
        assert lines[-1].endswith("/build/settle /layer"), name
