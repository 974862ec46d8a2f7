"""HTTP: one client, bounded retries, and downloads that are only there once their digest is right.

httpx follows no redirects unless told, retries nothing but connects, and resumes nothing: that is done here.
"""

from __future__ import annotations

import email.utils
import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx

from pipeline.errors import DigestMismatch, EngineError, UpstreamError
from pipeline.folders import Folders
from pipeline.log import Transfer
from pipeline.oci import Digest

Sleep = Callable[[float], None]

_PAUSES = (0.5, 1.5, 4.0)  # seconds before the second, third and fourth try
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_PAUSE = 60.0  # seconds; a server that asks for more is taken as unavailable

NEXT_STEP = "set a mirror for that origin in versions.yaml (docs/versions.md), or rehearse without it: nox -s rehearse"


def make_client(handler: httpx.BaseTransport | None = None) -> httpx.Client:
    """The client that everything uses; `handler` stands in for the network in tests.

    `identity` encoding: what is hashed is what the vendor published, not what a proxy made of it.
    """
    return httpx.Client(
        transport=handler,
        mounts={"file://": Folders()},
        http2=handler is None,
        follow_redirects=True,
        timeout=httpx.Timeout(30.0, connect=5.0),
        limits=httpx.Limits(max_connections=32),
        headers={"User-Agent": "dind-k3s-pipeline", "Accept-Encoding": "identity"},
    )


def shown(url: str) -> str:
    """A URL without credentials, and without the query, where vendors' CDNs carry signatures."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return urlunsplit((parts.scheme, f"{host}:{parts.port}" if parts.port else host, parts.path, "", ""))


def get(
    client: httpx.Client,
    url: str,
    *,
    what: str,
    expected: frozenset[int] = frozenset({200}),
    headers: Mapping[str, str] | None = None,
    sleep: Sleep = time.sleep,
) -> httpx.Response:
    """GET; `what` names the thing in messages. Only an expected status is an answer. Raises UpstreamError."""
    return _request(client, "GET", url, what=what, expected=expected, headers=headers, sleep=sleep)


def head(
    client: httpx.Client,
    url: str,
    *,
    what: str,
    expected: frozenset[int] = frozenset({200}),
    headers: Mapping[str, str] | None = None,
    sleep: Sleep = time.sleep,
) -> httpx.Response:
    """HEAD, as `get`."""
    return _request(client, "HEAD", url, what=what, expected=expected, headers=headers, sleep=sleep)


def _request(
    client: httpx.Client,
    method: str,
    url: str,
    *,
    what: str,
    expected: frozenset[int],
    headers: Mapping[str, str] | None,
    sleep: Sleep,
) -> httpx.Response:
    pauses = iter(_PAUSES)
    while True:
        try:
            response = client.request(method, url, headers=dict(headers or {}))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            # Refused, unknown host, TLS, filtered: trying again within seconds changes nothing, and a user waits.
            raise unreachable(url, what, str(error)) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if (pause := next(pauses, None)) is None:
                raise unreachable(url, what, str(error) or type(error).__name__) from None
            sleep(pause)
            continue
        if response.status_code in expected:
            return response
        pause = next(pauses, None)
        if response.status_code not in _AGAIN or pause is None:
            raise UpstreamError(
                f"{what}: unexpected answer",
                expected=f"status {' or '.join(map(str, sorted(expected)))}",
                found=f"status {response.status_code}",
                where=shown(url),
                next_step=NEXT_STEP,
            )
        sleep(_asked_pause(response, pause))


def unreachable(url: str, what: str, found: str) -> UpstreamError:
    """The error for a host that does not answer."""
    return UpstreamError(
        f"{what}: {urlsplit(url).hostname} cannot be reached", found=found, where=shown(url), next_step=NEXT_STEP
    )


def _asked_pause(response: httpx.Response, pause: float) -> float:
    """What Retry-After asks for (seconds or a date, RFC 9110 §10.2.3), within bounds; else our own pause."""
    text = response.headers.get("Retry-After", "")
    if text.isdigit():
        return min(float(text), _LONGEST_PAUSE)
    with suppress(ValueError, TypeError):
        left = (email.utils.parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        return min(max(left, 0.0), _LONGEST_PAUSE)
    return pause


class _Wrong(Exception):
    """These bytes cannot be the file, whoever is asked again: on to the next URL."""

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found


def download(
    client: httpx.Client,
    urls: Sequence[str],
    target: Path,
    *,
    digest: Digest,
    size: int | None,
    transfer: Transfer,
    sleep: Sleep = time.sleep,
) -> int:
    """Bring the file of that digest from the first URL that has it; returns its bytes.

    It is hashed while it streams into a temporary file beside the target, and moved into place only when it is right;
    nothing is left behind otherwise. A broken transfer is resumed (Range with If-Range on a strong ETag).
    Raises DigestMismatch when a URL has other bytes and no URL has the right ones, UpstreamError when none answers,
    EngineError when the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    wrong: list[tuple[str, str]] = []
    failed: UpstreamError | None = None
    try:
        for url in urls:
            try:
                count = _from_one(client, url, partial, digest, size, transfer, sleep)
            except _Wrong as problem:
                wrong.append((url, problem.found))
            except UpstreamError as problem:
                failed = problem
            else:
                partial.replace(target)
                return count
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise EngineError(
                "the disk of the cache is full",
                found=str(error),
                where=str(target.parent),
                next_step="make room there, or choose another folder: DIND_K3S_CACHE=…",
            ) from None
        raise
    finally:
        partial.unlink(missing_ok=True)
    if wrong:
        url, found = wrong[-1]
        raise DigestMismatch(
            f"{target.name[:12]}…: the downloaded bytes are not the ones that the lock names",
            expected=f"{digest}" + (f", {size} bytes" if size else ""),
            found=found,
            where=shown(url),
            next_step="do not trust that file; if the vendor replaced it on purpose: nox -s resolve, review the diff",
        )
    raise failed or UpstreamError(f"no URL for {digest}")


