"""One URL of a file: asked, asked again, continued, bounded, and in its place only when its bytes are right.

`download` starts a lane for each URL that is needed and decides between them.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from pipeline.core.errors import EngineError
from pipeline.core.names import Digest
from pipeline.fetch.partial import Partial
from pipeline.http.transport import (
    AGAIN,
    LONGEST_PAUSE,
    PAUSES,
    REDIRECTS,
    Sleep,
    asked_pause,
    hang_up,
    jittered,
    pieces,
    shown,
    unreachable,
)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How patient a download is; tests are less so."""

    pauses: tuple[float, ...] = PAUSES  # seconds before each further try at a URL
    longest_pause: float = LONGEST_PAUSE  # seconds, whatever Retry-After says
    hedge: float = 3.0  # seconds after which a slow URL gets a rival
    slow: float = 32_000  # bytes a second, below which it is slow; more than a bad line's share for eight files
    least: float = 1_000  # bytes a second, below which a try is broken off …
    window: float = 20.0  # … measured over that many seconds; a server that says nothing is the client's read timeout
    redirects: int = REDIRECTS
    most: int = 2 << 30  # bytes of a file whose size the lock does not know
    every: float = 2.0  # seconds between two records of what is safe
    gained: int = 1 << 20  # bytes that a try must bring for the pauses to begin anew
    sleep: Sleep | None = None  # for tests; None: until the time is over or the lane is cancelled


class Wrong(Exception):
    """These bytes cannot be the file, whoever is asked again: this URL is dropped."""

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found


class Refused(Wrong):
    """This URL does not give the file, and asking it again changes nothing: a 404, a redirect to nowhere."""


class _Broken(Exception):
    """A try failed, another may not."""


class _Cancelled(Exception):
    """Somebody else won, or the run ends."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What all lanes of a file have in common."""

    client: httpx.Client
    target: Path
    digest: Digest
    size: int | None  # bytes; None: the lock does not know it
    rules: Rules
    tell: Callable[[str], None]  # a sentence that a person should read although it went well
    changed: threading.Condition  # notified when the outcome of a lane, or its being in trouble, is new
    show: Callable[[], None]  # more bytes came
    told_size: Callable[[int], None]  # a server told the size of a file whose size the lock does not know


