"""Guests: small machines that smoke can boot an image on. Their disks are made once and kept below `<cache>/virtual/`.

system   kernel, initramfs and root disk: the locked base image, packages and dockerd; never the image that is smoked,
         so that a fault of that image cannot break the engine that runs it
content  the disk with /var/lib/docker: the image as the guest's dockerd would have loaded and unpacked it, but natively

qemu opens both with snapshot=on, so they do not change and several runs can use them. Measured on two cores for an
image of 230 MB (905 MB unpacked): natively load 1.2 s, unpack 6.7 s, mkfs 3.4 s, and the guest reads only what it
needs. With `docker load` or a pull, the guest would hash, gunzip and untar all of it at a tenth of that speed or less.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from filelock import FileLock
from python_on_whales import DockerClient

from pipeline.core import cache as cached
from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.core.machine import disk_full, find
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.engine import daemon
from pipeline.engine.virtual import initramfs
from pipeline.fetch import base
from pipeline.inputs.lock import Lock

TOOLS = ("depmod", "dpkg-deb", "mkfs.ext4", "tar")

FOLDER = "virtual"
_FORMAT = 1  # to be raised when the disks made from the same files change
_OWN = Path(__file__).parent / "guest"
_INSIDE = "usr/lib/dind-k3s-guest"
_ROOT_SIZE = "4G"  # sparse: a file takes what is written
_CONTENT_SIZE = "16G"
# Not needed there, and a quarter of all files.
_LEFT_OUT = [f"--exclude=usr/share/{name}" for name in ("doc", "info", "locale", "man")]


@dataclass(frozen=True, kw_only=True)
class Guest:
    """A small machine. Its kernel and modules are Debian's, so it has Debian's configuration."""

    name: str
    about: str
    cgroup_v1: bool = False  # all controllers on v1, and Debian's last kernel that has them all
    blocked: tuple[str, ...] = ()  # kernel modules that cannot be loaded, as if they did not exist

    @property
    def command_line(self) -> str:
        """Parameters for the kernel's command line; pipeline/engine/virtual/guest/init reads them."""
        return f"dind.cgroup={'v1' if self.cgroup_v1 else 'v2'} dind.block={','.join(self.blocked)}"


