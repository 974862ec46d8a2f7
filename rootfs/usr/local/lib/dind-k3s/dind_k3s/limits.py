"""What this container may use at most. kubelet sees the whole host (google/cadvisor#2698), so the rest is reserved.

Then the node offers what the container has, and the scheduler does not put more on it than fits.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from dind_k3s.root import at

CGROUPS = "/sys/fs/cgroup"


def system_reserved() -> dict[str, str]:
    """`systemReserved` of kubelet's configuration: the host's size without our limits; empty when there are none."""
    reserved = {}
    cpus = os.cpu_count() or 1
    limit = min(cpu_limit(), len(os.sched_getaffinity(0)))
    if limit < cpus:
        reserved["cpu"] = f"{math.floor((cpus - limit) * 1000)}m"
    total = total_memory()
    if (memory := memory_limit()) < total:
        reserved["memory"] = f"{math.floor((total - memory) / 2**20)}Mi"
    return reserved


def total_memory() -> int:
    """The host's, as kubelet reads it."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", _text(at("/proc/meminfo")), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def memory_limit() -> float:
    """In bytes; infinite without a limit."""
    texts = [_text(folder / "memory.max") for folder in _folders("")]
    texts += [_text(folder / "memory.limit_in_bytes") for folder in _folders("memory")]
    return min((int(text) for text in texts if text.isdecimal()), default=math.inf)


def processes() -> tuple[int, float]:
    """Return how many processes and threads there are, and how many are allowed: infinite without a limit."""
    found = [(0, math.inf)]
    for folder in (*_folders(""), *_folders("pids")):
        used, most = _text(folder / "pids.current"), _text(folder / "pids.max")
        if used.isdecimal() and most.isdecimal():
            found.append((int(used), int(most)))
    return min(found, key=lambda pair: pair[1] - pair[0])


def refused_processes() -> int:
    """Return how often the kernel refused one. Older kernels count in the group that asked, newer in the limit's."""
    root = at(CGROUPS)
    events = root.rglob("pids.events") if processes()[1] < math.inf else iter(())
    return sum(int(_text(file).partition("max ")[2] or 0) for file in events)


def cpu_limit() -> float:
    """In processors; infinite without a limit."""
    found = [math.inf]
    for folder in _folders(""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            found.append(int(quota) / int(period))
    for folder in _folders("cpu"):
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():
            found.append(int(quota) / int(period))
    return min(found)


def _folders(controller: str) -> Iterator[Path]:
    """This process's groups, from its own up to the root that is seen here. In v1, those of a controller."""
    path = ""
    for line in _text(at("/proc/self/cgroup")).splitlines():
        _, controllers, where = line.split(":", 2)
        if controller in controllers.split(","):  # v2 has none: ""
            path = where
    root = at(f"{CGROUPS}/{controller}")
    folder = root / path.strip("/")
    while folder != root and root in folder.parents:
        yield folder
        folder = folder.parent
    yield root


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
