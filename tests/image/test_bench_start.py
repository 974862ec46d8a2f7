"""One short round of `bench start` on a real engine: both sides come up and are seen to, and nothing is left."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from pipeline.bench import boxes, measures, processes, reach, start
from pipeline.bench.boxes import Kind, Place, Until
from tests.image.box import Image

pytestmark = pytest.mark.engine


@pytest.fixture
def place(image: Image, pod_image: bytes) -> Iterator[Place]:
    yield boxes.place(image.engine, image.name, pod_image, image.folder)
    assert not [one for one in image.engine.container.list(all=True) if one.name.startswith("bench-")]
    assert not [one for one in image.engine.volume.list() if one.name.startswith("bench-")]


def test_both_sides_of_a_start_are_watched_through_all_stages(place: Place) -> None:
    with boxes.box(place, Kind.OURS) as box:
        ours = boxes.watch(box, Until.POD)
        assert ours.keys() == boxes.STAGES.keys() - ({"network"} if place.stub else set()) | {boxes.CPU}
        assert 0 < ours[boxes.CPU] < 3
        for one, other in itertools.pairwise(("entrypoint", "dockerd exec", "dockerd answers", "cluster", "pod")):
            assert ours[one] < ours[other], f"{one} before {other}: {ours}"
        own = {process.pid: processes.proportional(process.pid) for process in processes.ours(box.pid)}
        assert 1_000_000 < sum(own.values()) < 500_000_000, own
        pod = 1 if place.stub else 2  # a real one has a pause container, too
        assert reach.running(box.pid) == pod
        assert measures.containers(box, 2) > 0
        assert reach.running(box.pid) == pod + 2
        assert 0 < start.health(box) < 1
    with boxes.box(place, Kind.BARE) as box:
        bare = boxes.watch(box, Until.POD)
        assert bare.keys() == ours.keys() - {"entrypoint", "dockerd exec", "cluster is told", boxes.CPU}
