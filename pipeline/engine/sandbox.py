"""Namespaces for programs that run as root: when their first process dies, the kernel removes everything in them.

A private engine makes mounts, bridges, iptables rules and shims that outlive it. In separate mount, network, pid and
ipc namespaces they do not affect the machine, and nothing is left even after SIGKILL: processes die with the pid
namespace, mounts and bridges with the last process (namespaces(7), pid_namespaces(7)). Files and cgroups are not
namespaced that way; `sweep_cgroups` removes the latter.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.core.machine import find, tied

TOOLS = ("unshare", "setpriv", "ip", "mount", "iptables")

# Runs inside before the command. Without network: an empty /run (no sockets and pid files of the machine's daemons),
# loopback up, binfmt_misc mounted again (the new /proc lacks it).
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
    """Return the command line that runs `command` in new namespaces.

    `network`: keep the machine's network; otherwise there is only a loopback. `init`: a static init that reaps
    (docker-init), as process 1 inside; otherwise the command is. `resolv_conf` replaces /etc/resolv.conf inside. The
    sandbox is killed when the starter of this command line dies (`setpriv --pdeathsig`) or when unshare is killed
    (`--kill-child`).
    """
    outer = tied([find("unshare") or "unshare"])
    namespaces = ["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL", "--mount-proc"]
    if not network:
        namespaces.append("--net")
    mode = "online" if network else "offline"
    prelude = ["sh", "-c", _PRELUDE, "sandbox", mode, str(resolv_conf or "")]
    return [*outer, *namespaces, *prelude, *([str(init), "--"] if init else []), *command]


def signal_inside(pid: int, number: signal.Signals) -> None:
    """Send a signal to the first process of a sandbox, if it runs; `pid`: of the command line that `wrap` returned.

    unshare ignores SIGINT and SIGTERM while it waits for its child.
    """
    with suppress(OSError, ValueError, IndexError):
        os.kill(first_inside(pid), number)


def first_inside(pid: int) -> int:
    """Return the pid, seen from outside, of a sandbox's first process. Raises OSError or IndexError without one."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()[0])


def sweep_cgroups(name: str) -> None:
    """Remove the empty cgroups below every `/<name>` of this machine's hierarchies.

    Containers that were killed with their namespace leave them. A cgroup that still has a process stays.
    """
    top = Path("/sys/fs/cgroup")
    for root in (top / name, *(path / name for path in top.glob("*"))):
        # os.walk ignores what another engine removes at the same moment; rglob raises.
        for folder, _, _ in os.walk(root, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()
