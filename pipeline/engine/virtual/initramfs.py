"""The initramfs of a guest: a static busybox, a few kernel modules, and guest/initramfs-init.

Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst ("newc" cpio; uncompressed, since decompression
would take the guest more time than reading).
"""

from __future__ import annotations

import lzma
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

# Needed for the disks and the console. Names that a kernel has built in (ext4 in Debian's cloud kernels), or does not
# know, are skipped.
WANTED = ("virtio_pci", "virtio_blk", "virtio_console", "ext4")

_FOLDERS = ("bin", "dev", "modules", "proc", "root", "sys")
_CONSOLE = (5, 1)  # major and minor number of /dev/console; Linux Documentation/admin-guide/devices.txt


def build(busybox: bytes, init: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the archive. `modules`: file name and content of each, in the order of insmod."""
    order = "".join(f"{name}\n" for name, _ in modules).encode()
    files = {"init": init, "bin/busybox": busybox, "modules/order": order}
    files |= {f"modules/{name}": data for name, data in modules}
    out = bytearray()
    for folder in _FOLDERS:
        _entry(out, folder, stat.S_IFDIR | 0o755)
    _entry(out, "dev/console", stat.S_IFCHR | 0o600, device=_CONSOLE)
    for name, data in files.items():
        _entry(out, name, stat.S_IFREG | 0o755, data)
    _entry(out, "TRAILER!!!", 0)
    return bytes(out)


def _entry(out: bytearray, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
    """Append one file; name and data are padded to 4 bytes.

    Fields: ino mode uid gid nlink mtime size dev rdev namesize check.
    """
    path = name.encode() + b"\0"
    fields = (len(out), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    out += b"070701" + b"".join(b"%08X" % value for value in fields) + path
    out += b"\0" * (-len(out) % 4) + data
    out += b"\0" * (-len(out) % 4)


def modules(folder: Path, wanted: Sequence[str] = WANTED) -> list[tuple[str, bytes]]:
    """Return these modules of lib/modules/<release>/, uncompressed, each after its dependencies.

    `folder` has modules.dep (depmod(8)), with lines `path: dependency …`, the nearest first.
    """
    needs: dict[str, list[str]] = {}
    for line in (folder / "modules.dep").read_text(encoding="ascii").splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    ordered: dict[str, None] = {}
    for name in wanted:
        for path in needs:
            if module_name(path) == name:
                ordered |= dict.fromkeys([*reversed(needs[path]), path])
    return [(f"{module_name(path)}.ko", _content(folder / path)) for path in ordered]


def module_name(path: str) -> str:
    """`kernel/drivers/block/virtio_blk.ko.xz` → `virtio_blk`; to the kernel - and _ are the same."""
    return PurePosixPath(path).name.partition(".")[0].replace("-", "_")


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data
