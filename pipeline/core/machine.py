"""Programs, privileges and lock files of this machine; missing programs are installed by apt-get where possible."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.core.errors import EngineError
from pipeline.core.log import Log

# A program that the pipeline starts → its Debian/Ubuntu package.
PACKAGES = {
    "aria2c": "aria2",
    "curl": "curl",
    "depmod": "kmod",
    "docker-registry": "docker-registry",
    "dpkg-deb": "dpkg",
    "ip": "iproute2",
    "iptables": "iptables",
    "mkfs.ext4": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "openssl": "openssl",
    "qemu-aarch64-static": "qemu-user-static",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-x86_64-static": "qemu-user-static",
    "setpriv": "util-linux",
    "slirp4netns": "slirp4netns",
    "tar": "tar",
    "unshare": "util-linux",
}

# Programs to install from backports where this Debian release has them: qemu 10 boots a guest in two thirds of the
# time of qemu 7.2. All of qemu, since its packages of different versions are incompatible.
_BACKPORTED = {program for program in PACKAGES if program.startswith("qemu-")}

# Root's usual folders; a minimal PATH (cron, some CI) lacks the sbin ones.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def find(program: str) -> str | None:
    """Return the path of a program on PATH or in root's sbin folders; None if it is missing."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def require_linux_root(purpose: str) -> None:
    """Raise EngineError, beginning with `purpose`, unless this process is root on Linux."""
    if sys.platform != "linux":
        raise EngineError(
            f"{purpose} needs Linux",
            found=sys.platform,
            next_step="run it in a virtual machine, or in a privileged container: "
            "docker run --privileged -it -v $PWD:/src -w /src debian:trixie",
        )
    if os.geteuid() != 0:
        raise EngineError(
            f"{purpose} needs root: it creates namespaces, mounts and cgroups",
            found=f"user id {os.geteuid()}",
            next_step="run the same command with sudo, or in a root shell",
        )


def ensure(programs: Iterable[str], log: Log) -> None:
    """Install those of these programs, keys of PACKAGES, that are missing.

    Raises EngineError that names the missing programs and their packages.
    """
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
    _apt_get(["update", "-qq"], log)
    done = None
    if _BACKPORTED & set(missing):
        done = _install_backports(packages, log)
    if done is None or done.returncode != 0:
        done = _apt_get(["install", "-qq", "--yes", "--no-install-recommends", *packages], log)
    if done.returncode != 0:
        raise EngineError(
            f"apt-get could not install {', '.join(packages)}",
            found="; ".join((done.stderr or done.stdout).strip().splitlines()[-5:]),
            next_step=f"install them by hand, then run this again: {by_hand}",
        )
    if still := sorted(program for program in missing if find(program) is None):
        raise EngineError(f"{', '.join(packages)} installed, but {', '.join(still)} not found on PATH")


def _apt_get(arguments: Sequence[str], log: Log) -> subprocess.CompletedProcess[str]:
    log.command(["apt-get", *arguments])
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        ["apt-get", *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def _install_backports(packages: Sequence[str], log: Log) -> subprocess.CompletedProcess[str] | None:
    """Install from the backports of this machine's Debian release, in addition to its other sources.

    The source and its lists exist for these two commands alone: the machine's configuration does not change. Returns
    None where there are no backports.
    """
    codename, suites = debian_suites()
    if codename not in suites:
        return None
    with tempfile.TemporaryDirectory(prefix="dind-k3s-apt-") as folder:
        (Path(folder) / "lists" / "partial").mkdir(parents=True)
        own = Path("/etc/apt/sources.list")
        sources = own.read_text(encoding="utf-8") if own.exists() else ""
        listed = Path(folder) / "sources.list"
        listed.write_text(
            f"{sources}\ndeb [target=Packages] {suites[codename]} {codename}-backports main\n", encoding="utf-8"
        )
        options = ["-o", f"Dir::Etc::sourcelist={listed}", "-o", f"Dir::State::lists={folder}/lists"]
        if _apt_get([*options, "update", "-qq", "--error-on=any"], log).returncode != 0:
            return None
        install = ["install", "-qq", "--yes", "--no-install-recommends", "-t", f"{codename}-backports", *packages]
        return _apt_get([*options, *install], log)


def debian_suites() -> tuple[str, dict[str, str]]:
    """Return this machine's Debian code name, and the suites of its sources, each with its archive's base URL.

    ("", {}) elsewhere than on Debian.
    """
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "", {}
    if release["ID"] != "debian" or find("apt-get") is None:
        return "", {}
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    pairs = (line.partition(" ") for line in done.stdout.splitlines())
    return release.get("VERSION_CODENAME", ""), {suite: uri.rstrip("/") for uri, _, suite in pairs}


def disk_full(output: str, where: Path) -> EngineError | None:
    """Return the error for a program that failed because the disk is full, by its output; None if it did not."""
    if "No space left on device" not in output:
        return None
    return EngineError(
        "the disk is full",
        found=next(line for line in output.splitlines() if "No space left on device" in line)[:200],
        where=str(where),
        next_step="make room there, or choose another folder: DIND_K3S_CACHE=…",
    )


@contextmanager
def exclusive(lock: Path, taken: str) -> Iterator[None]:
    """Hold a lock file during the block. Raises EngineError with the summary `taken` if another process holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(lock).acquire(timeout=0)
    except Timeout:
        next_step = "wait for it, or give this run a separate folder: DIND_K3S_CACHE=…"
        raise EngineError(taken, where=str(lock.parent), next_step=next_step) from None
    with held:
        yield


def require_short(folder: Path, limit: int, contents: str) -> None:
    """Raise EngineError for a folder whose path is too long for the sockets in it (unix(7))."""
    if len(str(folder)) > limit:
        raise EngineError(
            f"the path of {contents} is too long for the kernel",
            expected=f"at most {limit} characters for their folder",
            found=str(folder),
            next_step="set DIND_K3S_CACHE to a folder with a shorter path",
        )


def tied(command: Sequence[str]) -> list[str]:
    """Return a command line whose process the kernel kills when this one ends (prctl(2), PR_SET_PDEATHSIG)."""
    return [find("setpriv") or "setpriv", "--pdeathsig", "KILL", *command]


def stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for a process that got a signal to end; kill it after `seconds`."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def has_capability(number: int) -> bool:
    """Return whether a capability (number of capabilities(7)) is in this process's bounding set."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapBnd:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


CAP_SYS_RESOURCE = 24  # needed to lower oom_score_adj below 0
