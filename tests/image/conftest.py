"""The image of the last rehearsal in a real engine, with this checkout's rootfs/ and a k3s put over it.

The k3s is the stub, or with `--k3s PATH` a real one; `--images PATH` is its archive of system images. `--release dist`
takes what was built for a release instead, to the byte, with the lock's k3s and system images in it.

So an edit of rootfs/ is tested without a build of the whole image; the exact bytes that a release would publish are
what the rehearsal's own smoke boots.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from python_on_whales import DockerClient

from pipeline import cache as cached
from pipeline import layout, lock, release, versions
from pipeline.bench import starting
from pipeline.lock import Artifact, Lock
from pipeline.log import Log
from pipeline.platforms import Platform
from pipeline.rehearsal import overlay, pause, standin_build, supplies
from pipeline.release import Variant
from pipeline.smoke import load
from pipeline.upstream import AIRGAP
from pipeline.versions import Intent
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
    return pause.archive(starting.busybox(cached.require(cached.folder(), own.busybox(HOST).digest)), HOST)


def file_of(files: Iterable[Artifact], component: str) -> Artifact:
    return next(file for file in files if (file.component, file.platform) == (component, HOST))


@pytest.fixture(scope="session")
def image(
    engine: DockerClient, released: Path | None, own: Lock, real: Path | None, images: Path | None
) -> Iterator[Image]:
    """The image to test: a release's own bytes, of the variant airgap if there is one; else the rehearsed, overlaid."""
    assert HOST is not None
    dist = released or DIST
    variant = Variant.AIRGAP if released and images else Variant.IMAGE
    built = release.Image.read(variant.below(dist))
    whole = layout.read(variant.below(dist) / release.LAYOUT, built.digest)
    loaded = load.run(engine, whole, built, HOST, Log(quiet=True))
    folder = Path(tempfile.mkdtemp(prefix="dind-k3s-image-"))
    try:
        if released:
            yield Image(name=loaded.name, engine=engine, folder=folder)
            return
        if real:
            program = real.read_bytes()
            version = supplies.k3s_version({HOST: real})
        else:
            version = own.versions["k3s"]
            program = standin_build.build(version, HOST.value)
        k3s = overlay.K3s(program=program, version=version, images=images)
        overlay.build(engine, loaded.name, NAME, ROOT, folder, k3s)
        yield Image(name=NAME, engine=engine, folder=folder)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def boxes(image: Image) -> Iterator[Callable[..., Box]]:
    """Makes boxes, from their fields; all are removed at the end of the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(box(image, **settings))


@pytest.fixture(scope="module")
def running(image: Image) -> Iterator[Box]:
    """One box with defaults, ready, for tests of a module that leave it as they found it."""
    with box(image) as made:
        yield made.up()
