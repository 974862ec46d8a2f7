"""Mounts: those in a folder, by whichever path, and whether a program can be run from one.

kubelet's folder is mounted a second time, and its pods' mounts are there.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dind_k3s.root import at

TABLE = Path("/proc/self/mountinfo")


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A line of mountinfo (proc_pid_mountinfo(5)). `root` is the path in the file system that is seen at `point`."""

    number: str
    parent: str
    device: str
    root: PurePosixPath
    point: PurePosixPath


def parse(table: str) -> list[Mount]:
    """All mounts, in the order in which they were made."""
    found = []
    for line in table.splitlines():
        number, parent, device, *paths = line.split()[:5]
        root, point = (PurePosixPath(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), path)) for path in paths)
        found.append(Mount(number=number, parent=parent, device=device, root=root, point=point))
    return found


def inside(folder: PurePosixPath, mounts: Sequence[Mount]) -> list[tuple[PurePosixPath, PurePosixPath]]:
    """Mount points on what is in the folder, the newest first, each with its path in the folder."""
    around = max(
        (one for one in reversed(mounts) if folder.is_relative_to(one.point)), key=lambda one: len(one.point.parts)
    )
    place = around.root / folder.relative_to(around.point)
    by_number = {one.number: one for one in mounts}
    found = []
    for one in reversed(mounts):
        below = by_number.get(one.parent)
        if below is None or below.device != around.device or not one.point.is_relative_to(below.point):
            continue
        covers = below.root / one.point.relative_to(below.point)
        if covers != place and covers.is_relative_to(place):
            found.append((one.point, covers.relative_to(place)))
    return found


def unmount_inside(folder: Path, *but: str) -> None:
    """Let go of all of them, except in the named entries of the folder. What stays is found when it is removed."""
    for point, path in inside(PurePosixPath(folder.resolve()), parse(TABLE.read_text())):
        if path.parts[0] not in but:
            subprocess.run(["umount", "--lazy", str(point)], capture_output=True, check=False)


def noexec(folder: str) -> str:
    """The mount point of a folder, which need not exist yet, if no program can be run from it; else empty."""
    path = at(folder)
    while not path.exists():
        path = path.parent
    if not os.statvfs(path).f_flag & os.ST_NOEXEC:
        return ""
    while not path.is_mount():
        path = path.parent
    return str(path)
