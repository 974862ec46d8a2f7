"""One file from the first of its URLs that has it: resumed, bounded, hashed while it streams, in place when complete.

The URLs are asked in order. A failure that may pass is retried after a pause. While another URL is left, a slow one is
passed over; when no URL has the file at once, all that may still have it are asked again with more patience. So which
server is honest or fast need not be known beforehand.
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
from pipeline.http import headers, partial, transport
from pipeline.http.partial import Partial
from pipeline.http.transport import AGAIN, LONGEST_PAUSE, NEXT_STEP, Sleep, hang_up, pause_after, pieces, shown

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How patient a download is; tests are less so."""

    # Seconds before each further round of the URLs.
    pauses: tuple[float, ...] = field(default_factory=lambda: transport.PAUSES)
    longest_pause: float = LONGEST_PAUSE  # seconds, whatever Retry-After says
    trial: float = 3.0  # seconds: while another URL is left, one that is silent or slow for so long is passed over
    slow: float = 32_000  # bytes a second, below which it is slow; more than a bad line's share for eight files
    least: float = 1_000  # bytes a second, below which a try is broken off in any case …
    window: float = 20.0  # … measured over that many seconds; a silent server meets the client's read timeout
    longest: float = float("inf")  # seconds for the whole file
    most: int = 2 << 30  # bytes of a file whose size is not known
    every: float = 5.0  # seconds between two records of what is safe
    gained: int = 1 << 20  # bytes that a try must bring for the pauses to begin again
    sleep: Sleep | None = None  # for tests; None: until the time is over or the download is stopped


