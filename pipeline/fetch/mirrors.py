"""`mirrors`: how far away, how fast and how complete each place is that something of the lock comes from.

These are the origins, the base image's registry, and the mirrors and witnesses of versions.yaml.

Nothing is written and nothing is trusted: whether a mirror's bytes are right is only known when `fetch` has them.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import httpx

from pipeline.core.errors import RegistryError, UpstreamError
from pipeline.core.log import Log, size
from pipeline.core.names import ImageName
from pipeline.fetch.sources import BEGINNING, FileServer, Part, RegistryServer, Server, blobs
from pipeline.http.transport import NEXT_STEP, shown
from pipeline.inputs.lock import Artifact, Lock
from pipeline.inputs.versions import Intent
from pipeline.oci.registry import Registry

_LATENCIES = 5  # requests over a connection that is open already
_AT_ONCE = 4  # HEAD requests to one host
_SECONDS = 5.0  # the longest that the speed of one is measured


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one base URL is worth. The figures are None when it did not get that far."""

    origin: str  # a key of versions.ORIGINS, or `base`
    base: str
    kind: str  # upstream, registry, mirror or witness
    latency: float | None = None  # seconds from a request to its answer's first byte, the median
    speed: float | None = None  # bytes a second
    has: int = 0  # files of the lock that it has, of the right size as far as the lock knows it
    of: int = 0  # files that come from this origin: of the lock, or blobs of the base image
    problem: str = ""  # the first one


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A server that is to be measured, and what it should have."""

    origin: str
    kind: str
    server: Server
    parts: Sequence[Part] | None = None  # None: the base image, whose parts the server itself describes


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
    name, _, _ = ImageName.parse(lock.base.image)
    registry = _Place(origin="base", kind="registry", server=RegistryServer(registry_for(name)))
    places = [*_mirrors_of_base(intent, lock, client), registry, *_file_servers(intent, lock, client)]
    log.say(f"{len(places)} places for {len(lock.all_files)} files and the base image")
    # One after the other: two speeds that are measured at once are both wrong.
    results = [_measure(place, lock, intent, seconds) for place in places]
    log.table(
        "origins, mirrors and witnesses",
        ["origin", "base URL", "kind", "latency", "speed", "has", "problem"],
        [_row(measured) for measured in results],
    )
    complete = {m.origin for m in results if m.has == m.of and m.kind != "witness"}
    if lacking := sorted({m.origin for m in results} - complete):
        raise UpstreamError(
            f"no base URL has every file of {', '.join(lacking)}",
            found="; ".join(
                f"{shown(m.base)}: {m.problem or f'{m.has} of {m.of} files'}" for m in results if m.origin in lacking
            ),
            next_step=NEXT_STEP,
        )
    return results


def _mirrors_of_base(intent: Intent, lock: Lock, client: httpx.Client) -> Iterator[_Place]:
    for url in intent.mirrors.get("base", ()):
        server = FileServer(base=url, client=client, probe=f"blobs/sha256/{lock.base.digest.hex}")
        yield _Place(origin="base", kind="mirror", server=server)


def _file_servers(intent: Intent, lock: Lock, client: httpx.Client) -> Iterator[_Place]:
    files: dict[str, list[Artifact]] = defaultdict(list)
    for file in lock.all_files:
        files[file.origin].append(file)
    for origin, wanted in sorted(files.items()):
        parts = [
            Part(name=f"{file.component} {file.version}", path=file.path, digest=file.digest, size=file.size)
            for file in wanted
        ]
        for kind, urls in (
            ("mirror", intent.mirrors.get(origin, ())),
            ("upstream", dict.fromkeys(file.url.removesuffix(f"/{file.path}") for file in wanted)),
            ("witness", intent.witnesses.get(origin, ())),
        ):
            for url in urls:
                server = FileServer(base=url, client=client, probe=max(parts, key=_size).path)
                yield _Place(origin=origin, kind=kind, server=server, parts=parts)


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
        latency = _latency(server.ping)
        parts = blobs(server, lock.base.digest, intent.platforms) if place.parts is None else place.parts
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            problems = list(pool.map(server.lacks, parts))
        largest = max(parts, key=_size)
        speed = None if problems[parts.index(largest)] else _speed(server, largest, seconds)
    except (UpstreamError, RegistryError) as error:
        return replace(measured, problem=f"{error.summary}: {error.found}" if error.found else error.summary)
    except httpx.HTTPError as error:
        return replace(measured, problem=str(error) or type(error).__name__)
    problem = next(filter(None, problems), "")
    has = problems.count("")
    return replace(measured, latency=latency, speed=speed, has=has, of=len(parts), problem=problem)


def _size(part: Part) -> int:
    return part.size or 0


def _latency(ask: Callable[[], None]) -> float:
    """Return the median of seconds; the first request, which makes the connection, does not count."""
    took = []
    for number in range(_LATENCIES + 1):
        started = time.monotonic()
        ask()
        if number:
            took.append(time.monotonic() - started)
    return statistics.median(took)


def _speed(server: Server, part: Part, seconds: float) -> float:
    """Return bytes a second from the request on, over a bounded part of the file."""
    count, started = 0, time.monotonic()
    with closing(server.read(part)) as chunks:
        for chunk in chunks:
            count += len(chunk)
            if count >= BEGINNING or time.monotonic() - started >= seconds:
                break
    return count / max(time.monotonic() - started, 1e-6)
