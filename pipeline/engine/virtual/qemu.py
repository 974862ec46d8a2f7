"""qemu-system as a child process: its command line, what the guest reports, how it ends.

The guest (guest/init) reports over one virtio-serial port: its stages, how fast it is, a sign of life every few
seconds, and at the end an exit status. Whoever waits for a stage has a deadline for it; when one passes, when the signs
of life stop, or when qemu ends, the machine is taken down and the error has the stage and the console's last lines.
qemu dies with its starter (prctl(2), PR_SET_PDEATHSIG), its disks are opened with snapshot=on and its only port
is on 127.0.0.1, so that nothing of it can be left.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from pipeline.core.errors import EngineError
from pipeline.core.log import Log, seconds
from pipeline.core.machine import find, require_short, tied
from pipeline.core.platforms import Platform
from pipeline.engine.virtual.disks import System
from pipeline.engine.virtual.guests import Guest

# Seconds that the guest's calibration (guest/init) takes natively, on the machine whose deadlines the checks have:
# `busybox sh` of Debian 13 on two cores of a cloud machine, three runs of 0.15-0.17 s.
CALIBRATION = 0.16

STAGES = ("kernel", "mounts", "network", "calibration", "dockerd", "ready")

# Seconds until the next stage, for an emulated guest; ten times what they took on two busy cores.
_LIMITS = {"kernel": 120.0, "mounts": 60.0, "network": 60.0, "calibration": 180.0}
# Seconds natively, ten times what it takes: they are multiplied by the guest's speed.
_DOCKERD = 15.0
_STOP = 15.0
_KVM_SIGN = 15.0  # a guest that works under KVM has mounted its root within one or two
_SILENCE = 90.0  # without a sign of life; the guest gives one every 5 s, and even a busy one is seldom 10 s late
_LAST_LINES = 12
# Up to here there is Debian's kernel and our init in the machine, and nothing of what is tried on it.
_BEFORE_ANYTHING_OF_OURS = STAGES[: STAGES.index("dockerd")]
_WORST = r"Kernel panic|Out of memory|\bOops\b|\bBUG:"


class Hung(EngineError):
    """A guest that hung before anything that is tried on it had begun, which cannot be the cause then."""


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """How the guest's instructions are run."""

    name: str  # as qemu calls it: kvm or tcg
    argument: str
    cpu: str
    cores: int  # what the guest's dockerd and k3s can use


@dataclass(frozen=True, kw_only=True)
class Drives:
    """What the guest starts from; no byte of it is changed."""

    system: System
    content: Path  # disk with /var/lib/docker


def accelerators(platform: Platform) -> list[Accelerator]:
    """What to try, in order. That /dev/kvm is there does not say that a guest runs on it: only a boot does."""
    cores = min(4, os.cpu_count() or 1)
    # qemu 7.2 let Linux 6.12 for x86 oops in three of four boots with two cores.
    single = platform == Platform.AMD64 and version(platform) < (8, 0, 0)
    tcg = Accelerator(
        name="tcg",
        argument="tcg,thread=multi,tb-size=512",
        # A fixed model: `max` has the guest compute pointer authentication and more, which nothing of it needs.
        cpu={Platform.ARM64: "cortex-a72", Platform.AMD64: "max"}[platform],
        cores=1 if single else cores,
    )
    if platform == Platform.host() and os.access("/dev/kvm", os.R_OK | os.W_OK):
        return [Accelerator(name="kvm", argument="kvm", cpu="host", cores=cores), tcg]
    return [tcg]


def program(platform: Platform) -> str:
    """The name of qemu's program for a platform."""
    return f"qemu-system-{platform.names.qemu}"