@dataclass(frozen=True, kw_only=True)
class File:
    """A file to download."""

    name: str  # for people
    urls: tuple[str, ...]  # in the order in which they are asked
    digest: Digest | None = None  # None: not known, whatever comes is the file
    size: int | None = None  # bytes; None: not known


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A file that was downloaded."""

    digest: Digest
    size: int  # bytes
    url: str  # that it came from, behind all redirects


class Stop:
    """Ends the downloads of other threads, in the middle of a read too."""

    def __init__(self) -> None:
        self._is_set = threading.Event()
        self._lock = threading.Lock()
        self._responses: set[httpx.Response] = set()

    def set(self) -> None:
        """End all downloads; what they have is kept for the next run."""
        with self._lock:
            self._is_set.set()
            for response in self._responses:
                hang_up(response)

    def check(self) -> None:
        """Raise UpstreamError if the downloads are to end."""
        if self._is_set.is_set():
            raise UpstreamError("the download was stopped before it was complete")

    def wait(self, seconds: float) -> None:
        """Pause, at most until `set` is called."""
        self._is_set.wait(seconds)

    @contextmanager
    def ending(self, response: httpx.Response) -> Iterator[None]:
        """Have the response's connection closed by `set`."""
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
    report: Callable[[str], None] = lambda _text: None  # gets what people should know although it went well

    def download(self, file: File, folder: Path, transfer: Transfer | None = None) -> Copy:
        """Have the file in `folder` under the hexadecimal form of its digest.

        What is safe of a broken download stays for the next run (partial.py); wrong bytes are set aside as
        `<hex>.<n>.bad`. Raises DigestMismatch when every URL that answers has other bytes, UpstreamError when none has
        the file or one that might have it cannot be reached, EngineError when the disk is full.
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
                next_step="make room there, or choose another folder: DIND_K3S_CACHE=…",
            ) from None


class _Failed(Exception):
    """A try at a URL failed; the text says why. `response`: what may say when to come again."""

    final = True  # asking this URL again in this run would change nothing
    response: httpx.Response | None = None


class _Wrong(_Failed):
    """These bytes cannot be the file."""


class _Refused(_Failed):
    """The server does not give the file: a 404, a redirect to nowhere."""


class _Unreachable(_Failed):
    """Nobody is there; the server may have the file all the same."""


class _Broken(_Failed):
    """This try failed, another may not."""

    final = False

    def __init__(self, text: str, response: httpx.Response | None = None) -> None:
        super().__init__(text)
        self.response = response


class _Download:
    """The tries to get one file."""

    def __init__(self, how: Downloader, file: File, folder: Path, transfer: Transfer | None) -> None:
        self._how = how
        self._file = file
        self._folder = folder
        self._transfer = transfer
        # Of a file whose digest is not known the beginning is called by where it comes from.
        self._name = file.digest.hex if file.digest else sha256(file.urls[0].encode()).hexdigest()
        self._urls = list(dict.fromkeys(file.urls))  # that are still worth a try
        self._failures: dict[str, _Failed] = {}
        self._most = 0  # bytes that a try had at its end
        self._shown = 0  # bytes
        self._ends = time.monotonic() + how.rules.longest

    def run(self) -> Copy:
        """Ask the URLs until one has given the file. Raises what `Downloader.download` does."""
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
        """Return the file; None when this try failed, and then `_failures` has the reason."""
        try:
            return self._copy(url, patient)
        except _Failed as error:
            failure = error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            # A host that answered before may only be restarting.
            failure = (_Broken if url in self._failures else _Unreachable)(str(error))
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
            failure = _Refused(str(error))
        except (httpx.HTTPError, httpx.StreamError) as error:
            failure = _Broken(str(error) or type(error).__name__)
        self._failures[url] = failure
        if failure.final:
            self._urls.remove(url)
        return None

    def _copy(self, url: str, patient: bool) -> Copy:
        """Download from one URL. Raises _Failed, httpx's errors, OSError, UpstreamError when it was stopped."""
        with closing(Partial(self._folder, self._name, url, every=self._how.rules.every)) as part:
            try:
                source = self._request(part, patient)
                if part.resumed and self._file.digest not in (None, part.digest):
                    part.begin("", None)  # bytes that came in parts may have changed in between: once as a whole
                    source = self._request(part, patient)
                if self._file.digest not in (None, part.digest):
                    raise self._set_aside(part, f"{part.digest}, {part.done} bytes")
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

    def _set_aside(self, part: Partial, found: str) -> _Wrong:
        """Quarantine wrong bytes, so that somebody can look at them, and report it."""
        if self._file.digest is None:
            return _Wrong(found)
        bad = self._folder / f"{self._name}.{part.path.suffixes[-2][1:]}.bad"
        part.move(bad)
        self._how.report(f"{shown(part.url)} has other bytes than the lock names: {found}; set aside as {bad.name}")
        return _Wrong(found)

    def _request(self, part: Partial, patient: bool) -> str:
        """Ask once and receive the rest of the body; return the URL behind all redirects."""
        self._how.stop.check()
        if part.done and part.done == self._file.size:
            return shown(part.url)  # an earlier run had all of it and was killed before it could say so
        client, stop = self._how.client, self._how.stop
        resume = {"Range": f"bytes={part.done}-", "If-Range": part.etag} if part.done else {}
        timeout = client.timeout if patient else httpx.Timeout(self._how.rules.trial)
        with client.stream("GET", part.url, headers=resume, timeout=timeout) as response, stop.ending(response):
            for hop, following in pairwise([*response.history, response]):
                if hop.url.host != following.url.host:
                    self._how.report(f"{hop.url.host} sends its downloads on to {following.url.host}")
            if self._accept(response, part):
                self._receive(response, part, patient)
            return shown(str(response.url))

    def _accept(self, response: httpx.Response, part: Partial) -> bool:
        """Whether the body is to be received, with `part` set to where it goes; False: all of it is there already."""
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
        if packing := headers.packing(response):
            raise _Refused(f"packed as {packing} although it was asked for as it is")
        etag = headers.strong_etag(response) or ""
        if code == 200:
            size = headers.length(response)
            self._check_size(size)
            part.begin(etag, size)
            return True
        start, size = headers.content_range(response) or (-1, None)
        if not part.done or start != part.done or (etag and etag != part.etag):
            part.begin("", None)
            raise _Broken("an answer to another range than was asked for")
        self._check_size(size)
        part.resumed = True
        return True

    def _check_size(self, size: int | None) -> None:
        """Take the size of the whole from the server. Raises _Wrong when it cannot be the file."""
        if size is None:
            return
        if self._file.size is None:
            if size > self._how.rules.most:
                raise _Wrong(f"{size} bytes, more than {self._how.rules.most} of a file whose size is not known")
            if self._transfer:
                self._transfer.total(size)
        elif size != self._file.size:
            raise _Wrong(f"{size} bytes instead of {self._file.size}")

    def _receive(self, response: httpx.Response, part: Partial, patient: bool) -> None:
        """Write the body, never more of it than the file may have. Raises _Broken when it is short or slow."""
        rules = self._how.rules
        size = self._file.size if self._file.size is not None else part.size
        limit = size if size is not None else rules.most
        window, least = (rules.window, rules.least) if patient else (rules.trial, rules.slow)
        since, had = time.monotonic(), part.done
        for chunk in pieces(response):
            self._how.stop.check()
            part.append(chunk[: limit - part.done + 1])
            if part.done > limit:
                raise self._set_aside(part, f"more than {limit} bytes")
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
        """Return what to raise when no URL has it: exit code 4 if all that is known is that the bytes are wrong."""
        file = self._file
        wrong = [url for url, failure in self._failures.items() if isinstance(failure, _Wrong)]
        down = any(not isinstance(failure, _Wrong | _Refused) for failure in self._failures.values())
        if down or file.digest is None:
            wrong = []  # a server that is down may have the right ones
        reasons = {shown(url): str(self._failures[url]) for url in wrong or self._failures}
        where, found = list(reasons.items())[-1]
        if len(reasons) > 1:
            found = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
        if wrong:
            return DigestMismatch(
                f"{file.name}: the downloaded bytes are not the ones that the lock names",
                expected=f"{file.digest}" + (f", {file.size} bytes" if file.size is not None else ""),
                found=found,
                where=where,
                next_step="do not trust that file; replaced on purpose by the vendor? nox -s resolve, review the diff",
            )
        if len(reasons) == 1:
            return UpstreamError(
                f"cannot download {file.name} from {urlsplit(where).hostname}: {found}",
                where=where,
                next_step=NEXT_STEP,
            )
        return UpstreamError(
            f"cannot download {file.name}",
            expected=f"{file.digest or 'the file'} from one of {len(reasons)} URLs",
            found=found,
            where=where,
            next_step=NEXT_STEP,
        )
