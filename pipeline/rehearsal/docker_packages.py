"""Docker's release from Debian's packages: its static archive and the two plugins, for every platform."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.core.records import write_bytes
from pipeline.rehearsal import images, mirror, origin, pause

_SUITES = ("sid", "trixie", "bookworm")  # newest first: of the engine's packages
_ENGINE = (("docker.io", "docker-cli"), ("containerd",), ("runc",), ("tini-static",), ("busybox-static",))

# The programs of docker's static archive → their paths in Debian's packages.
_ARCHIVE = {
    "docker": "usr/bin/docker",
    "dockerd": "usr/sbin/dockerd",
    "docker-proxy": "usr/sbin/docker-proxy",
    "docker-init": "usr/bin/tini-static",
    "containerd": "usr/bin/containerd",
    "containerd-shim-runc-v2": "usr/bin/containerd-shim-runc-v2",
    "ctr": "usr/bin/ctr",
    "runc": "usr/sbin/runc",
}
_PLUGINS = {"buildx": "docker-buildx", "compose": "docker-compose"}


def publish(
    site: Path, folder: Path, debian: mirror.Archives, platforms: Sequence[Platform], log: Log
) -> dict[str, str]:
    """Publish docker's archive and the plugins at the origin `site`; return their versions. Raises UpstreamError.

    `folder`: for the work, and for pause images, which are made of the busybox from the same archive.
    """
    with log.step("docker, containerd, runc, buildx, compose from Debian, for every platform"):
        apt = mirror.Apt(folder / "apt", debian, _SUITES, platforms)
        apt.update()
        libc = mirror.host_libc()
        chosen = [
            candidate
            for names in (*_ENGINE, *((name,) for name in _PLUGINS.values()))
            for candidate in mirror.newest_fitting(apt, names, platforms, libc, log)
        ]
        with ThreadPoolExecutor(max_workers=4) as pool:
            paths = list(pool.map(lambda candidate: apt.download(candidate, folder / "debs"), chosen))
        trees = {platform: folder / "trees" / platform.architecture for platform in platforms}
        for platform, tree in trees.items():
            shutil.rmtree(tree, ignore_errors=True)
            tree.mkdir(parents=True)
            for candidate, path in zip(chosen, paths, strict=True):
                if candidate.platform == platform:
                    subprocess.run(["dpkg-deb", "-x", str(path), str(tree)], check=True)
            busybox = (tree / "usr/bin/busybox").read_bytes()
            write_bytes(folder / "pause" / f"{platform.architecture}.tar", pause.archive(busybox, platform))
        packaged = {candidate.name: _plain(candidate.version) for candidate in chosen}
        with ThreadPoolExecutor(max_workers=2) as pool:
            archives = dict(zip(trees, pool.map(_archive, trees.values()), strict=True))
        origin.publish(site, "docker", packaged["docker.io"], archives)
        for component, name in _PLUGINS.items():
            plugin = f"usr/libexec/docker/cli-plugins/{name}"
            origin.publish(site, component, packaged[name], {key: (trees[key] / plugin).read_bytes() for key in trees})
    return {"docker": packaged["docker.io"], **{component: packaged[name] for component, name in _PLUGINS.items()}}


def _archive(tree: Path) -> bytes:
    """Return docker's static archive of a tree of unpacked packages; reproducible."""
    raw = io.BytesIO()
    # Level 1 is the fastest. The size does not matter, since BuildKit compresses the layer again.
    with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed:
        files = ((f"docker/{name}", (tree / place).read_bytes()) for name, place in sorted(_ARCHIVE.items()))
        images.write_tar(packed, files)
    return raw.getvalue()


def _plain(version: str) -> str:
    """Convert Debian's version to the vendor's: `28.5.2+dfsg4-5` to 28.5.2."""
    return re.sub(r"[+~-].*$", "", version.partition(":")[2] or version)
