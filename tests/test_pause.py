from __future__ import annotations

from pathlib import Path

import pytest
from python_on_whales import DockerClient

from pipeline.platforms import Platform
from pipeline.rehearsal import pause, supplies
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


def test_debians_versions_become_the_vendors() -> None:
    assert supplies._plain("28.5.2+dfsg4-5") == "28.5.2"
    assert supplies._plain("0.29.1+ds1-4") == "0.29.1"
    assert supplies._plain("1:2.40.3~rc1-1") == "2.40.3"


def test_a_release_files_digests() -> None:
    text = f"Origin: Debian\nMD5Sum:\n x 1 a\nSHA256:\n {'a' * 64} 12 main/binary-amd64/Packages.xz\nOther: x\n"
    assert {name: digest.hex for name, digest in supplies._listed(text).items()} == {
        "main/binary-amd64/Packages.xz": "a" * 64
    }
