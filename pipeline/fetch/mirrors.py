"""`mirrors`: measures latency, speed and completeness of every server that has files of the lock.

These are the upstreams, the base image's registry, and the mirrors and witnesses of versions.yaml. Nothing is written,
and no digest of a file is checked: `fetch` does that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import httpx

from pipeline.core.errors import RegistryError, UpstreamError
from pipeline.core.log import Log, size
from pipeline.core.names import ImageName
from pipeline.fetch.sources import SAMPLE, FileServer, Part, RegistryServer, Server, blobs
from pipeline.http.retries import reason
from pipeline.http.transport import NEXT_STEP, shown
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent
from pipeline.oci.registry import Registry

_LATENCIES = 5  # requests over an open connection
_AT_ONCE = 4  # HEAD requests to one host
_SECONDS = 5.0  # limit for one measurement of speed


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result for one base URL; None for what was not measured."""

    origin: str  # a key of versions.ORIGINS, or `base`
    base: str
    kind: str  # upstream, registry, mirror or witness
    latency: float | None = None  # seconds from a request to the first byte of the response; median
    speed: float | None = None  # bytes a second
    has: int = 0  # files of the lock that it has, of the size in the lock
    of: int = 0  # files of this origin in the lock, or blobs of the base image
    problem: str = ""  # the first one


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A server to measure, and the files that it should have."""

    origin: str
    kind: str
    server: Server
    parts: Sequence[Part] | None = None  # None: the base image, whose parts are in the server's own index


def run(
    intent: Intent,
    lock: Lock,
    client: httpx.Client,
    registry_for: Callable[[ImageName], Registry],
    log: Log,
    *,
    seconds: float = _SECONDS,
) -> list[Measured]:
    """Measure and print a table; `seconds`: limit for one measurement of speed.

    Raises UpstreamError if no server has everything of an origin. Witnesses do not count: fetch does not use them.
    """
    name, _, _ = ImageName.parse(lock.base.image)
    mirrors = [FileServer(base=url, client=client) for url in intent.mirrors.get("base", ())]
    places = [
        *(_Place(origin="base", kind="mirror", server=server) for server in mirrors),
        _Place(origin="base", kind="registry", server=RegistryServer(registry_for(name))),
        *_file_servers(intent, lock, client),
    ]
    log.say(f"{len(places)} servers for {len(lock.all_files)} files and the base image")
    # One after the other: simultaneous measurements would share the bandwidth.
    results = [_measure(place, lock, intent, seconds) for place in places]
    log.table(
        "origins, mirrors and witnesses",
        ["origin", "base URL", "kind", "latency", "speed", "has", "problem"],
        [_row(measured) for measured in results],
    )
    complete = {m.origin for m in results if m.has == m.of and m.kind != "witness"}
    if lacking := sorted({m.origin for m in results} - complete):
        problems = [
            f"{shown(m.base)}: {m.problem or f'{m.has} of {m.of} files'}" for m in results if m.origin in lacking
        ]
        raise UpstreamError(
            f"no base URL has every file of {', '.join(lacking)}", found="; ".join(problems), next_step=NEXT_STEP
        )
    return results


def _file_servers(intent: Intent, lock: Lock, client: httpx.Client) -> Iterator[_Place]:
    for origin in sorted({file.origin for file in lock.all_files}):
        files = [file for file in lock.all_files if file.origin == origin]
        parts = [
            Part(name=f"{file.component} {file.version}", path=file.path, digest=file.digest, size=file.size)
            for file in files
        ]
        for kind, urls in (
            ("mirror", intent.mirrors.get(origin, ())),
            ("upstream", dict.fromkeys(file.url.removesuffix(f"/{file.path}") for file in files)),
            ("witness", intent.witnesses.get(origin, ())),
        ):
            for url in urls:
                yield _Place(origin=origin, kind=kind, server=FileServer(base=url, client=client), parts=parts)


def _row(measured: Measured) -> Sequence[str]:
    return [
        measured.origin,
        shown(measured.base),
        measured.kind,
        "-" if measured.latency is None else f"{measured.latency * 1000:.0f} ms",
        "-" if measured.speed is None else f"{size(round(measured.speed))}/s",
        f"{measured.has} of {measured.of}",
        measured.problem,
    ]


def _measure(place: _Place, lock: Lock, intent: Intent, seconds: float) -> Measured:
    server = place.server
    expected = 1 if place.parts is None else len(place.parts)
    measured = Measured(origin=place.origin, base=server.base, kind=place.kind, of=expected)
    try:
        parts = blobs(server, lock.base.digest, intent.platforms) if place.parts is None else place.parts
        largest = max(parts, key=lambda part: part.size or 0)
        latency = _latency(server, largest)
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            problems = list(pool.map(server.lacks, parts))
        speed = None if problems[parts.index(largest)] else _speed(server, largest, seconds)
    except (UpstreamError, RegistryError) as error:
        return replace(measured, problem=f"{error.summary}: {error.found}" if error.found else error.summary)
    except httpx.HTTPError as error:
        return replace(measured, problem=reason(error))
    problem = next(filter(None, problems), "")
    has = problems.count("")
    return replace(measured, latency=latency, speed=speed, has=has, of=len(parts), problem=problem)


def _latency(server: Server, part: Part) -> float:
    """Return the median in seconds for HEAD, without the first request, which opens the connection."""
    times = []
    for _ in range(_LATENCIES + 1):
        started = time.monotonic()
        server.lacks(part)
        times.append(time.monotonic() - started)
    return statistics.median(times[1:])


def _speed(server: Server, part: Part, seconds: float) -> float:
    """Return bytes per second, from the request on, for a part of the file."""
    count, started = 0, time.monotonic()
    with closing(server.read(part)) as chunks:
        for chunk in chunks:
            count += len(chunk)
            if count >= SAMPLE or time.monotonic() - started >= seconds:
                break
    return count / max(time.monotonic() - started, 1e-6)
