"""The variant airgap: k3s's system images come up by themselves, without any network, once for each volume.

What is put over the image under test is what the Dockerfile's stage system-images puts there, with the rehearsal's
stub of k3s's archive: every name, one small image behind all of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.rehearsal import pause
from tests.image.box import Box, Image, box

pytestmark = pytest.mark.engine

FOLDER = "/usr/share/dind-k3s/images"
HOST = Platform.host()
ARCHIVE = f"k3s-airgap-images-{HOST.architecture if HOST else ''}.tar.zst"
PAUSE, COREDNS = (next(name for name in pause.SYSTEM_IMAGES if word in name) for word in ("pause", "coredns"))
OFFLINE = {"networks": ["none"]}


@pytest.fixture(scope="module")
def airgap(image: Image, pod_image: bytes) -> Iterator[Image]:
    """The image under test with system images in it."""
    folder = image.folder / "airgap"
    files = folder / FOLDER.lstrip("/")
    files.mkdir(parents=True)
    packed = pause.system_images(pod_image)
    (files / ARCHIVE).write_bytes(packed)
    (files / "SHA256SUMS").write_text(f"{Digest.of(packed).hex}  {ARCHIVE}\n")
    (folder / "Dockerfile").write_text(f"FROM {image.name}\nCOPY usr/ /usr/\n")
    made = replace(image, name="dind-k3s.local/under-test:airgap")
    image.engine.buildx.build(folder, tags=[made.name], load=True, progress=False)
    yield made
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def offline(airgap: Image) -> Iterator[Box]:
    """A box without any network, ready."""
    with box(airgap, options=OFFLINE) as made:
        yield made.up()


def loaded(made: Box) -> list[str]:
    """The names that dockerd logged, in their order; each container begins with none."""
    lines = (line.partition("[preload] Loaded image: ")[2] for line in made.log().splitlines())
    return [line.strip() for line in lines if line]


def archive_state(made: Box) -> str:
    """What the preload says of k3s's archive."""
    return str(json.loads(made.do("cat", "/run/dind-k3s/images.json"))["images"][ARCHIVE]["state"])


def test_what_every_pod_needs_is_there_before_k3s_and_then_the_rest(offline: Box) -> None:
    lines = offline.log().splitlines()
    first_of_k3s = next(number for number, line in enumerate(lines) if line.startswith("[k3s]"))
    before = {line.partition("Loaded image: ")[2] for line in lines[:first_of_k3s]}
    assert before >= {PAUSE, COREDNS}
    offline.until("all system images", lambda: set(loaded(offline)) == set(pause.SYSTEM_IMAGES))
    assert set(loaded(offline)[:2]) == {PAUSE, COREDNS}
    there = offline.do("docker", "images", "--format", "{{.Repository}}:{{.Tag}}").split()
    assert sorted(there) == sorted(pause.SYSTEM_IMAGES)


def test_a_pod_runs_without_any_network(offline: Box) -> None:
    assert "eth0" not in offline.do("ls", "/sys/class/net")
    assert "dind-k3s0" in offline.do("ip", "route", "show", "default")
    offline.kubectl("run", "still", f"--image={PAUSE}", "--image-pull-policy=Never")
    offline.kubectl("wait", "--for=condition=Ready", "pod/still", "--timeout=60s")
    offline.kubectl("delete", "pod", "still", "--now")


def test_each_archive_is_loaded_once_for_a_volume(offline: Box) -> None:
    offline.until("all system images", lambda: archive_state(offline) == "loaded")
    offline.recreate()
    offline.ready()
    offline.until("the preload to end", lambda: archive_state(offline) == "known")
    assert loaded(offline) == []
    # another release with another archive of the same name
    offline.files = {f"{FOLDER}/SHA256SUMS": f"{'0' * 64}  {ARCHIVE}\n"}
    offline.recreate()
    offline.until("the new one to be loaded", lambda: archive_state(offline) == "loaded")


def test_a_broken_archive_is_told_and_stops_nothing(airgap: Image) -> None:
    with box(airgap, files={f"{FOLDER}/{ARCHIVE}": "not what zstd or tar write"}) as broken:
        broken.up()
        broken.until("the failure to be told", lambda: f"{ARCHIVE} could not be loaded" in broken.log())
        assert "Traceback" not in broken.log()
        assert broken.state()["running"]


def test_dockerd_alone_gets_none_of_them(airgap: Image) -> None:
    with box(airgap, environment={"K3S_DISABLE": "1"}) as alone:
        alone.up("docker")
        alone.until("the preload to end", lambda: "EXITED" in alone.fails("supervisorctl", "status", "preload"))
        assert alone.do("docker", "images", "--quiet") == ""
