"""Stage `fetch`: every file of the lock into the cache, in parallel, verified while it streams and again when used.

How one file is downloaded is pipeline/http/download.py; how the whole behaves is in docs/fetch.md.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import httpx

from pipeline.core.cache import path_of, writing
from pipeline.core.errors import UpstreamError
from pipeline.core.log import Log, size
from pipeline.core.names import Digest
from pipeline.http.download import Downloader, File, Rules
from pipeline.http.partial import sweep
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent

_AT_ONCE = 8  # transfers; vendors' CDNs serve one connection at a fraction of a line's speed
_HASHING = max(2, os.cpu_count() or 2)
_FORGOTTEN = 14 * 86400.0  # seconds after which the beginning of a file is no longer kept for another run


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a fetch did."""

    downloaded: int  # files
    bytes: int  # of the downloaded files
    kept: int  # files that were in the cache and right
    sizes: Mapping[Digest, int]  # of every file, so that a lock without sizes can be completed


@dataclass(frozen=True, kw_only=True)
class Wanted(File):
    """A file that the cache must have."""

    digest: Digest


def run(intent: Intent, lock: Lock, cache: Path, client: httpx.Client, log: Log, *, offline: bool = False) -> Fetched:
    """Have every file of the lock in `cache`/sha256/; mirrors are tried before the upstream. Raises as `bring`."""
    return bring(files_of(lock, intent), cache, client, log, offline=offline)


def files_of(lock: Lock, intent: Intent) -> list[Wanted]:
    """The files of the lock, and where versions.yaml lets them come from."""
    return [
        Wanted(
            name=f"{file.component} {file.version} {file.platform.architecture}",
            urls=(*(f"{base}/{file.path}" for base in intent.mirrors.get(file.origin, ())), file.url),
            digest=file.digest,
            size=file.size,
        )
        for file in lock.all_files
    ]


def bring(
    files: Sequence[Wanted],
    cache: Path,
    client: httpx.Client,
    log: Log,
    *,
    offline: bool = False,
    rules: Rules | None = None,
) -> Fetched:
    """Have these files in `cache`/sha256/.

    A file of the cache that has changed is set aside as `<hex>.bad` and downloaded again; one that an earlier run began
    is continued. Two runs share a cache: the second one waits. Raises DigestMismatch, UpstreamError (also for what is
    missing when `offline`), EngineError.
    """
    folder = cache / "sha256"
    wanted = {file.digest: file for file in sorted(files, key=lambda file: -(file.size or 1 << 40))}  # largest first
    with writing(cache, log):
        sweep(folder, older=_FORGOTTEN)
        with ThreadPoolExecutor(max_workers=_HASHING) as pool:
            kept = dict(zip(wanted, pool.map(lambda digest: _is_there(cache, digest, log), wanted), strict=True))
        missing = [file for digest, file in wanted.items() if not kept[digest]]
        if missing and offline:
            raise UpstreamError(
                f"{len(missing)} files of the lock are not in the cache, and --offline forbids to download them",
                found=f"no {missing[0].name}, {missing[0].digest}",
                where=str(folder),
                next_step="nox -s fetch, while there is a network",
            )
        downloader = Downloader(client=client, rules=rules or Rules(), report=_once(log.say))
        downloaded = _download(missing, folder, downloader, log)
    sizes = {digest: path_of(cache, digest).stat().st_size for digest in wanted}
    total = sum(sizes.values())
    if not missing:
        log.say(f"nothing to download: {len(wanted)} files, {size(total)}, all in the cache and right")
    else:
        log.say(f"{len(missing)} files downloaded, {size(downloaded)}; {len(wanted) - len(missing)} were in the cache")
    return Fetched(downloaded=len(missing), bytes=downloaded, kept=len(wanted) - len(missing), sizes=sizes)


def _download(files: Sequence[Wanted], folder: Path, downloader: Downloader, log: Log) -> int:
    """Download several files at once, in this order; return their bytes. The first failure ends the run.

    What was complete by then stays, and what was not is continued by the next run.
    """
    if not files:
        return 0
    with log.transfers(len(files)) as transfers, ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:

        def one(file: Wanted) -> int:
            return downloader.download(file, folder, transfers.start(file.name, file.size)).size

        futures = [pool.submit(one, file) for file in files]
        try:
            return sum(future.result() for future in as_completed(futures))
        except BaseException:
            downloader.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Log each sentence one time, thread-safe."""
    lock, logged = threading.Lock(), set[str]()

    def report(text: str) -> None:
        with lock:
            if text not in logged:
                logged.add(text)
                say(text)

    return report


def _is_there(cache: Path, digest: Digest, log: Log) -> bool:
    """Whether the cache has the file, hashed now; a wrong one is set aside with a warning."""
    path = path_of(cache, digest)
    if not path.exists():
        return False
    actual = Digest.of_file(path)
    if actual == digest:
        return True
    bad = path.with_name(f"{path.name}.bad")
    path.replace(bad)
    log.warn(f"a file of the cache has changed: expected {digest}, found {actual}; set aside as {bad.name}")
    return False
