"""The processes of a running container, seen from outside: whose each is, what memory and CPU it has used.

A container's processes are the descendants of its first one: cgroups do not tell, because on cgroup v1 the containers
that run inside have theirs elsewhere. What `docker exec` and the health check start has its parent outside and is not
among them. Sources: proc_pid_stat(5), proc_pid_smaps(5), namespaces(7).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

OURS, DOCKER, SHIMS, K3S, CONTAINERS = "ours", "dockerd and containerd", "shims", "k3s", "containers"
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process."""

    pid: int  # as this process sees it
    parent: int
    name: str  # comm: at most 15 characters
    line: tuple[str, ...]  # the command line


def read(pid: int) -> Process:
    """Raises OSError when it is gone."""
    name, _, rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
    line = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").rstrip("\0")
    return Process(pid=pid, parent=int(rest.split()[1]), name=name.partition("(")[2], line=tuple(line.split("\0")))


def _all() -> dict[int, Process]:
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, IndexError):
                found[int(folder.name)] = read(int(folder.name))
    return found


def first(container: str) -> int:
    """The first process of a container, by its full id; 0 when there is none (yet)."""
    found: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, AttributeError, IndexError):
                if container in (folder / "cgroup").read_text(encoding="utf-8"):
                    numbers = re.search(r"^NSpid:(.*)$", (folder / "status").read_text(encoding="utf-8"), re.M)[1]  # type: ignore[index]
                    if numbers.split()[-1] == "1":
                        found[len(numbers.split())] = int(folder.name)
    return found[min(found)] if found else 0


def began(pid: int) -> float:
    """When it was made, as time.time() tells it; in steps of a clock tick, 10 ms."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / TICK


def children(pid: int) -> list[int]:
    """Of its main thread; empty when it is gone."""
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return []


def name_of(pid: int) -> str:
    """Its comm; empty when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    return ""


def groups(top: int) -> dict[str, list[Process]]:
    """Every process of a container, by whose it is."""
    return sort(_all(), top)


def sort(everything: Mapping[int, Process], top: int) -> dict[str, list[Process]]:
    """The descendants of `top` and itself, by whose they are: a child belongs to its parent unless it is known."""
    below: dict[int, list[Process]] = {}
    for process in everything.values():
        below.setdefault(process.parent, []).append(process)
    found: dict[str, list[Process]] = {name: [] for name in (OURS, DOCKER, SHIMS, K3S, CONTAINERS)}
    todo = [(everything[top], OURS)] if top in everything else []
    while todo:
        process, group = todo.pop()
        found[group].append(process)
        # A shim's children are what runs in containers.
        inherited = CONTAINERS if group == SHIMS else group
        todo += [(child, _group(child, inherited)) for child in below.get(process.pid, ())]
    return found


def _group(process: Process, inherited: str) -> str:
    if inherited == CONTAINERS:
        return CONTAINERS
    if process.name.startswith("containerd-shim"):
        return SHIMS
    if process.name in ("dockerd", "containerd"):
        return DOCKER
    # By its words, for k3s may be a script (a rehearsal's stand-in), and changes its name.
    words = [word.rpartition("/")[2] for word in process.line[:3]]
    if "k3s" in words or process.name.startswith("k3s"):
        return K3S
    return inherited


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes."""

    proportional: int  # PSS: a page that n processes share counts for a n-th
    resident: int  # RSS


def memory(pid: int) -> Memory:
    """Of one process; nothing when it is gone."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        pss, rss = (int(match[1]) * 1024 if (match := re.search(rf"^{key}:\s+(\d+)", text, re.M)) else 0
                    for key in ("Pss", "Rss"))  # fmt: skip
        return Memory(proportional=pss, resident=rss)
    return Memory(proportional=0, resident=0)


def cpu(pid: int) -> float:
    """Seconds that it and its children that have ended were running; in steps of 10 ms for the latter."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        running = 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            running += int((task / "schedstat").read_text(encoding="ascii").split()[0])
    except (OSError, IndexError):
        return 0.0
    return running / 1e9 + (int(fields[13]) + int(fields[14])) / TICK


def used_by(top: int) -> dict[str, float]:
    """`used` of every process of a container, by whose it is."""
    return {group: sum(used(one.pid) for one in them) for group, them in groups(top).items()}


def used(pid: int) -> float:
    """Seconds that it, its ended threads and its ended children were running; in steps of 10 ms. 0 when it is gone."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / TICK  # utime, stime, cutime, cstime
    return 0.0
