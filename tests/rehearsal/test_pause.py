from __future__ import annotations

from pathlib import Path

import pytest
from python_on_whales import DockerClient

from pipeline.core.platforms import Platform
from pipeline.rehearsal import pause
from pipeline.rehearsal.supplies import Supplies


def test_the_same_binary_gives_the_same_archive() -> None:
    assert pause.archive(b"x", Platform.AMD64) == pause.archive(b"x", Platform.AMD64)
    assert pause.archive(b"x", Platform.AMD64) != pause.archive(b"x", Platform.ARM64)


@pytest.mark.engine
def test_the_real_engine_loads_it_and_it_stays_up(engine: DockerClient, brought: Supplies) -> None:
    host = Platform.host()
    assert host is not None
    engine.load(Path(brought.root).parent / "pause" / f"{host.architecture}.tar")
    with engine.run(pause.NAME, detach=True, networks=["none"]) as container:
        assert container.state.running
        assert container.state.status == "running"


def test_a_real_k3s_is_told_its_name_whatever_its_own_default_is() -> None:
    assert f"--pause-image={pause.NAME}" in pause.K3S_ARGS.split()
