"""`bench scale`: small caches and a real registry are filled and timed; the exponent; the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench import scaling
from pipeline.bench.processes import DOCKER, K3S, OURS, SHIMS
from pipeline.bench.scaling import BARE, DELETE, FETCH, FEW, LIST, LOOKUP, PLAN
from pipeline.publish import retention
from pipeline.workflow import Run
from tests.images import Line, Place, program, running
from tests.sites import committed

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = committed(tmp_path)
    with made.client:
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with running(tmp_path / "registry") as made:
        yield made


def test_an_exponent_is_the_slope_of_the_logarithms() -> None:
    assert scaling.exponent({"10": [0.1], "100": [1.0], "1000": [10.0]}) == pytest.approx(1.0)
    assert scaling.exponent({"10": [1.0, 1.0, 9.0], "1000": [10_000.0]}) == pytest.approx(2.0), "the median counts"
    assert scaling.exponent({"10": [3.0], "100": [3.0]}) == pytest.approx(0.0)
    grows_late = {"10": [1.0], "100": [1.0], "1000": [100.0]}
    assert scaling.last(grows_late) == pytest.approx(2.0)


def test_every_count_of_files_is_fetched_and_looked_up(run: Run, tmp_path: Path) -> None:
    found = scaling.caches(tmp_path, run, 2, (2, 5))
    assert {what: {count: len(them) for count, them in points.items()} for what, points in found.items()} == {
        what: {"2": 2, "5": 2} for what in (FETCH, LOOKUP, FEW)
    }
    assert len(list((tmp_path / "cache-2/sha256").iterdir())) == 2


def test_half_of_the_tags_are_releases_and_what_is_attached_goes_with_them(place: Place, tmp_path: Path) -> None:
    registry = place.registry(place.name("scale"), Line())
    scaling.fill(registry, tmp_path, 40)
    tags = registry.tags()
    assert len(tags) == 40
    assert sum(bool(retention.FIXED.fullmatch(tag)) for tag in tags) == 20
    plan = retention.plan(registry, retention.Rule(newest=3, younger=timedelta(days=90)), scaling._NOW)
    assert len(plan.tags) == 14, "ten to each line, of which three stay"
    assert len(plan.digests) == 14 * 4, "the index, two platforms, what is attached"


def test_a_registry_is_measured_at_every_count(run: Run, tmp_path: Path) -> None:
    program()  # skips where there is none
    found = scaling.registries(tmp_path, run, 1, (8, 24))
    measured = (LIST, PLAN, DELETE, BARE)
    assert {what: [*points] for what, points in found.items()} == {what: ["8", "24"] for what in measured}
    ours, curls = (
        {
            path.name
            for path in tmp_path.glob(f"registry/storage/docker/registry/v2/repositories/{of}/24/_manifests/tags/*")
        }
        for of in ("bench", "alike")
    )
    assert ours == curls, "both removed the same"
    assert 0 < len(ours) < 24


def boxes(most: float) -> dict[str, Any]:
    """One round, the fifty pods of which took so many seconds."""
    memory = {OURS: 30_000_000, "containers": 5_000_000}
    used = {DOCKER: 0.5, SHIMS: 0.6, K3S: 0.1}
    more = {DOCKER: 2.5, SHIMS: 3.0, K3S: 0.01 * most}
    many = [
        {"count": 10, "seconds": 5.0, "processor": used, "memory": memory, "lost": 0, "removed in": 1.0},
        {
            **{"count": 50, "seconds": most, "processor": more, "memory": memory, "lost": 2},
            **{"back after": 9.0, "removed in": 4.0},
        },
    ]
    plain = [{"count": count, "seconds": count * 0.1, "processor": {}, "memory": memory} for count in (10, 50)]
    return {"pods": many, "containers": plain}


def test_what_grows_faster_than_linearly_and_what_is_lost_does_not_hold() -> None:
    seconds = {what: {"100": [0.1], "1000": [1.0]} for what in (FETCH, LOOKUP, FEW, LIST, PLAN)}
    many = [boxes(most) for most in (50.0, 51.0, 20.0)]
    removed = {DELETE: {"10": [1.0], "100": [90.0]}, BARE: {"10": [1.0], "100": [89.0]}}
    told = {one["name"]: one for one in scaling.targets({**seconds, **removed}, many)}
    assert told["pods: exponent, 10 to 50"]["from"] < 1 < told["pods: exponent, 10 to 50"]["median"]
    assert "| 50 | 50.00 s (20.00-51.00) | 1000 ms | 50 + 60 + 10 ms |" in "\n".join(scaling._many(many))
    assert {name: one["holds"] for name, one in told.items()} == {
        **{f"{what}: exponent, 100 to 1000": True for what in (FETCH, LOOKUP, FEW, LIST, PLAN)},
        f"{DELETE}: exponent, 10 to 100": False,
        f"{DELETE}: beside {BARE}": True,
        "pods: exponent, 10 to 50": False,
        "containers: exponent, 10 to 50": True,
        "pods lost by a SIGKILL of the whole": False,
    }


def test_where_pods_grow_faster_it_is_told_what_does() -> None:
    seconds = {what: {"100": [0.1], "1000": [1.0]} for what in (FETCH, LOOKUP, FEW, LIST, PLAN, DELETE, BARE)}
    steep, even = ([boxes(most)] for most in (60.0, 25.0))
    said = scaling._starting({"stub k3s": True, "boxes": steep, "targets": scaling.targets(seconds, steep)})
    assert "k3s 10 and 12 ms" in said
    assert said.endswith("what grows most is k3s, a stub: the next step is to measure with a real one.")
    said = scaling._starting({"stub k3s": False, "boxes": steep, "targets": scaling.targets(seconds, steep)})
    assert said.endswith("what grows most is k3s.")
    said = scaling._starting({"stub k3s": True, "boxes": even, "targets": scaling.targets(seconds, even)})
    assert said.endswith("started once for each.")


def test_page_and_drawing_are_what_the_figures_give() -> None:
    folder = ROOT / "docs/benchmarks"
    document = json.loads((folder / "scale.json").read_text(encoding="utf-8"))
    assert scaling.render(document) == (folder / "scale.md").read_text(encoding="utf-8")
    assert scaling.draw(document) == (folder / "scale.svg").read_text(encoding="utf-8")
