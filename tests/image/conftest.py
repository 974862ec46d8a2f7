"""The image of the last rehearsal in a real engine, with this checkout's rootfs/ and stand-in k3s put over it.

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

from pipeline import layout, lock, release, versions
from pipeline.log import Log
from pipeline.platforms import Platform
from pipeline.rehearsal import standin_build
from pipeline.smoke import load
from tests.image.box import Box, Image, box

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist/rehearsal"
NAME = "dind-k3s.local/under-test:1"

# As the Dockerfile's stage `own` does it. Byte code in there is never checked, so none of the old one may stay.
_DOCKERFILE = r"""
FROM {base}
RUN --network=none --mount=type=bind,target=/in <<"EOF"
set -eu
rm -rf /usr/local/lib/dind-k3s
cp -R /in/rootfs/. /
find /usr/local/lib/dind-k3s -type d -exec chmod 0755 {{}} +
find /usr/local/lib/dind-k3s -type f -exec chmod 0644 {{}} +
chmod 0755 /usr/local/bin/* /usr/local/sbin/* /usr/local/lib/dind-k3s/run-*
install -m 0755 /in/k3s /usr/local/bin/k3s
python3 -m compileall -q --invalidation-mode unchecked-hash /usr/local/lib/dind-k3s
EOF
"""


@pytest.fixture(scope="session")
def image(engine: DockerClient) -> Iterator[Image]:
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
        shutil.copytree(ROOT / "rootfs", folder / "rootfs", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "k3s").write_bytes(standin_build.build(rehearsed.versions["k3s"], host.value))
        (folder / "Dockerfile").write_text(_DOCKERFILE.format(base=loaded.name))
        engine.buildx.build(folder, tags=[NAME], load=True, progress=False)
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
