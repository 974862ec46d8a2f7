from __future__ import annotations

from pathlib import Path

import pytest
from python_on_whales import DockerClient

from pipeline.core.platforms import Platform
from pipeline.rehearsal import pause
from pipeline.rehearsal.supplies import Supplies


def test_archive_is_reproducible() -> None:
    assert pause.archive(b"x", Platform.AMD64) == pause.archive(b"x", Platform.AMD64)
    assert pause.archive(b"x", Platform.AMD64) != pause.archive(b"x", Platform.ARM64)


@pytest.mark.engine
def test_engine_loads_the_image_and_it_keeps_running(engine: DockerClient, supplied: Supplies) -> None:
    host = Platform.host()
    assert host is not None
    engine.load(Path(supplied.root).parent / "pause" / f"{host.architecture}.tar")
    with engine.run(pause.NAME, detach=True, networks=["none"]) as container:
        assert container.state.running
        assert container.state.status == "running"


def test_k3s_gets_the_name_of_the_pause_image() -> None:
    assert f"--pause-image={pause.NAME}" in pause.K3S_ARGS.split()
