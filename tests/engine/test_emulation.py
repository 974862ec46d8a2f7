"""binfmt handlers, in a folder in the place of binfmt_misc."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.engine import emulation

AARCH64 = "7f454c460201010000000000000000000200b700"


def register(folder: Path, name: str, *, magic: str, state: str = "enabled") -> None:
    (folder / name).write_text(
        f"{state}\ninterpreter /usr/bin/{name}\nflags: POCF\noffset 0\nmagic {magic}\nmask {'f' * 40}\n",
        encoding="ascii",
    )


@pytest.fixture
def binfmt(tmp_path: Path) -> Path:
    (tmp_path / "register").touch()
    (tmp_path / "status").write_text("enabled\n", encoding="ascii")
    return tmp_path


def test_no_handler(binfmt: Path) -> None:
    assert emulation.handler(Platform.ARM64, binfmt) is None
    assert emulation.handler(Platform.ARM64, binfmt / "missing") is None


def test_a_handler_is_recognized_by_its_machine(binfmt: Path) -> None:
    register(binfmt, "qemu-riscv64", magic=AARCH64.replace("b700", "f300"))
    assert emulation.handler(Platform.ARM64, binfmt) is None
    register(binfmt, "qemu-aarch64", magic=AARCH64)
    assert emulation.handler(Platform.ARM64, binfmt) == "/usr/bin/qemu-aarch64"
    assert emulation.handler(Platform.AMD64, binfmt) is None


def test_a_disabled_handler_is_ignored(binfmt: Path) -> None:
    register(binfmt, "qemu-aarch64", magic=AARCH64, state="disabled")
    assert emulation.handler(Platform.ARM64, binfmt) is None


def test_a_handler_is_registered_where_binfmt_misc_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binfmt = tmp_path / "root/proc/sys/fs/binfmt_misc"
    binfmt.mkdir(parents=True)
    (binfmt / "register").touch()
    monkeypatch.setattr(emulation, "find", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(emulation, "_IN_USE", tmp_path / "lock")
    other = next(platform for platform in Platform if platform != Platform.host())
    with emulation.registered(other, Log(quiet=True), binfmt) as interpreter:
        assert interpreter == f"/usr/bin/qemu-{other.names.qemu}-static"
    assert (binfmt / "register").read_text().startswith(f":dind-k3s-{other.names.qemu}:M::")
