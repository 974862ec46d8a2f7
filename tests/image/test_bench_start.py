"""One short round of `bench start` on a real engine: both sides come up and are seen to, and nothing is left."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from pipeline.bench import boxes, measures, processes
from pipeline.bench.boxes import Kind, Place
from tests.image.box import Image

pytestmark = pytest.mark.engine


@pytest.fixture
def place(image: Image, pod_image: bytes) -> Iterator[Place]:
    yield boxes.place(image.engine, image.name, pod_image, image.folder)
    assert not [one for one in image.engine.container.list(all=True) if one.name.startswith("bench-")]
    assert not [one for one in image.engine.volume.list() if one.name.startswith("bench-")]


def test_both_sides_of_a_start_are_watched_through_all_stages(place: Place) -> None:
    with boxes.box(place, Kind.OURS) as box:
        ours = boxes.watch(box, pod=True)
        assert ours.keys() == boxes.STAGES.keys() - ({"network"} if place.stub else set()) | {boxes.CPU}
        assert 0 < ours[boxes.CPU] < 3
        chain = ("first process", "entrypoint", "supervisor", "dockerd exec", "dockerd answers", "k3s exec", "API")
        # The first process' start is told in clock ticks of 10 ms.
        for one, other in itertools.pairwise((*chain, "cluster", "pod")):
            assert ours[one] < ours[other] + 0.02, f"{one} before {other}: {ours}"
        assert [step for step, _ in boxes.step_seconds(box.log(box.began))][:2] == ["privileges", "lock"]
        memory = measures.memory(box)
        assert all(1_000_000 < count < 500_000_000 for count in memory.values()), memory
        pod = 1 if place.stub else 2  # a real one has a pause container, too
        assert len(processes.groups(box.pid)[processes.CONTAINERS]) == pod
        assert measures.containers(box, 2) > 0
        assert len(processes.groups(box.pid)[processes.CONTAINERS]) == pod + 2
        assert 0 < measures._health(box) < 1
    with boxes.box(place, Kind.BARE) as box:
        bare = boxes.watch(box, pod=True)
        assert bare.keys() == ours.keys() - {"entrypoint", "supervisor", "docker is told", "cluster is told"}
