"""Real rehearsals with the supplies in the cache: a killed one leaves nothing, and the next one continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.core import cache
from pipeline.rehearsal import supplies

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "pipeline", "rehearse"]
_MARK = "DIND_K3S_TEST_REHEARSAL"  # in the environment of the processes of these rehearsals only
ENVIRONMENT = {**os.environ, _MARK: "1"}

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def leftovers() -> list[str]:
    """Return processes of these rehearsals, and mounts in the cache folder."""
    folder = str(cache.folder())
    left = [line for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines() if folder in line]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            environment = entry.with_name("environ").read_bytes().split(b"\0")
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if f"{_MARK}=1".encode() in environment:
            left.append(" ".join(words))
    return left


@contextmanager
def started(*options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a rehearsal; kill it at the end if it is still running."""
    with subprocess.Popen(
        [*COMMAND, *options],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(process: subprocess.Popen[str], mark: str) -> None:
    """Read the output up to a line with that mark."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if mark in line:
            return
    pytest.fail(f"no line with {mark!r}:\n{''.join(seen[-30:])}")


@pytest.mark.parametrize(
    ("mark", "number"),
    [
        ("origin on", signal.SIGKILL),
        ("▶ resolve", signal.SIGINT),
        ("dockerd answered", signal.SIGKILL),
        ("▶ linux/amd64 commands", signal.SIGTERM),
        ("✓ docker build inside", signal.SIGKILL),
    ],
)
def test_killed_rehearsal_leaves_nothing(supplied: supplies.Supplies, mark: str, number: signal.Signals) -> None:
    with started("--again") as process:  # so that smoke runs, whatever passed before
        until(process, mark)
        process.send_signal(number)
        assert process.stdout is not None
        output = process.stdout.read()
        code = process.wait(60)
    assert code == (130 if number != signal.SIGKILL else -signal.SIGKILL), output
    assert "Traceback" not in output
    deadline = time.monotonic() + 10
    while left := leftovers():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_next_rehearsal_succeeds_without_downloads(supplied: supplies.Supplies) -> None:
    first = subprocess.run(
        COMMAND, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert "supplies: nothing to download" in first.stderr
    # The published image was pulled and booted on the engine of this rehearsal.
    assert "✓ docker build inside" in first.stderr
    assert leftovers() == []


def test_second_rehearsal_is_refused(supplied: supplies.Supplies) -> None:
    with started() as process:
        until(process, "origin on")
        second = subprocess.run(
            COMMAND, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert second.returncode == 11
        assert "another rehearsal is running" in second.stderr
