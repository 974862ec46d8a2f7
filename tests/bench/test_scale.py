"""`bench scale`: small caches and a real registry are filled and timed, the exponent, the table."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench import scale
from pipeline.bench.scale import BARE, DELETE, FETCH, FEW, LIST, LOOKUP, PLAN
from pipeline.publish import retention
from pipeline.workflow import Run
from tests.helpers.images import Line, Place, program, running
from tests.helpers.sites import committed


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = committed(tmp_path)
    with made.client:
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with running(tmp_path / "registry") as made:
        yield made


def test_an_exponent_is_the_slope_of_the_logarithms_between_the_two_largest() -> None:
    assert scale.exponent({"10": [0.1], "100": [1.0], "1000": [10.0]}) == pytest.approx(1.0)
    assert scale.exponent({"10": [1.0, 1.0, 9.0], "1000": [10_000.0]}) == pytest.approx(2.0), "the median counts"
    assert scale.exponent({"10": [3.0], "100": [3.0]}) == pytest.approx(0.0)
    grows_late = {"10": [1.0], "100": [1.0], "1000": [100.0]}
    assert scale.exponent(grows_late) == pytest.approx(2.0)


def test_every_count_of_files_is_fetched_and_looked_up(run: Run, tmp_path: Path) -> None:
    found = scale.caches(tmp_path, run, 2, (2, 5))
    assert {what: {count: len(them) for count, them in points.items()} for what, points in found.items()} == {
        what: {"2": 2, "5": 2} for what in (FETCH, LOOKUP, FEW)
    }
    assert len(list((tmp_path / "cache-2/sha256").iterdir())) == 2


def test_half_of_the_tags_are_releases_and_what_is_attached_goes_with_them(place: Place, tmp_path: Path) -> None:
    registry = place.registry(place.name("scale"), Line())
    scale.fill(registry, tmp_path, 40)
    tags = registry.tags()
    assert len(tags) == 40
    assert sum(bool(retention.FIXED.fullmatch(tag)) for tag in tags) == 20
    plan = retention.plan(registry, retention.Rule(newest=3, younger=timedelta(days=90)), scale._NOW)
    assert len(plan.tags) == 14, "ten to each line, of which three stay"
    assert len(plan.digests) == 14 * 4, "the index, two platforms, what is attached"


def test_a_registry_is_measured_at_every_count(run: Run, tmp_path: Path) -> None:
    program()  # skips where there is none
    found = scale.registries(tmp_path, run, 1, (8, 24))
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
    many = [{"count": 10, "seconds": 5.0, "lost": 0}, {"count": 50, "seconds": most, "lost": 2}]
    return {"pods": many, "containers": [{"count": count, "seconds": count * 0.1} for count in (10, 50)]}


def test_what_grows_faster_than_linearly_and_what_is_lost_does_not_hold() -> None:
    seconds = {what: {"100": [0.1], "1000": [1.0]} for what in (FETCH, LOOKUP, FEW, LIST, PLAN)}
    many = [boxes(most) for most in (50.0, 51.0, 20.0)]
    removed = {DELETE: {"10": [1.0], "100": [90.0]}, BARE: {"10": [1.0], "100": [89.0]}}
    targets = {one["name"]: one for one in scale.targets({**seconds, **removed}, many)}
    assert targets["pods: exponent, 10 to 50"]["from"] < 1 < targets["pods: exponent, 10 to 50"]["median"]
    assert {name: one["holds"] for name, one in targets.items()} == {
        **{f"{what}: exponent, 100 to 1000": True for what in (FETCH, LOOKUP, FEW, LIST, PLAN)},
        f"{DELETE}: exponent, 10 to 100": False,
        f"{DELETE}: beside {BARE}": True,
        "pods: exponent, 10 to 50": False,
        "containers: exponent, 10 to 50": True,
        "pods lost by a SIGKILL of the whole": False,
    }


def test_the_page_has_all_counts_in_one_table() -> None:
    seconds = {what: {"100": [0.1], "1000": [1.0]} for what in (FEW, PLAN)}
    (table,) = scale.page({"seconds": seconds, "boxes": [boxes(50.0)]}).tables
    assert table.columns == ["count", "10", "50", "100", "1000", "exponent of the last two"]
    assert [FEW, "", "", "100.0 ms", "1.0 s", "1.00"] in table.rows
    assert ["containers", "1.0 s", "5.0 s", "", "", "1.00"] in table.rows
