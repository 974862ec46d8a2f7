"""qemu-system: its command line, its monitor, and the folder of one machine's sockets."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.machine import find, require_short
from pipeline.core.platforms import Platform
from pipeline.engine.virtual.disks import Guest, System

_MEMORY = 4096  # MiB; a real k3s needs this much (qemu takes from the host what is used)


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """How the guest's instructions are run."""

    name: str  # as qemu calls it: kvm or tcg
    argument: str
    cpu: str
    cores: int


@dataclass(frozen=True, kw_only=True)
class Drives:
    """What the guest starts from; qemu does not change it."""

    system: System
    content: Path  # disk with /var/lib/docker


def accelerators(platform: Platform) -> list[Accelerator]:
    """Return what to try, in order. KVM may fail although /dev/kvm exists; only a boot shows it."""
    cores = min(4, os.cpu_count() or 1)
    # qemu 7.2 let Linux 6.12 for x86 oops in three of four boots with two cores.
    single = platform == Platform.AMD64 and version(platform) < (8, 0, 0)
    tcg = Accelerator(
        name="tcg",
        argument="tcg,thread=multi,tb-size=512",
        # A fixed model: with `max` the guest computes pointer authentication and more, which costs time.
        cpu={Platform.ARM64: "cortex-a72", Platform.AMD64: "max"}[platform],
        cores=1 if single else cores,
    )
    if platform == Platform.host() and os.access("/dev/kvm", os.R_OK | os.W_OK):
        return [Accelerator(name="kvm", argument="kvm", cpu="host", cores=cores), tcg]
    return [tcg]


def program(platform: Platform) -> str:
    """Return the name of qemu's program for a platform."""
    return f"qemu-system-{platform.names.qemu}"


def version(platform: Platform) -> tuple[int, int, int]:
    """Return the version of the installed qemu; (0, 0, 0) when it is unknown."""
    done = subprocess.run([find(program(platform)) or "", "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2]), int(match[3])) if match else (0, 0, 0)


def command(
    platform: Platform, guest: Guest, accelerator: Accelerator, drives: Drives, *, console: Path, folder: Path
) -> list[str]:
    """Return qemu's command line. `console`: file for the serial console; `folder`: for two sockets."""
    system = drives.system
    machine, terminal = {Platform.ARM64: ("virt", "ttyAMA0"), Platform.AMD64: ("q35", "ttyS0")}[platform]
    # cache=unsafe: a guest's disk is thrown away with it. snapshot=on: writes go to an unlinked file.
    drive = "if=none,format=raw,snapshot=on,cache=unsafe"
    return [
        *(find(program(platform)) or program(platform), "-M", machine, "-cpu", accelerator.cpu),
        *("-accel", accelerator.argument, "-smp", str(accelerator.cores), "-m", str(_MEMORY)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-kernel", str(system.kernel), "-initrd", str(system.initramfs)),
        # panic=-1 with -no-reboot: a kernel that panics ends qemu at once.
        *("-append", f"console={terminal} quiet panic=-1 {guest.command_line}"),
        *("-chardev", f"file,id=console,path={_quoted(console)}", "-serial", "chardev:console"),
        *("-qmp", f"unix:{_quoted(folder / 'qmp')},server=on,wait=off"),
        *("-chardev", f"socket,id=control,path={_quoted(folder / 'control')},server=on,wait=off"),
        *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=control,name=dind-k3s.control"),
        *("-drive", f"{drive},id=root,file={_quoted(system.root)}", "-device", "virtio-blk-pci,drive=root"),
        *("-drive", f"{drive},id=content,file={_quoted(drives.content)}", "-device", "virtio-blk-pci,drive=content"),
        # Port 0: a free one, chosen while it is bound.
        *("-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:2375", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci"),
    ]


def _quoted(path: Path) -> str:
    """Return a path for a qemu option, in which a comma is written twice."""
    return str(path).replace(",", ",,")


def forwarded_port(monitor: Path) -> int:
    """Return the port on 127.0.0.1 that qemu forwards, as its monitor reports it. Raises OSError, ValueError.

    Protocol: https://www.qemu.org/docs/master/interop/qmp-spec.html
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(monitor))
        with connection.makefile("rw") as stream:
            stream.readline()  # the greeting
            for execute, arguments in (
                ("qmp_capabilities", {}),
                ("human-monitor-command", {"command-line": "info usernet"}),
            ):
                stream.write(json.dumps({"execute": execute, "arguments": arguments}) + "\n")
                stream.flush()
                answer = json.loads(stream.readline())
                while "event" in answer:
                    answer = json.loads(stream.readline())
    match = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", str(answer.get("return")))
    if match is None:
        raise ValueError("qemu names no forwarded port")
    return int(match[1])


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder for one machine's sockets, locked by us and by qemu, so that leftovers can be recognized."""

    path: Path
    lock: int  # file descriptor, which qemu inherits

    @classmethod
    def make(cls, top: Path) -> Folder:
        """Make one below `top`; remove those whose machines are gone. Raises EngineError if the path is too long."""
        for old in top.glob("run-*"):
            if not _held(old):
                shutil.rmtree(old, ignore_errors=True)
        require_short(top, 80, "the guest's sockets")
        path = Path(tempfile.mkdtemp(prefix="run-", dir=top))
        lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return cls(path=path, lock=lock)


def _held(folder: Path) -> bool:
    try:
        with (folder / "lock").open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
