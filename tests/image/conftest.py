"""The image of the last rehearsal in a real engine, with this checkout's rootfs/ and a k3s put over it.

The k3s is the stub, or with `--k3s PATH` a real one; `--images PATH` is its archive of system images. `--release dist`
takes what was built for a release instead, to the byte, with the lock's k3s and system images in it. `--guest NAME`
starts it in a small machine (pipeline/engine/virtual/disks.py), so that there is cgroup v2 where this machine has v1.

So an edit of rootfs/ is tested without a build of the whole image; the exact bytes that a release would publish are
what the rehearsal's own smoke boots.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from python_on_whales import DockerClient

from pipeline.bench import start
from pipeline.components import AIRGAP
from pipeline.core import cache as cached
from pipeline.core import records
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant
from pipeline.engine.engines import Engines
from pipeline.engine.virtual.disks import GUESTS, Content
from pipeline.inputs import lock, versions
from pipeline.inputs.lock import Artifact, Lock
from pipeline.inputs.versions import Intent
from pipeline.oci import layout
from pipeline.rehearsal import overlay, pause, real_k3s, stub_k3s_build
from pipeline.smoke import load
from tests.image.box import Box, Image, box

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist/rehearsal"
NAME = "dind-k3s.local/under-test:1"
HOST = Platform.host()


@pytest.fixture(scope="session")
def released(request: pytest.FixtureRequest) -> Path | None:
    """The folder of the built image that was given, which is tested as it is; None with the rehearsed one."""
    given: Path | None = request.config.getoption("--release")
    return given


@pytest.fixture(scope="session")
def intent(released: Path | None) -> Intent:
    """The intent of the image. Skips when nothing was rehearsed in this checkout; in CI that is a failure."""
    if not released and not (DIST / "versions.lock.yaml").exists():
        pytest.skip("there is no image to test: nox -s rehearse makes one in dist/rehearsal/")
    return versions.read((ROOT if released else DIST) / "versions.yaml")


@pytest.fixture(scope="session")
def own(released: Path | None, intent: Intent) -> Lock:
    """The lock of the image."""
    return lock.read((ROOT if released else DIST) / "versions.lock.yaml", intent)


@pytest.fixture(scope="session")
def real(request: pytest.FixtureRequest, released: Path | None, own: Lock) -> Path | None:
    """The real k3s: the one that was given, or the lock's; None with the stub."""
    if released:
        return cached.require(cached.folder(), file_of(own.artifacts, "k3s").digest)
    given: Path | None = request.config.getoption("--k3s")
    return given


@pytest.fixture(scope="session")
def images(request: pytest.FixtureRequest, released: Path | None, own: Lock) -> Path | None:
    """The archive of the real k3s's system images: the one that was given, or the lock's; None without one."""
    if released:
        return cached.require(cached.folder(), file_of(own.airgap, AIRGAP).digest) if own.airgap else None
    given: Path | None = request.config.getoption("--images")
    return given


@pytest.fixture(scope="session")
def pod_image(own: Lock) -> bytes:
    """A docker archive of an image that sleeps, under the name pause.NAME."""
    assert HOST is not None
    return pause.archive(start.busybox(cached.require(cached.folder(), own.busybox(HOST).digest)), HOST)


def file_of(files: Iterable[Artifact], component: str) -> Artifact:
    return next(file for file in files if (file.component, file.platform) == (component, HOST))


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """For files that are copied into containers."""
    made = Path(tempfile.mkdtemp(prefix="dind-k3s-image-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def put(
    released: Path | None, own: Lock, real: Path | None, images: Path | None, folder: Path
) -> Callable[[DockerClient], str]:
    """Has an engine take the image; its name. A release's own, with system images if it has any; else the overlaid."""
    host = HOST
    assert host is not None
    variant = Variant.AIRGAP if released and images else Variant.IMAGE
    dist = variant.below(released or DIST)

    def overlaid(client: DockerClient) -> str:
        built = records.Image.read(dist)
        whole = layout.read(dist / records.LAYOUT, built.digest)
        name = load.run(client, whole, built, host, Log(quiet=True)).name
        if released:
            return name
        version = real_k3s.version({host: real}) if real else own.versions["k3s"]
        program = real.read_bytes() if real else stub_k3s_build.build(version, host.value)
        k3s = overlay.K3s(program=program, version=version, images=images)
        overlay.build(client, name, NAME, ROOT, folder, k3s)
        return NAME

    return overlaid


@pytest.fixture(scope="session")
def image(
    request: pytest.FixtureRequest, own: Lock, put: Callable[[DockerClient], str], folder: Path
) -> Iterator[Image]:
    """The image to test: in a private engine, or with --guest in that of a small machine."""
    name = request.config.getoption("--guest")
    if name is None:
        engine: DockerClient = request.getfixturevalue("engine")
        yield Image(name=put(engine), engine=engine, folder=folder)
        return
    assert HOST is not None
    names: list[str] = []
    content = Content(key=uuid.uuid4().hex, fill=lambda client: names.append(put(client)))
    capture = request.config.pluginmanager.getplugin("capturemanager")
    made = Engines(
        lock=own, cache=cached.folder(), log=Log(), start=lambda: pytest.fail("a guest alone"), guest=GUESTS[name]
    )
    with ExitStack() as stack:
        with capture.global_and_fixture_disabled():
            machine = stack.enter_context(made.virtual(HOST, content, folder / "console"))
        yield Image(name=names[0], engine=machine.docker, folder=folder, patience=machine.patience)


@pytest.fixture
def earlier(request: pytest.FixtureRequest, image: Image, tmp_path: Path) -> Image:
    """The image with the k3s of --earlier."""
    program: Path = request.config.getoption("--earlier")
    assert HOST is not None
    k3s = overlay.K3s(program=program.read_bytes(), version=real_k3s.version({HOST: program}))
    overlay.build(image.engine, image.name, f"{NAME}-earlier", ROOT, tmp_path, k3s)
    return replace(image, name=f"{NAME}-earlier")


@pytest.fixture
def boxes(image: Image) -> Iterator[Callable[..., Box]]:
    """Makes boxes, from their fields; all are removed at the end of the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(box(image, **settings))


@pytest.fixture
def network(image: Image) -> Iterator[str]:
    """A network of the outer engine, where boxes know each other by name."""
    name = f"net-{uuid.uuid4().hex[:8]}"
    image.engine.network.create(name)
    yield name
    image.engine.network.remove(name)


@pytest.fixture(scope="module")
def running(image: Image) -> Iterator[Box]:
    """One box with defaults, ready, for tests of a module that leave it as they found it."""
    with box(image) as made:
        yield made.up()