def version(platform: Platform) -> tuple[int, int, int]:
    """Of the installed qemu; (0, 0, 0) when it does not say."""
    done = subprocess.run([find(program(platform)) or "", "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2]), int(match[3])) if match else (0, 0, 0)


def command(
    platform: Platform, guest: Guest, accelerator: Accelerator, drives: Drives, *, console: Path, folder: Path
) -> list[str]:
    """qemu's command line. `console`: the file that keeps the serial console; `folder`: for its two sockets."""
    system = drives.system
    machine, terminal = {Platform.ARM64: ("virt", "ttyAMA0"), Platform.AMD64: ("q35", "ttyS0")}[platform]
    limit = "" if guest.disk_rate is None else f",throttling.bps-total={guest.disk_rate}"
    # cache=unsafe: a guest's disk is thrown away with it. snapshot=on: written to a file that has no name any more.
    drive = "if=none,format=raw,snapshot=on,cache=unsafe"
    return [
        *(find(program(platform)) or program(platform), "-M", machine, "-cpu", accelerator.cpu),
        *("-accel", accelerator.argument, "-smp", str(accelerator.cores), "-m", str(guest.memory)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-kernel", str(system.kernel), "-initrd", str(system.initramfs)),
        # panic=-1 with -no-reboot: a kernel that panics ends qemu at once.
        *("-append", f"console={terminal} quiet panic=-1 {guest.command_line}"),
        *("-chardev", f"file,id=console,path={_quoted(console)}", "-serial", "chardev:console"),
        *("-qmp", f"unix:{_quoted(folder / 'qmp')},server=on,wait=off"),
        *("-chardev", f"socket,id=control,path={_quoted(folder / 'control')},server=on,wait=off"),
        *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=control,name=dind-k3s.control"),
        *("-drive", f"{drive},id=root,file={_quoted(system.root)}", "-device", "virtio-blk-pci,drive=root"),
        *(
            "-drive",
            f"{drive},id=content,file={_quoted(drives.content)}{limit}",
            "-device",
            "virtio-blk-pci,drive=content",
        ),
        # Port 0: one that is free, chosen while it is bound.
        *("-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:2375", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci"),
    ]


def _quoted(path: Path) -> str:
    """A path inside a qemu option: a comma is written twice."""
    return str(path).replace(",", ",,")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Where one machine has its sockets; it is locked by us and by qemu, so that others can tell it from a leftover."""

    path: Path
    lock: int  # file descriptor, which qemu inherits

    @classmethod
    def make(cls, top: Path) -> Folder:
        """A new one below `top`; those whose machines are gone are removed. Raises EngineError for a path too long."""
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


class Machine:
    """A running guest."""

    def __init__(self, platform: Platform, accelerator: Accelerator, console: Path, folder: Folder, log: Log) -> None:
        self.platform = platform
        self.accelerator = accelerator
        self.console = console
        self.port = 0  # on 127.0.0.1: dockerd's API
        self.speed = 0.0  # how many times longer than natively its calibration took; 0 until it is known
        self._folder = folder
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._control = socket.socket(socket.AF_UNIX)
        self._changed = threading.Condition()
        self._stage = "kernel"
        self._stages: list[tuple[str, float]] = []  # since qemu was started
        self._code: int | None = None
        self._started = self._heard = time.monotonic()
        self._trouble = ""
        self._ended = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="guest", daemon=True)

    @property
    def pid(self) -> int:
        """Of qemu."""
        return self._process.pid if self._process else 0

    @property
    def monitor(self) -> Path:
        """The socket of qemu's monitor (QMP)."""
        return self._folder.path / "qmp"

    @property
    def story(self) -> str:
        """Its stages so far, each with the seconds since qemu was started."""
        return ", ".join(f"{stage} after {seconds(at)}" for stage, at in self._stages)

    @property
    def trouble(self) -> str | None:
        """What is wrong with the machine itself: that it ended or hung, in which stage, with its last lines."""
        if not self._trouble and self._process is not None and (code := self._process.poll()) is not None:
            self._trouble = f"it ended in the stage «{self._stage}», qemu with exit code {code}"
        return f"{self._trouble}; its console's last lines: {self.last_lines()}" if self._trouble else None

    def start(self, arguments: Sequence[str], *, keep: bool) -> None:
        """Start qemu and connect to it. `keep`: it outlives us. Raises EngineError."""
        self.console.write_bytes(b"")
        with (self._folder.path / "qemu.log").open("wb") as output:
            self._process = subprocess.Popen(
                arguments if keep else tied(arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Where snapshot=on writes; the default, /var/tmp, may be a small disk.
                env={**os.environ, "TMPDIR": str(self._folder.path)},
                start_new_session=True,  # Ctrl-C is ours to handle
                pass_fds=[self._folder.lock],
            )
        self._started = self._heard = time.monotonic()
        self._connect()
        self._listener.start()

    def boot(self) -> None:
        """Wait, stage by stage, until its dockerd answers. Raises EngineError: a deadline, an end; Hung."""
        for now, following in pairwise(STAGES):
            limit = _LIMITS[now] if now in _LIMITS else _DOCKERD * max(self.speed, 1.0)
            self._until(following, _KVM_SIGN if (now, self.accelerator.name) == ("kernel", "kvm") else limit)

    def _until(self, stage: str, limit: float) -> None:
        deadline = time.monotonic() + limit
        with self._changed:
            while self._stage not in STAGES or STAGES.index(self._stage) < STAGES.index(stage):
                hung = self.trouble is None and time.monotonic() > deadline
                if hung:
                    self._trouble = f"it hung in the stage «{self._stage}»: nothing more within {seconds(limit)}"
                if (trouble := self.trouble) is not None:
                    raise self._failed(
                        trouble, Hung if hung and self._stage in _BEFORE_ANYTHING_OF_OURS else EngineError
                    )
                self._changed.wait(0.2)

    def stop(self) -> None:
        """Have the guest stop its dockerd and go off. Raises EngineError unless it says `rc=0` in time."""
        if self.trouble is None:
            with suppress(OSError):
                self._control.sendall(b"stop\n")
            deadline = time.monotonic() + _STOP * max(self.speed, 1.0)
            with self._changed:
                while self._code is None and self._process and self._process.poll() is None:
                    if time.monotonic() > deadline:
                        self._trouble = "it did not stop"
                        break
                    self._changed.wait(0.2)
        trouble = None if self._code == 0 else self.trouble or f"it ended with {self._code}: {self.last_lines()}"
        self.kill()
        if trouble is not None:
            raise self._failed(trouble)

    def kill(self) -> None:
        """Take it down, at once and for good; nothing of it stays but the console's log."""
        if self._ended.is_set():
            return
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self.leave()
        shutil.rmtree(self._folder.path, ignore_errors=True)

    def leave(self) -> None:
        """Let go of a machine that continues without us."""
        self._ended.set()
        if self._listener.is_alive():
            self._listener.join()
        self._control.close()
        os.close(self._folder.lock)

    def last_lines(self) -> str:
        """The console's end and qemu's own words; first the line of a panic, which a long dump of registers follows."""
        lines = []
        for path in (self.console, self._folder.path / "qemu.log"):
            with suppress(OSError):
                lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        worst = [line for line in lines[:-_LAST_LINES] if re.search(_WORST, line)]
        return " / ".join([*worst[-1:], *lines[-_LAST_LINES:]]) or "nothing"

    def _failed(self, trouble: str, kind: type[EngineError] = EngineError) -> EngineError:
        return kind(
            f"the virtual engine for {self.platform} failed",
            found=trouble,
            where=str(self.console),
            next_step="the console's log tells more; a machine with little memory or disk is the usual reason",
        )

    def _connect(self) -> None:
        """To the control port and, for the number of the forwarded port, to qemu's monitor."""
        assert self._process is not None
        deadline = time.monotonic() + 20
        while True:
            try:
                self._control.connect(str(self._folder.path / "control"))
                self.port = _forwarded(self.monitor)
                break
            except (OSError, ValueError):
                self._control.close()
                self._control = socket.socket(socket.AF_UNIX)
                if self.trouble is not None or time.monotonic() > deadline:
                    raise self._failed(self.trouble or f"qemu does not answer: {self.last_lines()}") from None
                time.sleep(0.05)
        self._control.settimeout(0.3)

    def _listen(self) -> None:
        """Follow what the guest says on its port and on its console, until the end."""
        rest = b""
        with self.console.open("rb") as console:
            while not self._ended.is_set():
                self._tell(console)
                try:
                    data = self._control.recv(4096)
                except TimeoutError:
                    data = None
                except OSError:
                    data = b""
                if data == b"":
                    self._tell(console)
                    with self._changed:
                        self._changed.notify_all()
                    return
                if data:
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self._hear(line.decode("ascii", "replace"))
                elif time.monotonic() - self._heard > _SILENCE and self.speed:
                    self._hang()
                    return

    def _hear(self, line: str) -> None:
        kind, _, value = line.partition(" ")
        with self._changed:
            self._heard = time.monotonic()
            if kind == "stage":
                self._stage = value
                self._stages.append((value, time.monotonic() - self._started))
            elif kind == "speed":
                before, _, after = value.partition(" ")
                self.speed = (float(after) - float(before)) / CALIBRATION
            elif match := re.fullmatch(r"rc=(\d+)", line):
                self._code = int(match[1])
            self._changed.notify_all()

    def _hang(self) -> None:
        """Kill a guest without a sign of life, so that no client waits for an answer of its dockerd."""
        with self._changed:
            self._trouble = f"it hung in the stage «{self._stage}»: no sign of life for {seconds(_SILENCE)}"
            self._changed.notify_all()
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)

    def _tell(self, console: BinaryIO) -> None:
        """The console's new lines, as far as they are whole."""
        while (line := console.readline()).endswith(b"\n"):
            if text := line.decode("utf-8", "replace").strip():
                self._log.say(f"  console: {text}")
        console.seek(-len(line), os.SEEK_CUR)


def _forwarded(monitor: Path) -> int:
    """The port on 127.0.0.1 that qemu forwards, asked over its monitor. Raises OSError, ValueError.

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
