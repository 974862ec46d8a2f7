"""The cache of verified files: `<cache>/sha256/<hex>`, shared by every checkout of this user."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.core.errors import UpstreamError
from pipeline.core.log import Log
from pipeline.core.names import Digest


def folder() -> Path:
    """Return DIND_K3S_CACHE, else `dind-k3s` in the user's cache folder (XDG Base Directory specification)."""
    if own := os.environ.get("DIND_K3S_CACHE"):
        return Path(own).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dind-k3s"


@contextmanager
def writing(cache: Path, log: Log | None = None) -> Iterator[None]:
    """Exclusive write lock on `cache`/sha256/: runs can share a cache, and partial files without a lock are leftovers.

    A run that waits for another one logs it. The kernel releases the lock of a killed process.
    """
    (cache / "sha256").mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache / "fetch.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        if log is not None:
            log.say(f"another run writes to {cache}; waiting for it")
        held = lock.acquire()
    with held:
        yield


def path_of(cache: Path, digest: Digest) -> Path:
    """Return the path of the file with that digest, whether it exists or not."""
    return cache / "sha256" / digest.hex


def require(cache: Path, digest: Digest) -> Path:
    """Return the path of a file that `fetch` must have downloaded. Raises UpstreamError."""
    path = path_of(cache, digest)
    if not path.exists():
        raise UpstreamError(f"{digest} is not in the cache", where=str(path), next_step="nox -s fetch")
    return path


def link(source: Path, target: Path) -> None:
    """Hard-link a file; copy it where the file systems differ."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
