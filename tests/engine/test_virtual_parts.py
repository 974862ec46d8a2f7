"""Parts of a guest, without starting one: its initramfs, its command line, its folder, the list of guests."""

from __future__ import annotations

import fcntl
import lzma
import os
import stat
from pathlib import Path

import pytest

from pipeline.core.errors import EngineError, IntentError
from pipeline.core.platforms import Platform
from pipeline.engine.virtual import initramfs, qemu
from pipeline.engine.virtual.disks import GUESTS, System
from pipeline.engine.virtual.qemu import Accelerator, Folder

TCG = Accelerator(name="tcg", argument="tcg,thread=multi,tb-size=512", cpu="cortex-a72", cores=2)


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Return name → mode and content, parsed as the kernel does: fixed fields, everything padded to four bytes."""
    entries: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701", at
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        start = (at + 110 + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert start == len(archive)
            return entries
        entries[name] = (mode, archive[start : start + size])
        at = (start + size + 3) // 4 * 4


def test_an_initramfs_has_its_folders_before_its_files() -> None:
    archive = initramfs.build(b"busybox", b"#!/bin/busybox sh\n", [("a.ko", b"1"), ("b.ko", b"22222")])
    entries = unpacked(archive)
    assert list(entries)[:6] == ["bin", "dev", "modules", "proc", "root", "sys"]
    assert entries["modules/order"][1] == b"a.ko\nb.ko\n"
    assert entries["modules/b.ko"] == (stat.S_IFREG | 0o755, b"22222")
    assert entries["init"] == (stat.S_IFREG | 0o755, b"#!/bin/busybox sh\n")
    assert stat.S_ISCHR(entries["dev/console"][0])
    assert archive == initramfs.build(b"busybox", b"#!/bin/busybox sh\n", [("a.ko", b"1"), ("b.ko", b"22222")])


def test_modules_come_once_uncompressed_after_their_dependencies(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    for name in ("virtio", "virtio_ring", "virtio-pci", "virtio_blk"):
        (tmp_path / "kernel" / f"{name}.ko.xz").write_bytes(lzma.compress(name.encode()))
    # As depmod writes it: dependencies, the nearest first.
    (tmp_path / "modules.dep").write_text(
        "kernel/virtio.ko.xz:\n"
        "kernel/virtio_ring.ko.xz: kernel/virtio.ko.xz\n"
        "kernel/virtio-pci.ko.xz: kernel/virtio_ring.ko.xz kernel/virtio.ko.xz\n"
        "kernel/virtio_blk.ko.xz: kernel/virtio_ring.ko.xz kernel/virtio.ko.xz\n"
    )
    modules = initramfs.modules(tmp_path)
    assert [name for name, _ in modules] == ["virtio.ko", "virtio_ring.ko", "virtio_pci.ko", "virtio_blk.ko"]
    assert modules[2][1] == b"virtio-pci"


@pytest.mark.parametrize("platform", Platform)
def test_a_guest_has_one_port_and_it_is_on_loopback(tmp_path: Path, platform: Platform) -> None:
    system = System(kernel=tmp_path / "k", initramfs=tmp_path / "i", root=tmp_path / "with,comma")
    arguments = qemu.command(
        platform,
        GUESTS["default"],
        TCG,
        qemu.Drives(system=system, content=tmp_path / "disk"),
        console=tmp_path / "console",
        folder=tmp_path,
    )
    text = " ".join(arguments)
    assert text.count("hostfwd") == 1
    assert "hostfwd=tcp:127.0.0.1:0-:2375" in text
    assert "-nodefaults" in arguments
    assert "-smp 2 " in text
    assert text.count("snapshot=on") == 2
    assert "with,,comma" in text
    assert {Platform.ARM64: "console=ttyAMA0", Platform.AMD64: "console=ttyS0"}[platform] in text


def test_the_guests() -> None:
    assert {name: guest.command_line for name, guest in GUESTS.items()} == {
        "default": "dind.cgroup=v2 dind.block=",
        "cgroup-v1": "dind.cgroup=v1 dind.block=",
        "nft-only": "dind.cgroup=v2 dind.block=ip_tables,ip6_tables,arp_tables,ebtables",
    }


def test_an_unknown_guest_is_an_error_of_intent() -> None:
    from pipeline.engine import engines

    with pytest.raises(IntentError, match="unknown guest 'cgroup-v3'") as failed:
        engines.guest("cgroup-v3")
    assert "cgroup-v1" in (failed.value.expected or "")


def test_leftovers_of_dead_machines_are_removed(tmp_path: Path) -> None:
    (tmp_path / "run-dead").mkdir()
    (tmp_path / "run-dead" / "lock").touch()
    (tmp_path / "run-nothing").mkdir()
    first = Folder.make(tmp_path)
    second = Folder.make(tmp_path)
    assert sorted(tmp_path.glob("run-*")) == sorted([first.path, second.path])
    os.close(first.lock)
    third = Folder.make(tmp_path)
    assert sorted(tmp_path.glob("run-*")) == sorted([second.path, third.path])
    with (third.path / "lock").open() as stream, pytest.raises(BlockingIOError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for folder in (second, third):
        os.close(folder.lock)


def test_a_path_that_is_too_long_for_a_socket_is_an_error(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    with pytest.raises(EngineError, match="too long for the kernel"):
        Folder.make(deep)
    assert list(deep.iterdir()) == []