GUESTS = {
    guest.name: guest
    for guest in (
        Guest(name="default", about="cgroup v2 alone, nft and legacy iptables"),
        Guest(name="cgroup-v1", about="cgroup v1 alone", cgroup_v1=True),
        Guest(
            name="nft-only",
            about="no legacy iptables in the kernel",
            blocked=("ip_tables", "ip6_tables", "arp_tables", "ebtables"),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class System:
    """Kernel, initramfs and root disk."""

    kernel: Path
    initramfs: Path
    root: Path  # disk image


@dataclass(frozen=True, kw_only=True)
class Content:
    """Images for the guest's dockerd."""

    key: str  # identifies the content; part of a file name
    fill: Callable[[DockerClient], None]  # loads it into an empty engine of this machine


def using(cache: Path) -> FileLock:
    """Return the lock to hold from making the disks until qemu has opened them, so that none is removed meanwhile."""
    (cache / FOLDER).mkdir(parents=True, exist_ok=True)
    return FileLock(cache / FOLDER / "lock")


def system(platform: Platform, guest: Guest, lock: Lock, cache: Path, log: Log) -> System:
    """Return a guest's system, made if the cache lacks it. Raises EngineError, and UpstreamError for a missing file."""
    kernel = lock.kernel(platform, cgroup_v1=guest.cgroup_v1)
    flavour = f"{platform.architecture}-{'v1' if guest.cgroup_v1 else 'v2'}"
    docker = next(file for file in lock.artifacts if (file.component, file.platform) == ("docker", platform))
    packages = [file for file in lock.packages if file.platform == platform]
    files = [docker, kernel, lock.busybox(platform), *packages]
    own = [path.read_bytes() for path in sorted(_OWN.iterdir())]
    parts = [_FORMAT, lock.base.digest.text, *(file.digest.text for file in files), *map(Digest.of, own)]
    key = Digest.of(json.dumps(parts, default=str).encode()).hex[:16]

    def make(partial: Path) -> None:
        with log.step(f"guest's system: {kernel.component}, docker {docker.version}"):
            debs = [cached.require(cache, file.digest) for file in (*packages, kernel, lock.busybox(platform))]
            layers = base.layer_files(lock.base.digest, platform, cache)
            _make_system(partial, layers, debs, cached.require(cache, docker.digest))

    folder = _made(cache, f"system-{flavour}", key, make)
    return System(kernel=folder / "vmlinuz", initramfs=folder / "initramfs", root=folder / "root.ext4")


def content(images: Content | None, platform: Platform, binaries: daemon.Binaries, cache: Path, log: Log) -> Path:
    """Return the disk with /var/lib/docker; an empty one for None. Raises EngineError, and what `fill` raises."""

    def make(partial: Path) -> None:
        tree = partial / "engine"
        with log.step("guest's disk with the image" if images else "guest's disk, empty"):
            (tree / "data").mkdir(parents=True)
            if images:
                with daemon.run(binaries, tree, log, sandboxed=True, network=False) as client:
                    images.fill(client)
            _mkfs(tree / "data", partial / "docker.ext4", _CONTENT_SIZE)
            shutil.rmtree(tree)

    return _made(cache, f"content-{platform.architecture}", images.key if images else "empty", make) / "docker.ext4"


def _made(cache: Path, kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, made if it does not exist; then older ones of its kind are removed.

    What a killed run left is removed too. A running guest keeps its disks open, removed or not.
    """
    top = cache / FOLDER
    folder, partial = top / f"{kind}-{key}", top / ".making"
    if not folder.exists():
        for old in [*top.glob(f"{kind}-*"), partial]:
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir()
        try:
            make(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _make_system(folder: Path, layers: Sequence[Path], debs: Sequence[Path], docker: Path) -> None:
    tree = folder / "tree"
    tree.mkdir()
    for layer in layers:
        _untar(tree, layer)
    for deb in debs:
        _undeb(tree, deb)
    _untar(tree / "usr/local/bin", docker, "--strip-components=1")
    # Alternatives, as an installation of the package would set them; Debian's default is nft.
    for name in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            link = tree / "usr/sbin" / f"{name}{suffix}"
            link.unlink(missing_ok=True)
            link.symlink_to("xtables-nft-multi")
    inside = tree / _INSIDE
    inside.mkdir()
    for name in ("init", "daemon.json"):
        shutil.copy(_OWN / name, inside / name)
    busybox = tree / "usr/bin/busybox"
    shutil.copy(busybox, inside / "busybox")
    kernel = next((tree / "boot").glob("vmlinuz-*"))
    release = kernel.name.removeprefix("vmlinuz-")
    _run("depmod", "-b", str(tree), release)
    modules = initramfs.modules(tree / "usr/lib/modules" / release)
    (folder / "initramfs").write_bytes(
        initramfs.build(busybox.read_bytes(), (_OWN / "initramfs-init").read_bytes(), modules)
    )
    shutil.move(kernel, folder / "vmlinuz")
    shutil.rmtree(tree / "boot")
    _mkfs(tree, folder / "root.ext4", _ROOT_SIZE)
    shutil.rmtree(tree)


def _untar(folder: Path, archive: Path, *more: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _run("tar", "-C", str(folder), "-x", "--numeric-owner", *_LEFT_OUT, *more, "-f", str(archive))


def _undeb(folder: Path, deb: Path) -> None:
    """Unpack a package; /lib/x becomes /usr/lib/x through the links of a merged /usr."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as process:
        _run("tar", "-C", str(folder), "-x", "--keep-directory-symlink", *_LEFT_OUT, stdin=process.stdout)
    if process.returncode != 0:
        raise EngineError("a Debian package cannot be unpacked", where=str(deb), next_step="nox -s fetch")


def _mkfs(tree: Path, disk: Path, size: str) -> None:
    """Make an ext4 disk of a tree; without a journal, since a guest's disk is not read after a crash."""
    options = ("-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d", str(tree))
    _run("mkfs.ext4", *options, str(disk), size)


def _run(program: str, *arguments: str, stdin: int | IO[bytes] | None = subprocess.DEVNULL) -> None:
    command = [find(program) or program, *arguments]
    done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        if full := disk_full(done.stderr, Path(arguments[1])):
            raise full
        raise EngineError(
            f"cannot make the guest's disks: {program} failed",
            found="; ".join(done.stderr.strip().splitlines()[-3:]) or f"exit code {done.returncode}",
        )
