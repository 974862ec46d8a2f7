"""Whether a container can be started here at all: room for it, processes that are allowed, and one that runc starts.

dockerd answers without any of that. runc is called directly, with a program of this image: that costs a tenth of a
second, and dockerd needs longer from its containerd to its first answer. doctor does it while dockerd is dead.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading

from dind_k3s import containerd, limits, room
from dind_k3s.board import Board
from dind_k3s.docker_api import Docker
from dind_k3s.finding import output
from dind_k3s.root import RUN, at

AGAIN = 10.0  # seconds between two looks
LIMIT = 120.0  # seconds for the runtime: an emulated machine is 50 times slower, and busy while dockerd starts
NEEDED = 40  # processes and threads: a shim, runc twice, the container's first process
FOLDER = f"{RUN}/trial"
# As dockerd has it (runc's config.json): below the same cgroup, with namespaces and without devices.
SPEC = {
    "ociVersion": "1.0.2",
    "process": {"user": {"uid": 0, "gid": 0}, "args": ["/usr/bin/true"], "env": ["PATH=/usr/bin"], "cwd": "/"},
    "root": {"path": "rootfs"},
    "mounts": [
        {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
        {"destination": "/proc", "type": "proc", "source": "proc"},
    ],
    "linux": {
        "cgroupsPath": "/docker/dind-k3s-trial",
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
    },
}


def default_runtime() -> str:
    """Return the program that dockerd starts containers with; of a shim in its place, the name."""
    try:
        args = " ".join(at(f"{RUN}/dockerd.args").read_text().split("\0"))
        config = json.loads(at(f"{RUN}/daemon.json").read_text())
    except (OSError, ValueError):
        return "runc"
    flag = re.findall(r"--default-runtime[ =](\S+)", args)
    name = flag[-1] if flag else str(config.get("default-runtime", "runc"))
    added = dict(re.findall(r"--add-runtime[ =]([^ =]+)=(\S+)", args))
    return added.get(name) or str(config.get("runtimes", {}).get(name, {}).get("path") or name)


def start_one() -> str:
    """Start a container with the default runtime and wait for its end; the reason when that fails."""
    folder = at(f"{FOLDER}-{os.getpid()}")
    runtime = default_runtime()
    if not runtime.rpartition("/")[2].startswith(("runc", "crun")):
        return ""  # another one may want what only dockerd passes to it
    try:
        (folder / "rootfs").mkdir(parents=True, exist_ok=True)
        for name in ("bin", "lib", "lib64"):
            if not (folder / "rootfs" / name).is_symlink():
                (folder / "rootfs" / name).symlink_to(f"usr/{name}")
        (folder / "config.json").write_text(json.dumps(SPEC))
        run = (runtime, "--root", f"{folder}/state", "run", "--bundle", f"{folder}", folder.name)
        status, words = output(*run, timeout=LIMIT)
        if status == 0:
            return ""
        output(runtime, "--root", f"{folder}/state", "delete", "--force", folder.name)
    except OSError as error:
        status, words = 1, f"{error.filename}: {error.strerror}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return f"no container can be started: {words.splitlines()[-1] if words else f'{runtime} ends with {status}'}"[:400]


def shortage() -> str:
    """Return what a container would lack; empty when there is enough. It costs a few reads of files."""
    if full := room.problem():
        return f"no container can be started: {full}; make room, with docker system prune for instance"
    used, most = limits.processes()
    if most - used < NEEDED:
        return f"no container can be started: {used} processes are in use, this container's pids limit is {most:.0f}"
    return ""


def follow(docker: Docker, found: Board) -> None:
    """Try to start a container until it succeeds once, and look at what it needs from then on. For ever.

    Not before containerd listens: dockerd gives it 15 s to start, which a slow machine needs for nothing else. What
    fails is reported once dockerd answers, for run-k3s takes a permanent failure as its sign to start.
    """
    pause = threading.Event()
    while not at(containerd.SOCKET).exists() and docker.problem():
        pause.wait(0.05)
    refused = limits.refused_processes()
    failed = start_one()
    while True:
        while failed and docker.problem():
            pause.wait(0.05)
        lacking = shortage()
        before, refused = refused, limits.refused_processes()
        if refused > before and not lacking:
            lacking = f"the pids limit of this container refused {refused - before} processes: --pids-limit=-1 lifts it"
        found.report("container", failed or lacking, failed=bool(failed))
        pause.wait(AGAIN)
        failed = failed and start_one()
