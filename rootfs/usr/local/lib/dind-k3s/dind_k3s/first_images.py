"""`first-images ARCHIVE`: load the pause image and CoreDNS out of k3s's archive of system images, before the rest.

The archive is what `docker save` writes of all of them, packed with zstd. dockerd unpacks the whole of it, several
hundred MB, before it takes the first image in it. Here two images are picked out while it streams past, which takes
seconds: kubelet asks for them first, and where there is no network it can only wait for them.

Nothing is told of a failure: the archive is loaded as a whole afterwards, and that tells it.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

FIRST = ("pause", "coredns")
_BUFFER = 1 << 20


@contextmanager
def unpacked(archive: str) -> Iterator[tarfile.TarFile]:
    """The archive as a stream of its members."""
    with subprocess.Popen(["zstd", "-dcq", archive], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as zstd:
        assert zstd.stdout is not None
        try:
            with tarfile.open(fileobj=zstd.stdout, mode="r|", bufsize=_BUFFER) as tar:
                yield tar
        finally:
            zstd.kill()  # it may have more to say than was wanted


def listed(archive: str) -> list[dict[str, Any]]:
    """The entries of manifest.json: each image's config, names and layers."""
    with unpacked(archive) as tar:
        for member in tar:
            if member.name == "manifest.json":
                found: list[dict[str, Any]] = json.load(cast("IO[bytes]", tar.extractfile(member)))
                return found
    raise ValueError(f"{archive} has no manifest.json")


def is_first(entry: dict[str, Any]) -> bool:
    return any(word in name.rpartition("/")[2] for name in entry["RepoTags"] or () for word in FIRST)


def pick(archive: str, target: IO[bytes]) -> None:
    """Write an archive of the first images alone. Raises ValueError when one of their files is not a plain one."""
    entries = [entry for entry in listed(archive) if is_first(entry)]
    wanted = {file for entry in entries for file in (entry["Config"], *entry["Layers"])}
    manifest = json.dumps(entries).encode()
    with unpacked(archive) as tar, tarfile.open(fileobj=target, mode="w|", format=tarfile.GNU_FORMAT) as picked:
        for member in tar:
            if member.name in wanted:
                if not member.isfile():
                    raise ValueError(f"{member.name} is a link")
                picked.addfile(member, tar.extractfile(member))
        head = tarfile.TarInfo("manifest.json")
        head.size = len(manifest)
        picked.addfile(head, io.BytesIO(manifest))


def main() -> int:
    with subprocess.Popen(
        ["docker", "image", "load", "--quiet"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as docker:
        assert docker.stdin is not None
        try:
            pick(sys.argv[1], docker.stdin)
        except (OSError, tarfile.TarError, ValueError, KeyError, TypeError):
            return 1
    return docker.returncode


if __name__ == "__main__":
    sys.exit(main())
