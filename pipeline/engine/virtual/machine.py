"""A running guest: qemu-system as a child process, what the guest reports, how it ends.

The guest (guest/init) reports over one virtio-serial port: its stages, its speed, a heartbeat every few seconds, and at
the end an exit status. Each stage has a deadline; when one passes, when heartbeats stop, or when qemu ends, the machine
is killed and the error has the stage and the console's last lines. qemu dies with its starter (prctl(2),
PR_SET_PDEATHSIG), its disks are opened with snapshot=on and its only port is on 127.0.0.1, so that nothing is left.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from pipeline.core.errors import EngineError
from pipeline.core.log import Log, seconds
from pipeline.core.machine import tied
from pipeline.core.platforms import Platform
from pipeline.engine.virtual.qemu import Accelerator, Folder, forwarded_port

# Seconds that the guest's calibration (guest/init) takes natively, on the machine whose deadlines the checks have:
# `busybox sh` of Debian 13 on two cores of a cloud machine, three runs of 0.15-0.17 s.
CALIBRATION = 0.16

STAGES = ("kernel", "mounts", "network", "calibration", "dockerd", "ready")

# Seconds until the next stage, for an emulated guest; ten times what they took on two busy cores.
_LIMITS = {"kernel": 120.0, "mounts": 60.0, "network": 60.0, "calibration": 180.0}
# Seconds natively, ten times what it takes: multiplied by the guest's speed.
_DOCKERD = 15.0
_STOP = 15.0
_KVM_LIMIT = 15.0  # until the root is mounted under KVM, which takes one or two seconds
_SILENCE = 90.0  # without a heartbeat; they come every 5 s, and on a busy machine seldom 10 s late
_LAST_LINES = 12
# In these stages the machine runs Debian's kernel and our init alone, and nothing of what is to be checked.
_EARLY = STAGES[: STAGES.index("dockerd")]
_WORST = r"Kernel panic|Out of memory|\bOops\b|\bBUG:"


class Hung(EngineError):
    """A guest that hung in an early stage, for which what is to be checked cannot be the cause."""


class Machine:
    """A running guest."""

    def __init__(self, platform: Platform, accelerator: Accelerator, console: Path, folder: Folder, log: Log) -> None:
        self.platform = platform
        self.accelerator = accelerator
        self.console = console
        self.port = 0  # on 127.0.0.1: dockerd's API
        self.speed = 0.0  # time of its calibration, divided by the native one; 0 until it is known
        self._folder = folder
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._control = socket.socket(socket.AF_UNIX)
        self._changed = threading.Condition()
        self._stage = "kernel"
        self._stages: list[tuple[str, float]] = []  # each with its seconds since qemu was started
        self._code: int | None = None
        self._started = self._heartbeat = time.monotonic()
        self._trouble = ""
        self._ended = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="guest", daemon=True)

    @property
    def pid(self) -> int:
        """The process id of qemu."""
        return self._process.pid if self._process else 0

    @property
    def story(self) -> str:
        """Its stages so far, each with the seconds since qemu was started."""
        return ", ".join(f"{stage} after {seconds(at)}" for stage, at in self._stages)

    @property
    def trouble(self) -> str | None:
        """Why the machine itself failed: it ended or hung, in which stage, with its last lines; None if it works."""
        if not self._trouble and self._process is not None and (code := self._process.poll()) is not None:
            self._trouble = f"it ended in stage {self._stage}, qemu with exit code {code}"
        return f"{self._trouble}; its console's last lines: {self.last_lines()}" if self._trouble else None

    def start(self, arguments: Sequence[str], *, keep: bool) -> None:
        """Start qemu and connect to it. `keep`: let it outlive this process. Raises EngineError."""
        self.console.write_bytes(b"")
        with (self._folder.path / "qemu.log").open("wb") as output:
            self._process = subprocess.Popen(
                arguments if keep else tied(arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Where snapshot=on writes; the default, /var/tmp, may be a small disk.
                env={**os.environ, "TMPDIR": str(self._folder.path)},
                start_new_session=True,  # Ctrl-C must not reach it
                pass_fds=[self._folder.lock],
            )
        self._started = self._heartbeat = time.monotonic()
        self._connect()
        self._listener.start()

    def boot(self) -> None:
        """Wait, stage by stage, until its dockerd answers. Raises EngineError: a deadline, an end; Hung."""
        for now, following in pairwise(STAGES):
            limit = _LIMITS[now] if now in _LIMITS else _DOCKERD * max(self.speed, 1.0)
            self._until(following, _KVM_LIMIT if (now, self.accelerator.name) == ("kernel", "kvm") else limit)

    def _until(self, stage: str, limit: float) -> None:
        deadline = time.monotonic() + limit
        with self._changed:
            while self._stage not in STAGES or STAGES.index(self._stage) < STAGES.index(stage):
                hung = self.trouble is None and time.monotonic() > deadline
                if hung:
                    self._trouble = f"it hung in stage {self._stage}: no progress within {seconds(limit)}"
                if (trouble := self.trouble) is not None:
                    raise self._failed(trouble, Hung if hung and self._stage in _EARLY else EngineError)
                self._changed.wait(0.2)

    def stop(self) -> None:
        """Let the guest stop its dockerd and power off. Raises EngineError unless it reports `rc=0` in time."""
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
        """Kill it; only the console's log stays."""
        if self._ended.is_set():
            return
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self.leave()
        shutil.rmtree(self._folder.path, ignore_errors=True)

    def leave(self) -> None:
        """Disconnect from a machine that continues without us."""
        self._ended.set()
        if self._listener.is_alive():
            self._listener.join()
        self._control.close()
        os.close(self._folder.lock)

    def last_lines(self) -> str:
        """Return the end of the console and of qemu's output; first the line of a panic, if it is further above."""
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
            next_step="read the console's log; often the machine has too little memory or disk space",
        )

    def _connect(self) -> None:
        """Connect to the control port, and read the number of the forwarded port from qemu's monitor."""
        assert self._process is not None
        deadline = time.monotonic() + 20
        while True:
            try:
                self._control.connect(str(self._folder.path / "control"))
                self.port = forwarded_port(self._folder.path / "qmp")
                break
            except (OSError, ValueError):
                self._control.close()
                self._control = socket.socket(socket.AF_UNIX)
                if self.trouble is not None or time.monotonic() > deadline:
                    raise self._failed(self.trouble or f"qemu does not answer: {self.last_lines()}") from None
                time.sleep(0.05)
        self._control.settimeout(0.3)

    def _listen(self) -> None:
        """Read what the guest writes to its port and its console, until its end."""
        rest = b""
        with self.console.open("rb") as console:
            while not self._ended.is_set():
                self._log_console(console)
                try:
                    data = self._control.recv(4096)
                except TimeoutError:
                    data = None
                except OSError:
                    data = b""
                if data == b"":
                    self._log_console(console)
                    with self._changed:
                        self._changed.notify_all()
                    return
                if data:
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self._report(line.decode("ascii", "replace"))
                elif time.monotonic() - self._heartbeat > _SILENCE and self.speed:
                    # So that no client waits for an answer of its dockerd.
                    with self._changed:
                        self._trouble = f"it hung in stage {self._stage}: no heartbeat for {seconds(_SILENCE)}"
                        self._changed.notify_all()
                    if self._process is not None:
                        self._process.send_signal(signal.SIGKILL)
                    return

    def _report(self, line: str) -> None:
        """Take one line of the guest's port."""
        kind, _, value = line.partition(" ")
        with self._changed:
            self._heartbeat = time.monotonic()
            if kind == "stage":
                self._stage = value
                self._stages.append((value, time.monotonic() - self._started))
            elif kind == "speed":
                before, _, after = value.partition(" ")
                self.speed = (float(after) - float(before)) / CALIBRATION
            elif match := re.fullmatch(r"rc=(\d+)", line):
                self._code = int(match[1])
            self._changed.notify_all()

    def _log_console(self, console: BinaryIO) -> None:
        """Log the console's new complete lines."""
        while (line := console.readline()).endswith(b"\n"):
            if text := line.decode("utf-8", "replace").strip():
                self._log.say(f"  console: {text}")
        console.seek(-len(line), os.SEEK_CUR)
