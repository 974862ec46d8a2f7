"""Whose processes are ended: those of shims in our mount namespace, whichever others are in sight."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dind_k3s import processes

OTHER = ("unshare", "--map-root-user", "--mount")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[int, int]]]:
    """Start a process of that name with a child; the pids of both, once the child is there."""
    began: list[subprocess.Popen[str]] = []

    def run(name: str, *before: str) -> tuple[int, int]:
        program = tmp_path / name
        shutil.copy("/bin/sh", program)
        command = [*before, str(program), "-c", "sleep 1000 & echo $!; wait"]
        began.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        assert began[-1].stdout is not None
        return began[-1].pid, int(began[-1].stdout.readline())

    yield run
    for process in began:
        os.killpg(process.pid, 9)
        process.communicate()


def test_children_of_our_shims_alone_are_containers(start: Callable[..., tuple[int, int]]) -> None:
    shim, container = start("containerd-shim-runc-v2")
    _, theirs = start("containerd-shim-other", *OTHER)
    _, none = start("dockerd")
    assert {container, theirs, none} & {*processes.first_of_containers()} == {container}
    assert processes.kill([container]) == 1
    os.waitid(os.P_PID, shim, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{theirs}").exists()
