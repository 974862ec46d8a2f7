"""What this machine has; what is missing is named, then installed by apt-get as root on Debian and Ubuntu."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import EngineError
from pipeline.log import Log

# A program that we start → the Debian/Ubuntu package that has it.
PACKAGES = {
    "apt-ftparchive": "apt-utils",
    "aria2c": "aria2",
    "curl": "curl",
    "docker-registry": "docker-registry",
    "dpkg-deb": "dpkg",
    "ip": "iproute2",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "openssl": "openssl",
    "qemu-aarch64-static": "qemu-user-static",
    "qemu-x86_64-static": "qemu-user-static",
    "setpriv": "util-linux",
    "slirp4netns": "slirp4netns",
    "unshare": "util-linux",
}

# Root's usual folders; a minimal PATH (cron, some CI) lacks the sbin ones.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def find(program: str) -> str | None:
    """The path of a program, looked for on PATH and in root's own folders; None when there is none."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def require_linux_root(what: str) -> None:
    """Raise EngineError unless this is Linux and we are root; `what` begins the sentence."""
    if sys.platform != "linux":
        raise EngineError(
            f"{what} needs Linux",
            found=sys.platform,
            next_step="run it in a virtual machine, or in a privileged container: "
            "docker run --privileged -it -v $PWD:/src -w /src debian:trixie",
        )
    if os.geteuid() != 0:
        raise EngineError(
            f"{what} needs root: it makes namespaces, mounts and cgroups",
            found=f"user id {os.geteuid()}",
            next_step="run the same command with sudo, or in a root shell",
        )


def ensure(programs: Iterable[str], log: Log) -> None:
    """Have these programs, a key of PACKAGES each. Raises EngineError that names what is missing and how to get it."""
    missing = sorted(program for program in programs if find(program) is None)
    if not missing:
        return
    packages = sorted({PACKAGES[program] for program in missing})
    by_hand = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if find("apt-get") is None or os.geteuid() != 0:
        raise EngineError(
            f"this machine lacks {', '.join(missing)}",
            expected=f"packages {', '.join(packages)} (names of Debian and Ubuntu)",
            next_step=f"as root: {by_hand}",
        )
    log.say(f"this machine lacks {', '.join(missing)}: installing {', '.join(packages)} with apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *packages],
    ):
        log.command(command)
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0 and command[1] == "install":
            last = (done.stderr or done.stdout).strip().splitlines()[-5:]
            raise EngineError(
                f"apt-get could not install {', '.join(packages)}",
                found="; ".join(last),
                next_step=f"install them by hand, then run this again: {by_hand}",
            )
    if still := sorted(program for program in missing if find(program) is None):
        raise EngineError(f"{', '.join(packages)} installed, but {', '.join(still)} cannot be found on PATH")


def disk_full(said: str, where: Path) -> EngineError | None:
    """The error for a program that ended because the disk is full, by what it said; None when it said nothing of it."""
    if "No space left on device" not in said:
        return None
    return EngineError(
        "the disk is full",
        found=next(line for line in said.splitlines() if "No space left on device" in line)[:200],
        where=str(where),
        next_step="make room there, or choose another folder: DIND_K3S_CACHE=…",
    )


def has_capability(number: int) -> bool:
    """Whether this process may ever use a capability (capabilities(7) numbers them): its bounding set has it."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapBnd:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


CAP_SYS_RESOURCE = 24  # needed to lower oom_score_adj below 0
