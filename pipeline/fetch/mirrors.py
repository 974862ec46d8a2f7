"""`mirrors`: measures latency, speed and completeness of every server that has files of the lock.

These are the upstreams, the base image's registry, and the mirrors and witnesses of versions.yaml. Each is read alone,
from the locked digest down; nothing is written, and no digest of a file is checked: `fetch` does that. Methods of a
server raise UpstreamError, RegistryError or httpx.HTTPError if it does not respond.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import httpx

from pipeline.core.errors import RegistryError, UpstreamError
from pipeline.core.log import Log, size
from pipeline.core.names import Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.fetch.base import manifests, parts
from pipeline.http import headers, transport
from pipeline.http.retries import reason
from pipeline.http.transport import NEXT_STEP, shown
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent
from pipeline.oci.registry import Registry

_LATENCIES = 5  # requests over an open connection
_AT_ONCE = 4  # HEAD requests to one host
_SECONDS = 5.0  # limit for one measurement of speed
_SAMPLE = 8_000_000  # bytes to measure a speed with


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file that a server should have."""

    name: str  # for people
    path: str  # below a file server's base URL
    digest: Digest
    size: int | None  # bytes; None: not in the lock


@dataclass(frozen=True, kw_only=True)
class FileServer:
    """An upstream or a mirror; a mirror of the base image is an OCI layout, like that of `nox -s vendor`."""

    base: str
    client: httpx.Client

    def manifest(self, digest: Digest) -> bytes:
        """Return an index or a manifest of the base image. Raises UpstreamError for a missing or a wrong one."""
        name = f"manifest {digest.short}…"
        data = transport.get(self.client, f"{self.base}/{_blob(digest)}", what=name).content
        if (actual := Digest.of(data)) != digest:
            raise UpstreamError(f"other bytes as the {name}", found=f"{actual.short}…")
        return data

    def lacks(self, part: Part) -> str:
        """Request HEAD of a file; return why the server lacks it, empty if it has it."""
        response = self.client.head(f"{self.base}/{part.path}")
        length = headers.length(response)
        if response.status_code != 200:
            return f"{part.name}: status {response.status_code}"
        if part.size is not None and length not in (None, part.size):
            return f"{part.name}: {length} bytes instead of {part.size}"
        return ""

    def read(self, part: Part) -> Generator[bytes, None, None]:
        """Yield the first _SAMPLE bytes of a file. Close the generator."""
        with self.client.stream(
            "GET", f"{self.base}/{part.path}", headers={"Range": f"bytes=0-{_SAMPLE - 1}"}
        ) as response:
            yield from response.iter_raw()


@dataclass(frozen=True)
class RegistryServer:
    """The base image's registry, and the storage that it redirects to."""

    registry: Registry

    @property
    def base(self) -> str:
        """Its URL with the repository."""
        return self.registry.url

    def manifest(self, digest: Digest) -> bytes:
        """Return an index or a manifest; the client checks its digest. Raises UpstreamError."""
        if (manifest := self.registry.manifest(digest.text)) is None:
            raise UpstreamError(f"no manifest {digest.short}…")
        return manifest.raw

    def lacks(self, part: Part) -> str:
        """Request HEAD of a blob; return why the registry lacks it, empty if it has it."""
        return "" if self.registry.has("blobs", part.digest, write=False) else f"no {part.name}"

    def read(self, part: Part) -> Generator[bytes, None, None]:
        """Yield a blob. Close the generator."""
        with self.registry.blob(part.digest) as chunks:
            yield from chunks


Server = FileServer | RegistryServer


def _blobs(server: Server, index: Digest, platforms: Sequence[Platform]) -> list[Part]:
    """Return the platforms' configs and layers according to that server. Raises UpstreamError."""
    result = []
    try:
        for _, manifest in manifests(index, platforms, lambda digest: json.loads(server.manifest(digest))):
            for descriptor in parts(manifest):
                digest, size = Digest(descriptor["digest"]), int(descriptor["size"])
                result.append(Part(name=f"blob {digest.short}…", path=_blob(digest), digest=digest, size=size))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UpstreamError(f"{index.short}… is not an index of {', '.join(platforms)}") from None
    return list(dict.fromkeys(result))  # platforms may share a layer


def _blob(digest: Digest) -> str:
    return f"blobs/sha256/{digest.hex}"


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
        parts = _blobs(server, lock.base.digest, intent.platforms) if place.parts is None else place.parts
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
            if count >= _SAMPLE or time.monotonic() - started >= seconds:
                break
    return count / max(time.monotonic() - started, 1e-6)
