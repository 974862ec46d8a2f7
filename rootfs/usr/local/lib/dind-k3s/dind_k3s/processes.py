"""The processes of this container's dockerd, and how it is spared work at the stop.

With `--pid host` those of the host are in sight, too. Ours are in our mount namespace, which docker shares
with no other container.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from dind_k3s.root import RUN, at

TOOLS = at(f"{RUN}/dockerd")  # first on dockerd's PATH


def first_of_containers() -> list[int]:
    """The first process of each container, whose end is the container's: the children of containerd's shims."""
    ours = Path("/proc/self/ns/mnt").stat()
    parents: dict[int, int] = {}
    shims: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            if name.startswith("containerd-shim") and os.path.samestat((folder / "ns/mnt").stat(), ours):
                shims.add(int(folder.name))
        except OSError:
            continue  # gone by now
        parents[int(folder.name)] = int(rest.split()[1])
    return [pid for pid, parent in parents.items() if parent in shims and pid not in shims]


def kill(pids: Iterable[int]) -> int:
    """End them; how many there were."""
    count = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        count += 1
    return count


def write_rules(*, really: bool) -> None:
    """Let dockerd's calls of iptables do what they say, or nothing, with success.

    At the stop each published port costs dockerd a dozen of them. This network namespace ends with the container, and
    where it does not, dockerd makes all of its chains new at the next start.
    """
    TOOLS.mkdir(exist_ok=True)
    for tool in ("iptables", "ip6tables"):
        fresh = TOOLS / "new"
        fresh.symlink_to(f"/usr/sbin/{tool}" if really else "/bin/true")
        fresh.rename(TOOLS / tool)
