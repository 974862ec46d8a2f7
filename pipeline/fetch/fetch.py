"""Stage `fetch`: every file of the lock into the cache, in parallel, verified while it streams and again when used.

How one file comes is `pipeline/fetch/download.py`; how the whole behaves is told in docs/fetch.md.
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
from pipeline.fetch.attempt import Rules
from pipeline.fetch.download import download
from pipeline.fetch.partial import sweep
from pipeline.inputs.lock import Artifact, Lock
from pipeline.inputs.versions import Intent

_AT_ONCE = 8  # transfers; vendors' CDNs serve one connection at a fraction of a line's speed
_HASHING = max(2, os.cpu_count() or 2)
_FORGOTTEN = 14 * 86400.0  # seconds after which the beginning of a file is no longer kept for another run
_RULES = Rules()


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a fetch did."""

    downloaded: int  # files
    bytes: int  # of the downloaded files
    kept: int  # files that were in the cache and right
    sizes: Mapping[Digest, int]  # of every file, so that a lock without sizes can be completed


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file that the cache shall have."""

    name: str  # for people
    urls: tuple[str, ...]  # where it can be had, in the order in which they are asked
    digest: Digest
    size: int | None  # bytes; None: not known


def run(
    intent: Intent,
    lock: Lock,
    cache: Path,
    client: httpx.Client,
    log: Log,
    *,
    offline: bool = False,
    rules: Rules = _RULES,
) -> Fetched:
    """Have every file of the lock in `cache`/sha256/; mirrors are tried before the upstream. Raises as `bring`."""
    return bring([_wanted(file, intent) for file in lock.all_files], cache, client, log, offline=offline, rules=rules)


def _wanted(file: Artifact, intent: Intent) -> Wanted:
    return Wanted(
        name=f"{file.component} {file.version} {file.platform.architecture}",
        urls=(*(f"{base}/{file.path}" for base in intent.mirrors.get(file.origin, ())), file.url),
        digest=file.digest,
        size=file.size,
    )


def bring(
    files: Sequence[Wanted],
    cache: Path,
    client: httpx.Client,
    log: Log,
    *,
    offline: bool = False,
    rules: Rules = _RULES,
) -> Fetched:
    """Have these files in `cache`/sha256/.

    A file of the cache that has changed is set aside as `<hex>.bad` and brought again; one that an earlier run began
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
        brought = _download(missing, cache, client, log, rules)
    sizes = {digest: path_of(cache, digest).stat().st_size for digest in wanted}
    total = sum(sizes.values())
    if not missing:
        log.say(f"nothing to download: {len(wanted)} files, {size(total)}, all in the cache and right")
    else:
        log.say(f"{len(missing)} files downloaded, {size(brought)}; {len(wanted) - len(missing)} were in the cache")
    return Fetched(downloaded=len(missing), bytes=brought, kept=len(wanted) - len(missing), sizes=sizes)


def _download(files: Sequence[Wanted], cache: Path, client: httpx.Client, log: Log, rules: Rules) -> int:
    """Several missing files at once, in this order; the first failure ends the run.

    What was finished by then stays, and what was not is continued by the next run.
    """
    if not files:
        return 0
    stop, tell = threading.Event(), _once(log.say)
    with log.transfers(len(files)) as transfers, ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:

        def one(file: Wanted) -> int:
            return download(
                client,
                file.urls,
                path_of(cache, file.digest),
                digest=file.digest,
                size=file.size,
                transfer=transfers.start(file.name, file.size),
                rules=rules,
                stop=stop,
                tell=tell,
            )

        futures = [pool.submit(one, file) for file in files]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise
        return sum(future.result() for future in futures)


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Says each sentence one time, whoever of the threads comes with it."""
    lock, said = threading.Lock(), set[str]()

    def tell(text: str) -> None:
        with lock:
            if text not in said:
                said.add(text)
                say(text)

    return tell


def _is_there(cache: Path, digest: Digest, log: Log) -> bool:
    """Whether the cache has the file, hashed now; a wrong one is set aside and said."""
    path = path_of(cache, digest)
    if not path.exists():
        return False
    found = Digest.of_file(path)
    if found == digest:
        return True
    bad = path.with_name(f"{path.name}.bad")
    path.replace(bad)
    log.warn(f"a file of the cache has changed: expected {digest}, found {found}; set aside as {bad.name}")
    return False
