"""room PROGRAM: a program that ended on a full volume waits here for room, so that it neither gives up nor loops.

Its first start is never held back: dockerd can start without room, and `docker system prune` is how some is made.
"""

from __future__ import annotations

import os
import sys
import time

from dind_k3s.root import at, facts

LEAST = 16 << 20


def full(folder: str) -> str:
    """Which volume has no room, in words; empty when it has some."""
    try:
        space = os.statvfs(at(folder))
    except OSError:
        return ""
    free = space.f_bavail * space.f_frsize
    if free >= LEAST and (space.f_favail > 16 or space.f_files == 0):  # btrfs counts no inodes
        return ""
    return f"{folder} is full ({free >> 20} MiB, {space.f_favail} files free)"


def problem() -> str:
    """The first of our volumes that is full. Each daemon writes into both."""
    return full(facts().get("data", "/var/lib/docker")) or full("/app/k3s")


def main() -> int:
    if not problem():
        return 0
    while problem():
        time.sleep(1)
    print(f"dind-k3s: there is room again, {sys.argv[1]} starts", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
