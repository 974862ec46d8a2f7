"""Stage `fetch`: downloads every file of the lock to the cache, in parallel, verified while it streams and when used.

pipeline/http/download.py downloads one file; docs/fetch.md describes the behaviour.
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

_AT_ONCE = 8  # transfers; vendors' CDNs do not use the whole bandwidth for one connection
_HASHING = max(2, os.cpu_count() or 2)
_FORGOTTEN = 14 * 86400.0  # seconds, after which a partial download is deleted


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """The result of a fetch."""

    downloaded: int  # files
    kept: int  # files that were in the cache
    sizes: Mapping[Digest, int]  # bytes of every file, to complete a lock without sizes


@dataclass(frozen=True, kw_only=True)
class Wanted(File):
    """A file for the cache."""

    digest: Digest


def run(intent: Intent, lock: Lock, cache: Path, client: httpx.Client, log: Log, *, offline: bool = False) -> Fetched:
    """Download every file of the lock to `cache`/sha256/, mirrors first. Raises like `download`."""
    return download(files_of(lock, intent), cache, client, log, offline=offline)


def files_of(lock: Lock, intent: Intent) -> list[Wanted]:
    """Return the files of the lock, with their mirrors and upstream."""
    return [
        Wanted(
            name=f"{file.component} {file.version} {file.platform.architecture}",
            urls=(*(f"{base}/{file.path}" for base in intent.mirrors.get(file.origin, ())), file.url),
            digest=file.digest,
            size=file.size,
        )
        for file in lock.all_files
    ]


def download(
    files: Sequence[Wanted],
    cache: Path,
    client: httpx.Client,
    log: Log,
    *,
    offline: bool = False,
    rules: Rules | None = None,
) -> Fetched:
    """Download files to `cache`/sha256/.

    A changed file of the cache is moved to `<hex>.bad` and downloaded again; a partial download is resumed. Of two runs
    with one cache the second one waits. Raises DigestMismatch, UpstreamError (also for missing files if `offline`),
    EngineError.
    """
    folder = cache / "sha256"
    wanted = {file.digest: file for file in sorted(files, key=lambda file: -(file.size or 1 << 40))}  # largest first
    with writing(cache, log):
        sweep(folder, older=_FORGOTTEN)
        with ThreadPoolExecutor(max_workers=_HASHING) as pool:
            kept = dict(zip(wanted, pool.map(lambda digest: is_cached(cache, digest, log), wanted), strict=True))
        missing = [file for digest, file in wanted.items() if not kept[digest]]
        if missing and offline:
            raise UpstreamError(
                f"{len(missing)} files of the lock are not in the cache, and --offline forbids the download",
                found=f"no {missing[0].name}, {missing[0].digest}",
                where=str(folder),
                next_step="nox -s fetch, with a network",
            )
        downloader = Downloader(client=client, rules=rules or Rules(), report=_once(log.say))
        downloaded = _download_all(missing, folder, downloader, log)
    sizes = {digest: path_of(cache, digest).stat().st_size for digest in wanted}
    total = sum(sizes.values())
    if not missing:
        log.say(f"nothing to download: {len(wanted)} files, {size(total)}, all verified in the cache")
    else:
        log.say(f"{len(missing)} files downloaded, {size(downloaded)}; {len(wanted) - len(missing)} were in the cache")
    return Fetched(downloaded=len(missing), kept=len(wanted) - len(missing), sizes=sizes)


def _download_all(files: Sequence[Wanted], folder: Path, downloader: Downloader, log: Log) -> int:
    """Download files in this order, several at once; return their bytes. The first failure stops the others."""
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
    """Return a thread-safe `say` that logs each line once."""
    lock, logged = threading.Lock(), set[str]()

    def report(text: str) -> None:
        with lock:
            if text not in logged:
                logged.add(text)
                say(text)

    return report


def is_cached(cache: Path, digest: Digest, log: Log) -> bool:
    """Hash a file of the cache; return whether it is right. A wrong one is moved to `<hex>.bad`, with a warning."""
    path = path_of(cache, digest)
    if not path.exists():
        return False
    actual = Digest.of_file(path)
    if actual == digest:
        return True
    bad = path.with_name(f"{path.name}.bad")
    path.replace(bad)
    log.warn(f"a file of the cache has changed: expected {digest}, found {actual}; moved to {bad.name}")
    return False
