"""Namespaces for what we start as root: when their first process dies, the kernel removes everything in them.

A private engine makes mounts, bridges, iptables rules and shims that outlive it. Inside its own mount, network, pid
and ipc namespaces none of that can reach the machine, and nothing is left to clean up even after SIGKILL: processes
die with the pid namespace, mounts and bridges with the last process (namespaces(7), pid_namespaces(7)).
Only files and cgroups are not namespaced that way; `sweep_cgroups` removes the latter.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.core.machine import find, tied

TOOLS = ("unshare", "setpriv", "ip", "mount", "iptables")

# Runs inside before the command. Without network: an empty /run (no socket or pid file of the machine's own daemons
# is seen or left), loopback up, binfmt_misc visible again (the fresh /proc does not show it).
_PRELUDE = """
set -e
if [ "$1" = offline ]; then
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/lock
  ip link set lo up
  mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc 2>/dev/null || true
fi
if [ -n "$2" ]; then mount --bind "$2" /etc/resolv.conf; fi
shift 2
exec "$@"
"""


def wrap(
    command: Sequence[str],
    *,
    network: bool = False,
    init: Path | None = None,
    resolv_conf: Path | None = None,
) -> list[str]:
    """The command line that runs `command` in namespaces of its own.

    `network`: keep the machine's network; else there is nothing but a loopback of its own. `init`: a static init that
    reaps (docker-init of docker's archive), process 1 inside; else the command itself is. `resolv_conf` replaces
    /etc/resolv.conf inside. The whole sandbox is killed when the process that starts this
    command line dies (`setpriv --pdeathsig`) or when unshare itself is killed (`--kill-child`).
    """
    outer = tied([find("unshare") or "unshare"])
    namespaces = ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL", "--mount-proc"]
    if not network:
        namespaces.append("--net")
    mode = "online" if network else "offline"
    prelude = ["sh", "-c", _PRELUDE, "sandbox", mode, str(resolv_conf or "")]
    return [*outer, *namespaces, *prelude, *([str(init), "--"] if init else []), *command]


def signal_inside(pid: int, number: signal.Signals) -> None:
    """Send a signal to the first process of a sandbox; `pid` is what `wrap`'s command line was started as.

    unshare itself ignores SIGINT and SIGTERM while it waits for its only child. Nothing happens when it is gone.
    """
    with suppress(OSError, ValueError, IndexError):
        os.kill(first_inside(pid), number)


def first_inside(pid: int) -> int:
    """The pid, seen from outside, of a sandbox's first process. Raises OSError or IndexError when there is none."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()[0])


def sweep_cgroups(name: str) -> None:
    """Remove the empty cgroups below every `/<name>` of this machine's hierarchies.

    Containers that were killed with their namespace leave their cgroup folders. One that still has a process
    cannot be removed and is left alone.
    """
    top = Path("/sys/fs/cgroup")
    for root in (top / name, *(path / name for path in top.glob("*"))):
        # os.walk minds nothing that another engine removes at the same moment; rglob does.
        for folder, _, _ in os.walk(root, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()
