"""A real k3s and its system images in a rehearsal: the arguments, and the options of the boot tier."""

from __future__ import annotations

from pathlib import Path

import pytest
from python_on_whales import DockerClient

from pipeline.core.errors import IntentError
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant
from pipeline.engine.engine import Engine
from pipeline.rehearsal import pause
from pipeline.rehearsal.real_k3s import Real

AMD64, ARM64 = Platform.AMD64, Platform.ARM64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("k3s", "k3s-arm64", "images-amd64.tar.zst", "images-arm64.tar.zst"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def real(folder: Path) -> Real:
    return Real.of(
        [f"linux/amd64={folder}/k3s", f"linux/arm64={folder}/k3s-arm64"],
        [f"linux/amd64={folder}/images-amd64.tar.zst", f"linux/arm64={folder}/images-arm64.tar.zst"],
    )


def engine(platform: Platform, *, virtual: bool = False) -> Engine:
    return Engine(docker=DockerClient(), builder=None, description="an engine", platform=platform, virtual=virtual)


@pytest.mark.parametrize("text", ["k3s", "linux/mips={}/k3s", "linux/amd64={}/absent", "linux/amd64="])
def test_invalid_platform_or_path_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(IntentError, match=r"--k3s .* cannot be used"):
        Real.of([text.format(folder)], [])


def test_images_without_their_k3s_are_refused(folder: Path) -> None:
    with pytest.raises(IntentError, match=r"--images linux/arm64=… needs the k3s"):
        Real.of([f"linux/amd64={folder}/k3s"], [f"linux/arm64={folder}/images-arm64.tar.zst"])


def test_system_images_are_loaded_unless_the_image_contains_them(real: Real, folder: Path) -> None:
    (file,) = real.options(engine(AMD64), Variant.IMAGE, folder, Log(quiet=True)).extra_files
    assert file == (folder / "images-amd64.tar.zst", "/app/images/images-amd64.tar.zst")
    assert real.options(engine(AMD64), Variant.AIRGAP, folder, Log(quiet=True)).extra_files == ()


@pytest.mark.parametrize("variant", Variant)
def test_no_add_on_is_disabled_with_system_images(real: Real, folder: Path, variant: Variant) -> None:
    assert real.options(engine(AMD64), variant, folder, Log(quiet=True)).extra_environment == {}


def test_virtual_engine_or_no_system_images_means_only_a_pause_image(real: Real, folder: Path) -> None:
    alone = Real(k3s=real.k3s, images={})
    for given, chosen in ((real, engine(ARM64, virtual=True)), (alone, engine(ARM64))):
        options = given.options(chosen, Variant.IMAGE, folder, Log(quiet=True))
        assert options.extra_files == ((folder / "pause/arm64.tar", "/app/images/pause.tar"),)
        assert options.extra_environment == {"K3S_ARGS": pause.K3S_ARGS}


def test_stub_of_another_platform_needs_no_files(real: Real, folder: Path) -> None:
    amd64 = Real(k3s={AMD64: real.k3s[AMD64]}, images={})
    assert amd64.options(engine(ARM64, virtual=True), Variant.IMAGE, folder, Log(quiet=True)).extra_files == ()
