"""Downloads a file from the first of its URLs that has it: resumed, limited, hashed while it streams, atomic.

The URLs are tried in order. While another URL is left, a slow one is skipped; if no URL had the file, all that may
still have it are retried after a pause, with longer timeouts.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from pipeline.core.errors import DigestMismatch, EngineError, PipelineError, UpstreamError
from pipeline.core.log import Transfer
from pipeline.core.names import Digest
from pipeline.http import headers, partial, retries
from pipeline.http.partial import Partial
from pipeline.http.retries import AGAIN, LONGEST_PAUSE, Sleep, pause_after, reason
from pipeline.http.transport import NEXT_STEP, hang_up, pieces, shown

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Timeouts and limits of a download; tests have shorter ones."""

    # Seconds before each further round of the URLs.
    pauses: tuple[float, ...] = field(default_factory=lambda: retries.PAUSES)
    longest_pause: float = LONGEST_PAUSE  # seconds, whatever Retry-After says
    trial: float = 3.0  # seconds: while another URL is left, one that is silent or slow for so long is skipped
    slow: float = 32_000  # bytes a second, below which it is slow; one of eight files on a bad line is faster
    least: float = 1_000  # bytes a second, below which the last URL is slow, too …
    window: float = 20.0  # … measured over that many seconds; the client's read timeout is for a silent server
    longest: float = float("inf")  # seconds for the whole file
    most: int = 2 << 30  # bytes of a file of unknown size
    every: float = 5.0  # seconds between two records of the safe bytes
    gained: int = 1 << 20  # bytes of progress that reset the pauses
    sleep: Sleep | None = None  # for tests; None: a pause that `Stop` ends


