"""The image of the last rehearsal in a real engine, with this checkout's rootfs/ and a k3s put over it.

The k3s is the stub, or with `--k3s PATH` a real one; `--images PATH` is its archive of system images.

So an edit of rootfs/ is tested without a build of the whole image; the exact bytes that a release would publish are
what the rehearsal's own smoke boots.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from python_on_whales import DockerClient

from pipeline import elf, layout, lock, release, versions
from pipeline.log import Log
from pipeline.platforms import Platform
from pipeline.rehearsal import overlay, standin_build
from pipeline.smoke import load
from tests.image.box import Box, Image, box

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist/rehearsal"
NAME = "dind-k3s.local/under-test:1"


@pytest.fixture(scope="session")
def real(request: pytest.FixtureRequest) -> Path | None:
    """The real k3s that was given; None with the stub."""
    given: Path | None = request.config.getoption("--k3s")
    return given


@pytest.fixture(scope="session")
def images(request: pytest.FixtureRequest) -> Path | None:
    """The archive of the real k3s's system images, if one was given."""
    given: Path | None = request.config.getoption("--images")
    return given


@pytest.fixture(scope="session")
def image(engine: DockerClient, real: Path | None, images: Path | None) -> Iterator[Image]:
    """The image to test. Skips when nothing was rehearsed in this checkout; in CI that is a failure."""
    if not (DIST / release.IMAGE).exists():
        pytest.skip("there is no image to test: nox -s rehearse makes one in dist/rehearsal/")
    host = Platform.host()
    assert host is not None
    built = release.Image.read(DIST)
    loaded = load.run(engine, layout.read(DIST / "image", built.digest), built, host, Log(quiet=True))
    rehearsed = lock.read(DIST / "versions.lock.yaml", versions.read(DIST / "versions.yaml"))
    folder = Path(tempfile.mkdtemp(prefix="dind-k3s-image-"))
    try:
        if real:
            program = real.read_bytes()
            version = elf.stated_version(program) or "v1.36.3+k3s1"
        else:
            version = rehearsed.versions["k3s"]
            program = standin_build.build(version, host.value)
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
