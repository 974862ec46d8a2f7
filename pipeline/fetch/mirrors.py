"""`mirrors`: how far away, how fast and how complete each place is that something of the lock comes from.

These are the origins, the base image's registry, and the mirrors and witnesses of versions.yaml.

Nothing is written and nothing is trusted: whether a mirror's bytes are right is only known when `fetch` has them.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import httpx

from pipeline.core.errors import RegistryError, UpstreamError
from pipeline.core.log import Log, size
from pipeline.core.names import Digest, ImageName
from pipeline.fetch import sources
from pipeline.fetch.sources import OfLayout, OfRegistry, Source
from pipeline.http.transport import NEXT_STEP, shown
from pipeline.inputs.lock import Artifact, Lock
from pipeline.inputs.versions import Intent
from pipeline.oci.registry import Registry

_LATENCIES = 5  # requests over a connection that is open already
_AT_ONCE = 4  # HEAD requests to one host
_BYTES = 8_000_000  # of its largest file, to measure the speed with …
_SECONDS = 5.0  # … but no longer than that


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one base URL turned out to be. The figures are None when it did not get that far."""

    origin: str  # a key of versions.MIRRORED
    base: str
    kind: str  # upstream, registry, mirror or witness
    protocol: str = ""  # as httpx names it: HTTP/1.1, HTTP/2
    latency: float | None = None  # seconds from a request to its answer's first byte, the median
    speed: float | None = None  # bytes a second
    has: int = 0  # files of the lock that it has, of the right size as far as the lock knows it
    of: int = 0  # files that come from this origin: of the lock, or blobs of the base image
    problem: str = ""  # the first one, in words


def run(
    intent: Intent,
    lock: Lock,
    client: httpx.Client,
    registry_for: Callable[[ImageName], Registry],
    log: Log,
    *,
    seconds: float = _SECONDS,
) -> list[Measured]:
    """Measure and print a table; `seconds`: the longest that one speed is measured for.

    Raises UpstreamError when something is nowhere complete. A witness does not count: nothing is fetched from it.
    """
    files: dict[str, list[Artifact]] = defaultdict(list)
    for file in lock.all_files:
        files[file.origin].append(file)
    bases = [
        (origin, base, kind)
        for origin, wanted in sorted(files.items())
        for kind, urls in (
            ("mirror", intent.mirrors.get(origin, ())),
            ("upstream", dict.fromkeys(file.url.removesuffix(f"/{file.path}") for file in wanted)),
            ("witness", intent.witnesses.get(origin, ())),
        )
        for base in urls
    ]
    name, _, _ = ImageName.parse(lock.base.image)
    places: list[tuple[Source, str]] = [
        *((OfLayout(url, client, lock.base.digest), "mirror") for url in intent.mirrors.get("base", ())),
        (OfRegistry(registry_for(name)), "registry"),
    ]
    log.say(f"{len(bases) + len(places)} places for {sum(map(len, files.values()))} files and the base image")
    # One after the other: two speeds that are measured at once are both wrong.
    found = [_measure_base(place, kind, lock, intent, seconds) for place, kind in places]
    found += [_measure(origin, base, kind, files[origin], client, seconds) for origin, base, kind in bases]
    log.table(
        "origins, mirrors and witnesses",
        ["origin", "base URL", "kind", "protocol", "latency", "speed", "has", "problem"],
        [_row(measured) for measured in found],
    )
    lacking = [
        origin
        for origin in ("base", *files)
        if not any(m.origin == origin and m.has == m.of and m.kind != "witness" for m in found)
    ]
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
        measured.kind,
        measured.protocol or "-",
        "-" if measured.latency is None else f"{measured.latency * 1000:.0f} ms",
        "-" if measured.speed is None else f"{size(round(measured.speed))}/s",
        f"{measured.has} of {measured.of}",
        measured.problem,
    ]


def _measure(
    origin: str, base: str, kind: str, files: Sequence[Artifact], client: httpx.Client, seconds: float
) -> Measured:
    largest = max(files, key=lambda file: file.size or 0)
    url = f"{base}/{largest.path}"
    try:
        protocol, latency = _latency(lambda: client.head(url).http_version)
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            problems = list(pool.map(lambda file: _lacks(client, base, file), files))
        speed = None if _lacks(client, base, largest) else _speed(client, url, seconds)
    except httpx.HTTPError as error:
        problem = str(error) or type(error).__name__
        return Measured(origin=origin, base=base, kind=kind, of=len(files), problem=problem)
    return Measured(
        origin=origin,
        base=base,
        kind=kind,
        protocol=protocol,
        latency=latency,
        speed=speed,
        has=problems.count(""),
        of=len(files),
        problem=next(filter(None, problems), ""),
    )


def _measure_base(place: Source, kind: str, lock: Lock, intent: Intent, seconds: float) -> Measured:
    """The base image at one place: the locked index, each platform's manifest, and what these name."""
    protocol, latency = "", None

    def told(problem: str, has: int = 0, of: int = 1, speed: float | None = None) -> Measured:
        return Measured(
            origin="base",
            base=place.base,
            kind=kind,
            protocol=protocol,
            latency=latency,
            speed=speed,
            has=has,
            of=of,
            problem=problem,
        )

    try:
        protocol, latency = _latency(place.ping)
        blobs = sources.blobs(place, lock.base.digest, intent.platforms)
        lacking = [digest for digest in blobs if not place.has(digest)]
        largest = max(blobs, key=lambda digest: blobs[digest])
        speed = None if largest in lacking else _base_speed(place, largest, seconds)
    except sources.Missing as missing:
        return told(str(missing))
    except RegistryError as error:
        return told(f"{error.summary}: {error.found}" if error.found else error.summary)
    except httpx.HTTPError as error:
        return told(str(error) or type(error).__name__)
    problem = f"no blob {lacking[0].short}…" if lacking else ""
    return told(problem, has=len(blobs) - len(lacking), of=len(blobs), speed=speed)


def _base_speed(place: Source, blob: Digest, seconds: float) -> float:
    """Bytes a second from the question on, over a bounded part of a blob. Raises RegistryError, httpx.HTTPError."""
    count, started = 0, time.monotonic()
    with closing(place.blob(blob)) as chunks:
        for chunk in chunks:
            count += len(chunk)
            if count >= _BYTES or time.monotonic() - started >= seconds:
                break
    return count / max(time.monotonic() - started, 1e-6)


def _latency(ask: Callable[[], str]) -> tuple[str, float]:
    """Protocol and seconds; the first request, which makes the connection, does not count. Raises what `ask` does."""
    protocol, took = "", []
    for number in range(_LATENCIES + 1):
        started = time.monotonic()
        protocol = ask()
        if number:
            took.append(time.monotonic() - started)
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