@dataclass(frozen=True, kw_only=True)
class File:
    """A file to download."""

    name: str  # for people
    urls: tuple[str, ...]  # in the order in which they are tried
    digest: Digest | None = None  # None: unknown, any bytes are accepted
    size: int | None = None  # bytes; None: unknown


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A downloaded file."""

    digest: Digest
    size: int  # bytes
    url: str  # after all redirects


class Stop:
    """Ends the downloads of other threads, even during a read."""

    def __init__(self) -> None:
        self._is_set = threading.Event()
        self._lock = threading.Lock()
        self._responses: set[httpx.Response] = set()

    def set(self) -> None:
        """End all downloads; the next run resumes them."""
        with self._lock:
            self._is_set.set()
            for response in self._responses:
                hang_up(response)

    def check(self) -> None:
        """Raise UpstreamError after `set`."""
        if self._is_set.is_set():
            raise UpstreamError("the download was stopped before it was complete")

    def wait(self, seconds: float) -> None:
        """Sleep, at most until `set` is called."""
        self._is_set.wait(seconds)

    @contextmanager
    def ending(self, response: httpx.Response) -> Iterator[None]:
        """Let `set` close the connection of a response."""
        with self._lock:
            self._responses.add(response)
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._responses.discard(response)


@dataclass(frozen=True, kw_only=True)
class Downloader:
    """Downloads files, several at once if called from several threads."""

    client: httpx.Client
    rules: Rules = field(default_factory=Rules)
    stop: Stop = field(default_factory=Stop)
    report: Callable[[str], None] = lambda _text: None  # called with log lines

    def download(self, file: File, folder: Path, transfer: Transfer | None = None) -> Copy:
        """Download a file to `<folder>/<hex>`; `hex`: its digest.

        The next run resumes a broken download (partial.py); wrong bytes are moved to `<hex>.<n>.bad`. Raises
        DigestMismatch if every URL has other bytes, UpstreamError if none has the file or one that might have it is not
        available, EngineError if the disk is full.
        """
        if not file.urls:
            raise UpstreamError(f"cannot download {file.name}: no URL is known")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return _Download(self, file, folder, transfer).run()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise EngineError(
                "the disk of the cache is full",
                found=str(error),
                where=str(folder),
                next_step="free some space, or set DIND_K3S_CACHE to another folder",
            ) from None


class _Failed(Exception):
    """An attempt at a URL failed; `response` can request a pause."""

    final = True  # another attempt in this run would not help

    def __init__(self, text: str, response: httpx.Response | None = None) -> None:
        super().__init__(text)
        self.response = response


class _Wrong(_Failed):
    """These bytes cannot be the file."""


class _Refused(_Failed):
    """The server does not give the file: a 404, a redirect to nowhere."""


class _Unreachable(_Failed):
    """No connection; the server may have the file all the same."""


class _Broken(_Failed):
    """Another attempt may succeed."""

    final = False


class _Download:
    """The attempts to get one file."""

    def __init__(self, how: Downloader, file: File, folder: Path, transfer: Transfer | None) -> None:
        self._how = how
        self._file = file
        self._folder = folder
        self._transfer = transfer
        # The partial file of an unknown digest is named by its URL.
        self._name = file.digest.hex if file.digest else sha256(file.urls[0].encode()).hexdigest()
        self._urls = list(dict.fromkeys(file.urls))  # that can still be tried
        self._failures: dict[str, _Failed] = {}
        self._most = 0  # bytes, of the attempt that got furthest
        self._shown = 0  # bytes on the progress bar
        self._ends = time.monotonic() + how.rules.longest

    def run(self) -> Copy:
        """Try the URLs until one has the file. Raises like `Downloader.download`."""
        rules = self._how.rules
        pauses, had = iter(rules.pauses), 0
        patient = False
        while True:
            for url in list(self._urls):
                if copy := self._try(url, patient=patient or url == self._urls[-1]):
                    partial.remove(self._folder, self._name, self._failures)
                    return copy
            if self._most >= had + rules.gained:
                pauses, had = iter(rules.pauses), self._most
            pause = next(pauses, None)
            if pause is None or not self._urls:
                raise self._failure()
            responses = [self._failures[url].response for url in self._urls]
            seconds = min(pause_after(response, pause, rules.longest_pause) for response in responses)
            (rules.sleep or self._how.stop.wait)(seconds)
            patient = True

    def _try(self, url: str, *, patient: bool) -> Copy | None:
        """Return the file; None if this attempt failed: `_failures` has the reason."""
        try:
            return self._copy(url, patient)
        except _Failed as error:
            failure = error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            # A host that responded before may only be restarting.
            failure = (_Broken if url in self._failures else _Unreachable)(str(error))
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
            failure = _Refused(str(error))
        except (httpx.HTTPError, httpx.StreamError) as error:
            failure = _Broken(reason(error))
        self._failures[url] = failure
        if failure.final:
            self._urls.remove(url)
        return None

    def _copy(self, url: str, patient: bool) -> Copy:
        """Download from one URL. Raises _Failed, httpx's errors, OSError, UpstreamError if it was stopped."""
        with closing(Partial(self._folder, self._name, url, every=self._how.rules.every)) as part:
            try:
                source = self._request(part, patient)
                if part.resumed and self._file.digest not in (None, part.digest):
                    part.begin("", None)  # the file can change between two requests: get it in one
                    source = self._request(part, patient)
                if self._file.digest not in (None, part.digest):
                    raise self._quarantined(part, f"{part.digest}, {part.done} bytes")
                copy = Copy(digest=part.digest, size=part.done, url=source)
                part.move(self._folder / copy.digest.hex)
                return copy
            except (_Wrong, _Refused, OSError):
                part.remove()
                raise
            except BaseException:
                part.keep()
                raise
            finally:
                self._most = max(self._most, part.done)
                self._show(part.done)

    def _quarantined(self, part: Partial, found: str) -> _Wrong:
        """Move wrong bytes to a .bad file for people to look at."""
        if self._file.digest is not None:
            bad = self._folder / f"{self._name}.{part.path.suffixes[-2][1:]}.bad"
            part.move(bad)
            self._how.report(f"{shown(part.url)} has other bytes than the lock: {found}; moved to {bad.name}")
        return _Wrong(found)

    def _request(self, part: Partial, patient: bool) -> str:
        """Send one request and receive the rest of the body; return the URL after all redirects."""
        self._how.stop.check()
        if part.done and part.done == self._file.size:
            return shown(part.url)  # an earlier run was killed after the last byte
        client, stop = self._how.client, self._how.stop
        resume = {"Range": f"bytes={part.done}-", "If-Range": part.etag} if part.done else {}
        timeout = client.timeout if patient else httpx.Timeout(self._how.rules.trial)
        with client.stream("GET", part.url, headers=resume, timeout=timeout) as response, stop.ending(response):
            for hop, following in pairwise([*response.history, response]):
                if hop.url.host != following.url.host:
                    self._how.report(f"{hop.url.host} redirects downloads to {following.url.host}")
            if self._accept(response, part):
                self._receive(response, part, patient)
            return shown(str(response.url))

    def _accept(self, response: httpx.Response, part: Partial) -> bool:
        """Return whether the body is needed, with `part` prepared for it. Raises _Failed."""
        code = response.status_code
        if code == 416 and part.done:
            if response.headers.get("Content-Range", "").strip() == f"bytes */{part.done}":
                return False
            part.begin("", None)
            raise _Broken("the range is not satisfiable")
        if code in AGAIN:
            raise _Broken(f"status {code}", response)
        if code not in (200, 206):
            raise _Refused(f"status {code}")
        if compression := headers.compression(response):
            raise _Refused(f"compressed with {compression}, although only identity was requested")
        etag = headers.strong_etag(response) or ""
        if code == 200:
            size = headers.length(response)
            self._check_size(size)
            part.begin(etag, size)
            return True
        start, size = headers.content_range(response) or (-1, None)
        if not part.done or start != part.done or (etag and etag != part.etag):
            part.begin("", None)
            raise _Broken("the response has another range than requested")
        self._check_size(size)
        part.resumed = True
        return True

    def _check_size(self, size: int | None) -> None:
        """Compare the size that the server reports. Raises _Wrong."""
        if size is None:
            return
        if self._file.size is None:
            if size > self._how.rules.most:
                raise _Wrong(f"{size} bytes, more than {self._how.rules.most} for a file of unknown size")
            if self._transfer:
                self._transfer.total(size)
        elif size != self._file.size:
            raise _Wrong(f"{size} bytes instead of {self._file.size}")

    def _receive(self, response: httpx.Response, part: Partial, patient: bool) -> None:
        """Write the body, at most as many bytes as the file has. Raises _Broken if it is short or slow."""
        rules = self._how.rules
        size = self._file.size if self._file.size is not None else part.size
        limit = size if size is not None else rules.most
        window, least = (rules.window, rules.least) if patient else (rules.trial, rules.slow)
        since, had = time.monotonic(), part.done
        for chunk in pieces(response):
            self._how.stop.check()
            part.append(chunk[: limit - part.done + 1])
            if part.done > limit:
                raise self._quarantined(part, f"more than {limit} bytes")
            self._show(part.done)
            now = time.monotonic()
            if now > self._ends:
                raise _Refused(f"too slow: {part.done} bytes in {rules.longest:.0f} s")
            if now - since >= window:
                if part.done - had < least * (now - since):
                    raise _Broken(f"too slow: {part.done - had} bytes in {now - since:.1f} s")
                since, had = now, part.done
        if size is not None and part.done < size:
            raise _Broken(f"the body ended after {part.done} of {size} bytes")

    def _show(self, done: int) -> None:
        """Move the progress bar."""
        if self._transfer and done != self._shown:
            self._transfer.advance(done - self._shown)
            self._shown = done

    def _failure(self) -> PipelineError:
        """Return the error for a file that no URL has; DigestMismatch only if no server is left that may have it."""
        file = self._file
        wrong = [url for url, failure in self._failures.items() if isinstance(failure, _Wrong)]
        if file.digest is None or any(not isinstance(each, _Wrong | _Refused) for each in self._failures.values()):
            wrong = []
        reasons = {shown(url): str(self._failures[url]) for url in wrong or self._failures}
        where, found = list(reasons.items())[-1]
        several = len(reasons) > 1
        if several:
            found = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
        if wrong:
            return DigestMismatch(
                f"{file.name}: the downloaded bytes do not have the digest in the lock",
                expected=f"{file.digest}" + (f", {file.size} bytes" if file.size is not None else ""),
                found=found,
                where=where,
                next_step="do not trust that file; replaced on purpose by the vendor? nox -s resolve, review the diff",
            )
        return UpstreamError(
            f"cannot download {file.name}" + ("" if several else f" from {urlsplit(where).hostname}: {found}"),
            expected=f"{file.digest or 'the file'} from one of {len(reasons)} URLs" if several else None,
            found=found if several else None,
            where=where,
            next_step=NEXT_STEP,
        )
