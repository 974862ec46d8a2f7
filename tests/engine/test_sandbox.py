"""The sandbox: what runs in it ends with its starter, whatever the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.machine import find
from pipeline.engine import sandbox

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or find("unshare") is None, reason="needs Linux, root and unshare"
)


def until(true: Callable[[], bool], what: str, timeout: float = 10) -> None:
    """Poll until it is true."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.02)


def test_sees_no_network_but_loopback() -> None:
    done = subprocess.run(
        sandbox.wrap(["ip", "-o", "link"]), capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    assert [line.split(":")[1].strip() for line in done.stdout.splitlines()] == ["lo"]


def test_shares_nothing_in_run(tmp_path: Path) -> None:
    mark = f"sandbox-test-{os.getpid()}"
    subprocess.run(sandbox.wrap(["touch", f"/run/{mark}"]), check=True)
    assert not (Path("/run") / mark).exists()


def test_returns_the_exit_code() -> None:
    assert subprocess.run(sandbox.wrap(["sh", "-c", "exit 7"]), check=False).returncode == 7


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_starter(tmp_path: Path, number: signal.Signals) -> None:
    """A grandchild in another session and a mount end with the starter."""
    mark = f"{tmp_path}/mounted"
    Path(mark).mkdir()
    inner = f"mount -t tmpfs none {mark}; setsid sleep 98765 & echo ready > {tmp_path}/ready; wait"
    starter = (
        f"import signal, subprocess, sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        # A shell starts what runs in its background with SIGINT ignored, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pipeline.engine import sandbox\n"
        f"subprocess.run(sandbox.wrap(['sh', '-c', {inner!r}]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", starter], stdin=subprocess.DEVNULL)

    def sleepers() -> list[int]:
        pids = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if entry.read_bytes() == b"sleep\x0098765\0":
                    pids.append(int(entry.parent.name))
            except OSError:
                continue
        return pids

    until(lambda: (tmp_path / "ready").exists() and bool(sleepers()), "the sandbox runs")
    process.send_signal(number)
    process.wait(timeout=10)
    until(lambda: not sleepers(), "the sandbox's processes are gone")
    assert mark not in Path("/proc/mounts").read_text(encoding="utf-8")
