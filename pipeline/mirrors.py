"""`mirrors`: how far away, how fast and how complete each origin of the lock and each of its mirrors is.

Nothing is written and nothing is trusted: whether a mirror's bytes are right is only known when `fetch` has them.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from pipeline.errors import UpstreamError
from pipeline.lock import Artifact, Lock
from pipeline.log import Log, size
from pipeline.transport import NEXT_STEP, shown
from pipeline.versions import Intent

_LATENCIES = 5  # requests over a connection that is open already
_AT_ONCE = 4  # HEAD requests to one host
_BYTES = 8_000_000  # of its largest file, to measure the speed with …
_SECONDS = 5.0  # … but no longer than that


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one base URL turned out to be. The figures are None when it did not get that far."""

    origin: str  # a key of versions.ORIGINS
    base: str
    mirror: bool  # else the upstream
    protocol: str = ""  # as httpx names it: HTTP/1.1, HTTP/2
    latency: float | None = None  # seconds from a request to its answer's first byte, the median
    speed: float | None = None  # bytes a second
    has: int = 0  # files of the lock that it has, of the right size as far as the lock knows it
    of: int = 0  # files of the lock that come from this origin
    problem: str = ""  # the first one, in words


def run(intent: Intent, lock: Lock, client: httpx.Client, log: Log, *, seconds: float = _SECONDS) -> list[Measured]:
    """Measure and print a table; `seconds`: the longest that one speed is measured for.

    Raises UpstreamError when some origin has no base URL with all of its files.
    """
    files: dict[str, list[Artifact]] = defaultdict(list)
    for file in lock.all_files:
        files[file.origin].append(file)
    bases = [
        (origin, base, base in mirrors)
        for origin, wanted in sorted(files.items())
        for mirrors in [intent.mirrors.get(origin, ())]
        for base in dict.fromkeys([*mirrors, *(file.url.removesuffix(f"/{file.path}") for file in wanted)])
    ]
    log.say(f"{len(bases)} base URLs for {sum(map(len, files.values()))} files")
    # One after the other: two speeds that are measured at once are both wrong.
    found = [_measure(origin, base, mirror, files[origin], client, seconds) for origin, base, mirror in bases]
    log.table(
        "origins and mirrors",
        ["origin", "base URL", "kind", "protocol", "latency", "speed", "has", "problem"],
        [_row(measured) for measured in found],
    )
    lacking = [origin for origin in files if not any(m.origin == origin and m.has == m.of for m in found)]
    if lacking:
        raise UpstreamError(
            f"no base URL has every file of {', '.join(sorted(lacking))}",
            found="; ".join(
                f"{shown(m.base)}: {m.problem or f'{m.has} of {m.of} files'}" for m in found if m.origin in lacking
            ),
            next_step=NEXT_STEP,
        )
    return found


def _row(measured: Measured) -> Sequence[str]:
    return [
        measured.origin,
        shown(measured.base),
        "mirror" if measured.mirror else "upstream",
        measured.protocol or "-",
        "-" if measured.latency is None else f"{measured.latency * 1000:.0f} ms",
        "-" if measured.speed is None else f"{size(round(measured.speed))}/s",
        f"{measured.has} of {measured.of}",
        measured.problem,
    ]


def _measure(
    origin: str, base: str, mirror: bool, files: Sequence[Artifact], client: httpx.Client, seconds: float
) -> Measured:
    largest = max(files, key=lambda file: file.size or 0)
    url = f"{base}/{largest.path}"
    try:
        protocol, latency = _latency(client, url)
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            problems = list(pool.map(lambda file: _lacks(client, base, file), files))
        speed = None if _lacks(client, base, largest) else _speed(client, url, seconds)
    except httpx.HTTPError as error:
        problem = str(error) or type(error).__name__
        return Measured(origin=origin, base=base, mirror=mirror, of=len(files), problem=problem)
    return Measured(
        origin=origin,
        base=base,
        mirror=mirror,
        protocol=protocol,
        latency=latency,
        speed=speed,
        has=problems.count(""),
        of=len(files),
        problem=next(filter(None, problems), ""),
    )


def _latency(client: httpx.Client, url: str) -> tuple[str, float]:
    """Protocol and seconds; the first request, which makes the connection, does not count. Raises httpx.HTTPError."""
    protocol, took = "", []
    for number in range(_LATENCIES + 1):
        started = time.monotonic()
        response = client.head(url)
        if number:
            took.append(time.monotonic() - started)
        protocol = response.http_version
    return protocol, statistics.median(took)


def _lacks(client: httpx.Client, base: str, file: Artifact) -> str:
    """Why this base URL does not have the file; empty: it has. Raises httpx.HTTPError."""
    response = client.head(f"{base}/{file.path}")
    length = response.headers.get("Content-Length", "")
    if response.status_code != 200:
        return f"{file.component} {file.version}: status {response.status_code}"
    if file.size is not None and length.isdigit() and int(length) != file.size:
        return f"{file.component} {file.version}: {length} bytes instead of {file.size}"
    return ""


def _speed(client: httpx.Client, url: str, seconds: float) -> float:
    """Bytes a second from the answer's head on, over a bounded part of the file. Raises httpx.HTTPError."""
    count = 0
    with client.stream("GET", url, headers={"Range": f"bytes=0-{_BYTES - 1}"}) as response:
        started = time.monotonic()
        for chunk in response.iter_raw():
            count += len(chunk)
            if count >= _BYTES or time.monotonic() - started >= seconds:
                break
    return count / max(time.monotonic() - started, 1e-6)