def _from_one(
    client: httpx.Client, url: str, partial: Path, digest: Digest, size: int | None, transfer: Transfer, sleep: Sleep
) -> int:
    """All tries at one URL."""
    partial.unlink(missing_ok=True)
    state, done, etag = sha256(), 0, ""
    pauses = iter(_PAUSES)
    while True:
        pause = next(pauses, None)
        resume = {"Range": f"bytes={done}-", "If-Range": etag} if done and etag else {}
        try:
            with client.stream("GET", url, headers=resume) as response:
                if response.status_code in _AGAIN and pause is not None:
                    sleep(_asked_pause(response, pause))
                    continue
                whole = not response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
                if response.status_code not in {200, 206} or (response.status_code == 206 and whole):
                    raise UpstreamError(
                        "a file of the lock cannot be downloaded",
                        expected="status 200",
                        found=f"status {response.status_code}",
                        where=shown(url),
                        next_step=NEXT_STEP,
                    )
                if response.status_code == 200:
                    transfer.advance(-done)
                    state, done = sha256(), 0
                tag = response.headers.get("ETag", "")
                etag = tag if not tag.startswith("W/") else ""
                length = response.headers.get("Content-Length")
                if size is None and length and response.status_code == 200:
                    transfer.total(int(length))
                with partial.open("ab" if done else "wb") as stream:
                    for chunk in response.iter_raw():
                        stream.write(chunk)
                        state.update(chunk)
                        done += len(chunk)
                        transfer.advance(len(chunk))
                        if size is not None and done > size:
                            raise _Wrong(f"more than {size} bytes")
                    stream.flush()
                    os.fsync(stream.fileno())
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise unreachable(url, "a file of the lock", str(error)) from None
        except httpx.HTTPError as error:
            if pause is None:
                raise unreachable(url, "a file of the lock", str(error) or type(error).__name__) from None
            sleep(pause)
            continue
        found = Digest(f"sha256:{state.hexdigest()}")
        if found != digest:
            raise _Wrong(f"{found}, {done} bytes")
        return done
