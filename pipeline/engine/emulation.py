"""binfmt handlers for qemu-user: the ones that the kernel has, and ours, registered while smoke needs them.

A handler is registered for the whole machine (binfmt_misc is not part of a mount or pid namespace), so ours have a
distinct prefix and are removed by the last run that uses them; those of a killed run are removed by the next run.
Source: Linux Documentation/admin-guide/binfmt-misc.rst; the ELF header fields are those of elf(5).
"""

from __future__ import annotations

import fcntl
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.core.machine import find
from pipeline.core.platforms import Platform

BINFMT = Path("/proc/sys/fs/binfmt_misc")
_OURS = "dind-k3s-"

# Locked, shared, by every run that uses our handlers; a fixed path, since handlers are the whole machine's.
_IN_USE = Path("/tmp/dind-k3s-binfmt.lock")


def handler(platform: Platform, binfmt: Path = BINFMT) -> str | None:
    """Return the interpreter of the kernel's handler for this platform's binaries; None without an enabled one."""
    magic = _magic(platform).hex()
    if not binfmt.is_dir():
        return None
    for entry in sorted(binfmt.iterdir()):
        if entry.name in {"register", "status"}:
            continue
        lines = entry.read_text(encoding="utf-8", errors="replace").splitlines()
        fields = dict(line.split(" ", 1) for line in lines if " " in line)
        registered = fields.get("magic", "")
        # Compare class, byte order and machine; distributions mask the other bytes differently.
        if lines[:1] == ["enabled"] and registered.startswith(magic[:8]) and registered[36:40] == magic[36:40]:
            return fields.get("interpreter")
    return None


def program(platform: Platform) -> str:
    """Return the name of a platform's static qemu-user on Debian and Ubuntu."""
    return f"qemu-{platform.names.qemu}-static"


@contextmanager
def registered(platform: Platform, log: Log, binfmt: Path = BINFMT) -> Iterator[str | None]:
    """Register a handler for a non-native platform during the block; yield its interpreter, or None without one.

    An existing handler is used and not changed. Needs root and `qemu-<…>-static`. `binfmt`: where binfmt_misc is
    mounted, for instance in another mount namespace; it is the same one everywhere.
    """
    if platform == Platform.host():
        yield None
        return
    with _IN_USE.open("a") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield handler(platform, binfmt) or _register(platform, log, binfmt)
        finally:
            fcntl.flock(users, fcntl.LOCK_UN)
            sweep(log, binfmt)


def _register(platform: Platform, log: Log, binfmt: Path) -> str | None:
    interpreter = find(program(platform))
    if interpreter is None or not (binfmt / "register").exists():
        return None
    mask = bytearray(b"\xff" * 20)
    mask[7] = 0  # any OS ABI
    mask[16] = 0xFE  # ET_EXEC and ET_DYN
    name = f"{_OURS}{platform.names.qemu}"
    text = f":{name}:M::{_escaped(_magic(platform))}:{_escaped(bytes(mask))}:{interpreter}:F"
    try:
        (binfmt / "register").write_text(text, encoding="ascii")
    except FileExistsError:
        return interpreter  # another run has just registered it
    except OSError as error:
        raise EngineError(f"the kernel refused a binfmt handler for {platform}", found=str(error)) from None
    log.say(f"registered {interpreter} for {platform} binaries until smoke ends")
    return interpreter


def sweep(log: Log, binfmt: Path = BINFMT) -> None:
    """Remove our handlers, also those of a killed run, unless a run uses them."""
    if not binfmt.is_dir():
        return
    with _IN_USE.open("a") as users:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        for entry in binfmt.glob(f"{_OURS}*"):
            entry.write_text("-1", encoding="ascii")
            log.say(f"removed the binfmt handler {entry.name}")


def version(interpreter: str) -> str:
    """Return `qemu-user 7.2.22`, the version that the interpreter reports."""
    done = subprocess.run([interpreter, "--version"], capture_output=True, text=True, timeout=10, check=False)
    words = done.stdout.split()
    return f"qemu-user {words[2]}" if len(words) > 2 else "qemu-user"


def _magic(platform: Platform) -> bytes:
    """Return the first 20 bytes of a platform's ELF file: 64 bit, little endian, executable, its machine."""
    return b"\x7fELF\x02\x01\x01" + b"\0" * 9 + struct.pack("<HH", 2, platform.names.elf_machine)


def _escaped(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)
