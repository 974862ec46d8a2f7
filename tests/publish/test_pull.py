"""A published image comes back as it was built, from a real registry, without credentials."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.errors import RegistryError
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.core.records import Image, Variant
from pipeline.oci import layout
from pipeline.publish import pull
from tests.helpers.examples import INTENT, LOCK
from tests.helpers.images import Line, Place, make, publication, publish, running

LOG = Log(quiet=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running(tmp_path_factory.mktemp("registry")) as place:
        yield place


def published(place: Place, dist: Path, repository: str) -> tuple[Image, Image]:
    """The image and its variant, in that repository."""
    intent = replace(INTENT, names=(place.name(repository),))
    line = Line()
    made: list[Image] = []
    for variant in Variant:
        image = make(variant.below(dist), repository, variant)
        folder = variant.below(dist)
        base = made[0] if made else None
        publish(publication(intent, LOCK, image, folder, lambda name: place.registry(name, line), base=base))
        made.append(image)
    return made[0], made[1]


def test_it_comes_back_as_it_was_built(place: Place, tmp_path: Path) -> None:
    image, airgap = published(place, tmp_path / "built", "pull/back")
    registry = place.anonymous(place.name("pull/back"))
    for made, tag in ((image, "latest"), (airgap, "latest-airgap")):
        found = pull.run(registry, tag, tmp_path / "pulled", LOG)
        folder = made.variant.below(tmp_path / "pulled")
        assert Image.read(folder) == found
        assert (found.digest, found.platforms, found.lock) == (made.digest, made.platforms, LOCK.digest)
        assert found.inputs == made.digest  # never what `build` would look for
        assert layout.read(folder / "image", made.digest).verify() > 0
        ours, theirs = (
            {path.name: path.read_bytes() for path in (below / "image/blobs/sha256").iterdir()}
            for below in (folder, made.variant.below(tmp_path / "built"))
        )
        assert ours == theirs
        top = json.loads((folder / "image/index.json").read_text())
        assert [entry["digest"] for entry in top["manifests"]] == [made.digest.text]


def test_what_is_there_does_not_come_again_and_what_was_spoiled_does(place: Place, tmp_path: Path) -> None:
    image, _ = published(place, tmp_path / "built", "pull/again")
    name = place.name("pull/again")
    pull.run(place.anonymous(name), "latest", tmp_path / "pulled", LOG)
    layer = next(iter(image.platforms.values())).layers[0]
    path = tmp_path / "pulled/image/blobs/sha256" / layer.hex
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    line = Line()
    pull.run(place.registry(name, line), "latest", tmp_path / "pulled", LOG)
    blobs = [request.url.path.rpartition("/")[2] for request in line.requests if "/blobs/" in request.url.path]
    assert blobs == [layer.text]


def test_what_is_not_ours_or_not_there_is_told(place: Place, tmp_path: Path) -> None:
    image, _ = published(place, tmp_path / "built", "pull/refused")
    registry = place.anonymous(place.name("pull/refused"))
    with pytest.raises(RegistryError, match="there is no"):
        pull.run(registry, "v0.0", tmp_path / "pulled", LOG)
    with pytest.raises(RegistryError, match="is not an image of this project"):
        pull.run(registry, next(iter(image.platforms.values())).digest.text, tmp_path / "pulled", LOG)
    place.forget_manifest(place.name("pull/refused"), next(iter(image.platforms.values())).digest)
    with pytest.raises(RegistryError, match="lacks a part of the image"):
        pull.run(registry, image.digest.text, tmp_path / "other", LOG)
    assert not (tmp_path / "pulled/image.json").exists()
    assert not (tmp_path / "other/image.json").exists()


def test_a_layer_that_the_registry_changed_is_refused(place: Place, tmp_path: Path) -> None:
    image, _ = published(place, tmp_path / "built", "pull/changed")
    layer = next(iter(image.platforms.values())).layers[1]
    kept = place.blob(layer)
    kept.write_bytes(kept.read_bytes()[:-1] + b"!")
    with pytest.raises(RegistryError, match="sent a blob with another digest") as failure:
        pull.run(place.anonymous(place.name("pull/changed")), "latest", tmp_path / "pulled", LOG)
    assert layer.text in str(failure.value)
    assert [
        path for path in (tmp_path / "pulled/image/blobs/sha256").iterdir() if Digest.of_file(path).hex != path.name
    ] == []