class Lane:
    """One URL of a file. `outcome`: None while it runs, True when the file is in its place, else why not."""

    def __init__(self, goal: Goal, url: str) -> None:
        self.goal = goal
        self.url = url
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"download {shown(url)}")
        self.outcome: bool | BaseException | None = None
        self.opened = False
        self.partial: Partial
        self._cancelled = threading.Event()
        self._opening = threading.Lock()  # a lane that was cancelled before it began makes no file
        self._keep = False  # whether a cancelled lane leaves its bytes for the next run
        self._pausing = False
        self._response: httpx.Response | None = None
        self._looked = time.monotonic()  # when wants_a_rival last measured …
        self._had = 0  # … and the bytes at that time
        self._slow = False

    @property
    def wants_a_rival(self) -> bool:
        """Whether the next URL should be asked now."""
        if self.outcome is not None or self._pausing:
            return True
        now = time.monotonic()
        if (passed := now - self._looked) >= self.goal.rules.hedge:
            done = self.partial.done if self.opened else 0
            self._slow = done - self._had < self.goal.rules.slow * passed
            self._looked, self._had = now, done
        return self._slow

    def cancel(self, *, keep: bool) -> bool:
        """End it; False: it has written nothing and ends by itself, when a server that says nothing is given up.

        Called from other threads; the first call counts.
        """
        if self._cancelled.is_set():
            return False
        with self._opening:
            self._keep = keep
            self._cancelled.set()
        if (response := self._response) is not None:
            hang_up(response)
        return response is not None or self._pausing

    def _run(self) -> None:
        outcome: bool | BaseException
        try:
            with self._opening:
                if self._cancelled.is_set():
                    raise _Cancelled("cancelled")
                self.partial = Partial(self.goal.target, self.url, every=self.goal.rules.every)
                self.opened = True
            try:
                outcome = self._all_tries()
            except Wrong:
                self.partial.remove()
                raise
            finally:
                self.partial.close()
        except _Cancelled as cancelled:
            outcome = Refused(str(cancelled))
        except OSError as error:
            outcome = error
            if error.errno in _FULL:
                outcome = EngineError(
                    "the disk of the cache is full",
                    found=str(error),
                    where=str(self.goal.target.parent),
                    next_step="make room there, or choose another folder: DIND_K3S_CACHE=…",
                )
        except BaseException as error:
            outcome = error
        with self.goal.changed:
            self.outcome = outcome
            self.goal.changed.notify_all()

    def _all_tries(self) -> bool:
        """Ask until the file is there. Raises Wrong, UpstreamError, _Cancelled, OSError."""
        rules, partial = self.goal.rules, self.partial
        pauses = iter(rules.pauses)
        most = partial.done
        whole_again = True  # once: bytes that came in parts and are wrong may have changed in between
        while True:
            problem: Exception
            asked: httpx.Response | None = None
            try:
                self._one_try()
                if self._is_right():
                    return True
                if not (partial.resumed and whole_again):
                    raise self._set_aside()
                whole_again = False
                partial.begin("", None)
                continue
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if not partial.done:  # nobody is there; a host that has given bytes may only be restarting
                    raise unreachable(self.url, "a file of the lock", str(error)) from None
                problem = error
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise Refused(str(error)) from None
            except httpx.HTTPStatusError as error:
                problem, asked = error, error.response
            except (httpx.HTTPError, httpx.StreamError, _Broken) as error:
                problem = error
            except OSError:
                partial.remove()
                raise
            finally:
                self.goal.show()
            self._leave_if_cancelled()
            partial.keep()
            if partial.done >= most + rules.gained:
                most, pauses = partial.done, iter(rules.pauses)
            if (pause := next(pauses, None)) is None:
                raise unreachable(self.url, "a file of the lock", str(problem) or type(problem).__name__) from None
            self._rest(jittered(pause) if asked is None else asked_pause(asked, pause, rules.longest_pause))

    def _rest(self, seconds: float) -> None:
        """Pause; meanwhile the next URL is asked."""
        with self.goal.changed:
            self._pausing = True
            self.goal.changed.notify_all()
        (self.goal.rules.sleep or self._cancelled.wait)(seconds)
        self._pausing = False
        self._leave_if_cancelled()

    def _leave_if_cancelled(self) -> None:
        if not self._cancelled.is_set():
            return
        if self._keep:
            self.partial.keep()
        else:
            self.partial.remove()
        raise _Cancelled("cancelled")

    def _is_right(self) -> bool:
        """Whether the bytes are the file; it is in its place then."""
        self._leave_if_cancelled()
        if self.partial.digest != self.goal.digest:
            return False
        self.partial.move(self.goal.target)
        return True

    def _set_aside(self, found: str = "") -> Wrong:
        """Quarantine wrong bytes, so that somebody can look at them, and say so."""
        partial, target = self.partial, self.goal.target
        bad = target.with_name(f"{target.name}.{partial.path.suffixes[-2][1:]}.bad")
        found = found or f"{partial.digest}, {partial.done} bytes"
        partial.move(bad)
        self.goal.tell(f"{shown(self.url)} has other bytes than the lock names: {found}; set aside as {bad.name}")
        return Wrong(found)

    def _one_try(self) -> None:
        """One request; returns when the body is complete. Raises what _all_tries sorts out."""
        partial = self.partial
        if partial.done and partial.done == self.goal.size:
            return  # an earlier run had all of it and was killed before it could say so
        resume = {"Range": f"bytes={partial.done}-", "If-Range": partial.etag} if partial.done and partial.etag else {}
        response = self._response = self._open(resume)
        try:
            self._leave_if_cancelled()
            if self._accept(response, resuming=bool(resume)):
                self._receive(response)
        finally:
            self._response = None
            response.close()

    def _open(self, headers: Mapping[str, str]) -> httpx.Response:
        """Ask, and follow redirects: to other hosts too, which is told, but never from https to http."""
        request = self.goal.client.build_request("GET", self.url, headers=dict(headers))
        for _ in range(self.goal.rules.redirects + 1):
            response = self.goal.client.send(request, stream=True, follow_redirects=False)
            following = response.next_request
            if following is None:
                return response
            response.close()
            if following.url.scheme not in ("https", request.url.scheme):
                raise Refused(
                    f"a redirect from {request.url.scheme} to {following.url.scheme}, {shown(str(following.url))}"
                )
            if following.url.host != request.url.host:
                self.goal.tell(f"{request.url.host} sends its downloads on to {following.url.host}")
            request = following
        raise Refused(f"more than {self.goal.rules.redirects} redirects, the last one to {shown(str(request.url))}")

    def _accept(self, response: httpx.Response, *, resuming: bool) -> bool:
        """Whether the body is to be received, with `partial` set to where it goes; False: it is there already."""
        partial, code = self.partial, response.status_code
        if code == 416 and resuming:
            if response.headers.get("Content-Range", "").strip() == f"bytes */{partial.done}":
                return False
            partial.begin("", None)
            raise _Broken("the range is not satisfiable")
        if code in AGAIN:
            raise httpx.HTTPStatusError(f"status {code}", request=response.request, response=response)
        if code not in (200, 206):
            raise Refused(f"status {code}")
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise Refused(f"packed as {encoding} although it was asked for as it is")
        tag = response.headers.get("ETag", "").strip()
        etag = tag if tag.startswith('"') else ""  # a weak one does not promise the same bytes, RFC 9110 §8.8.1
        length = response.headers.get("Content-Length", "").strip()
        if code == 200:
            size = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
            self._sized(size)
            partial.begin(etag, size)
            return True
        start, whole = _range(response)
        if not resuming or start != partial.done or (etag and etag != partial.etag):
            partial.begin("", None)
            raise _Broken("an answer to another range than was asked for")
        self._sized(whole)
        partial.resumed = True
        return True

    def _sized(self, size: int | None) -> None:
        """The server told the size of the whole. Raises Wrong when it cannot be the file."""
        if size is None:
            return
        limit = self.goal.rules.most
        if self.goal.size is not None and size != self.goal.size:
            raise Wrong(f"{size} bytes instead of {self.goal.size}")
        if self.goal.size is None and size > limit:
            raise Wrong(f"{size} bytes, more than {limit} of a file whose size is not known")
        if self.goal.size is None:
            self.goal.told_size(size)

    def _receive(self, response: httpx.Response) -> None:
        """The body into `partial`, never more than it may be. Raises _Broken when it is short or a trickle."""
        partial, rules = self.partial, self.goal.rules
        size = self.goal.size if self.goal.size is not None else partial.size
        limit = size if size is not None else rules.most
        since, had = time.monotonic(), partial.done
        for chunk in pieces(response):
            self._leave_if_cancelled()
            partial.append(chunk[: limit - partial.done + 1])
            if partial.done > limit:
                raise self._set_aside(f"more than {limit} bytes")
            self.goal.show()
            if (passed := time.monotonic() - since) >= rules.window:
                if partial.done - had < rules.least * passed:
                    raise _Broken(f"{partial.done - had} bytes in {passed:.1f} s are too slow")
                since, had = time.monotonic(), partial.done
        if size is not None and partial.done < size:
            raise _Broken(f"the body ended after {partial.done} of {size} bytes")


def _range(response: httpx.Response) -> tuple[int, int | None]:
    """First byte and size of the whole of a 206 (RFC 9110 §14.4). Raises _Broken."""
    found = re.fullmatch(
        r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", response.headers.get("Content-Range", "").strip()
    )
    if not found:
        raise _Broken("a part of a file that does not say which")
    return int(found[1]), None if found[3] == "*" else int(found[3])
