"""One short round of `bench start` on a real engine: both sides start and are watched, and nothing is left."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from pipeline.bench import boxes, processes, reach, stages, start
from pipeline.bench.boxes import Kind, Place
from pipeline.bench.stages import Until
from tests.image.box import Image

pytestmark = pytest.mark.engine


@pytest.fixture
def place(image: Image, pod_image: bytes) -> Iterator[Place]:
    yield boxes.place(image.engine, image.name, pod_image, image.folder)
    assert not [one for one in image.engine.container.list(all=True) if one.name.startswith("bench-")]
    assert not [one for one in image.engine.volume.list() if one.name.startswith("bench-")]


def test_both_sides_of_a_start_are_watched_through_all_stages(place: Place) -> None:
    with boxes.box(place, Kind.OURS) as box:
        ours = stages.watch(box, Until.POD)
        assert ours.keys() == stages.STAGES.keys() - ({"network"} if place.stub else set()) | {stages.CPU}
        assert 0 < ours[stages.CPU] < 3
        for one, other in itertools.pairwise(("entrypoint", "dockerd exec", "dockerd answers", "cluster", "pod")):
            assert ours[one] < ours[other], f"{one} before {other}: {ours}"
        own = {process.pid: processes.proportional(process.pid) for process in processes.ours(box.pid)}
        assert 1_000_000 < sum(own.values()) < 500_000_000, own
        assert reach.running_pods(box.pid) == 1
        stages.make_pods(box, 2)
        assert reach.running_pods(box.pid) == 3
        assert stages.lost_pods(box, 3) == 0
        assert 0 < start.health(box) < 1
    with boxes.box(place, Kind.BARE) as box:
        bare = stages.watch(box, Until.POD)
        assert bare.keys() == ours.keys() - {"entrypoint", "dockerd exec", "wait-ready", stages.CPU}
