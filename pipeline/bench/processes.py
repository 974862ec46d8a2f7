"""The processes of a running container, from outside: which are ours, their memory and CPU.

A container's processes are the descendants of its first one; cgroups do not help, because on cgroup v1 the inner
containers' cgroups are elsewhere. What `docker exec` and the health check start has its parent outside and is not
included. Sources: proc_pid_stat(5), proc_pid_smaps(5), namespaces(7).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process."""

    pid: int  # as this process sees it
    parent: int
    name: str  # comm: at most 15 characters
    line: tuple[str, ...]  # the command line


def _read(pid: int, file: str) -> str:
    """Return a file of /proc/PID. Raises OSError when the process is gone."""
    return Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8", errors="replace")


def _stat(pid: int) -> list[str]:
    """Return the fields of its stat from the third on, the state."""
    return _read(pid, "stat").rpartition(")")[2].split()


def _field(pid: int, file: str, key: str) -> int:
    """Return a field that is in kB, in bytes; 0 without it, or when the process is gone."""
    with suppress(OSError):
        if match := re.search(rf"^{key}:\s+(\d+)", _read(pid, file), re.M):
            return int(match[1]) * 1024
    return 0


def read(pid: int) -> Process:
    """Return a process. Raises OSError or IndexError when it is gone."""
    name = _read(pid, "stat").rpartition(")")[0].partition("(")[2]
    line = tuple(_read(pid, "cmdline").rstrip("\0").split("\0"))
    return Process(pid=pid, parent=int(_stat(pid)[1]), name=name, line=line)


def _pids() -> Iterator[int]:
    return (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit())


def first(container: str) -> int:
    """Return the first process of a container with that full id; 0 when there is none (yet)."""
    by_depth: dict[int, int] = {}  # number of its nested PID namespaces → its id here
    for pid in _pids():
        with suppress(OSError):
            first_of = re.search(r"^NSpid:((?:\s+\d+)*)\s+1$", _read(pid, "status"), re.M)
            if first_of and container in _read(pid, "cgroup"):
                by_depth[len(first_of[1].split())] = pid
    return by_depth[min(by_depth)] if by_depth else 0


def children(pid: int) -> list[int]:
    """Return the children of its main thread; none when it is gone."""
    with suppress(OSError):
        return [int(word) for word in _read(pid, f"task/{pid}/children").split()]
    return []


def ours(top: int) -> list[Process]:
    """Return the processes of a container that are the image's; `top` is its first one."""
    everything = []
    for pid in _pids():
        with suppress(OSError, IndexError):
            everything.append(read(pid))
    return descendants(everything, top)


def descendants(everything: Iterable[Process], top: int) -> list[Process]:
    """Return `top` and its descendants without dockerd, containerd, shims and k3s, and those processes' children."""
    everything = [*everything]
    result = [process for process in everything if process.pid == top]
    for parent in result:  # which grows
        result += [child for child in everything if child.parent == parent.pid and not _is_others(child)]
    return result


def _is_others(process: Process) -> bool:
    # k3s by its command line: it may be a script (a rehearsal's stub), and changes its name.
    words = [word.rpartition("/")[2] for word in process.line[:3]]
    return process.name.startswith(("containerd", "dockerd", "k3s")) or "k3s" in words


def proportional(pid: int) -> int:
    """Return its memory in bytes, as PSS: a page that n processes share counts for an n-th."""
    return _field(pid, "smaps_rollup", "Pss")


def most_memory(pid: int) -> int:
    """Return its peak memory in bytes, as RSS."""
    return _field(pid, "status", "VmHWM")


def cpu(pid: int) -> float:
    """Return the processor time in seconds of it and its ended children; 0 when it is gone.

    To the nanosecond, but in steps of 10 ms for ended threads and ended children.
    """
    try:
        user, system, children_user, children_system = (int(field) / _TICK for field in _stat(pid)[11:15])
        threads = [
            int(_read(pid, f"task/{task.name}/schedstat").split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()
        ]
    except (OSError, IndexError, ValueError):
        return 0.0
    return max(sum(threads) / 1e9, user + system) + children_user + children_system
