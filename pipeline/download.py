"""One file of the lock from whichever of its URLs has it: resumed, raced, bounded, and there only when it is right.

Each URL that is asked gets a `_Lane`, a thread with a partial file of its own. The first URL is asked first; the next
one starts beside it as soon as it fails, pauses or is slow. The first lane whose bytes have the lock's digest wins and
the others are cancelled. Which server is honest or fast need not be known beforehand.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from pipeline.errors import DigestMismatch, EngineError, PipelineError, UpstreamError
from pipeline.log import Transfer
from pipeline.oci import Digest
from pipeline.partial import Partial
from pipeline.transport import (
    AGAIN,
    LONGEST_PAUSE,
    NEXT_STEP,
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
_POLL = 0.2  # seconds between two looks at the lanes when nothing happens
_LEAVING = 2.0  # seconds that a cancelled lane gets to write down what is safe


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


_RULES = Rules()


class _Wrong(Exception):
    """These bytes cannot be the file, whoever is asked again: this URL is dropped."""

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found


class _Refused(_Wrong):
    """This URL does not give the file, and asking it again changes nothing: a 404, a redirect to nowhere."""


class _Broken(Exception):
    """A try failed, another may not."""


class _Cancelled(Exception):
    """Somebody else won, or the run ends."""


def download(
    client: httpx.Client,
    urls: Sequence[str],
    target: Path,
    *,
    digest: Digest,
    size: int | None,
    transfer: Transfer,
    rules: Rules = _RULES,
    stop: threading.Event | None = None,
    tell: Callable[[str], None] = lambda _text: None,
) -> int:
    """Bring the file of that digest from the URLs, in order; returns its bytes.

    It is hashed while it streams and moved into place only when it is right. What is safe of a broken download stays
    for the next run (pipeline/partial.py); wrong bytes are set aside as `<target>.<n>.bad`. `stop`: set by the caller
    to end early. `tell` gets a sentence about whatever a person should know although it went well.

    Raises DigestMismatch when every URL that answers has other bytes, UpstreamError when none has the file or one that
    might have it cannot be reached, EngineError when the disk is full.
    """
    if not urls:
        raise UpstreamError(f"no URL for {digest}")
    target.parent.mkdir(parents=True, exist_ok=True)
    return _Race(client, urls, target, digest, size, transfer, rules, stop or threading.Event(), tell).run()


class _Race:
    """All lanes of one file."""

    def __init__(
        self,
        client: httpx.Client,
        urls: Sequence[str],
        target: Path,
        digest: Digest,
        size: int | None,
        transfer: Transfer,
        rules: Rules,
        stop: threading.Event,
        tell: Callable[[str], None],
    ) -> None:
        self.client = client
        self.target = target
        self.digest = digest
        self.size = size
        self.rules = rules
        self.tell = tell
        self.changed = threading.Condition()
        self._transfer = transfer
        self._stop = stop
        self._shown = 0
        self._waiting = list(dict.fromkeys(urls))
        self._lanes: list[_Lane] = []

    def run(self) -> int:
        try:
            winner = self._winner()
            self._transfer.advance(winner.partial.done - self._shown)
            return winner.partial.done
        except BaseException:
            self._end(keep=True)
            raise
        finally:
            self._end(keep=False)

    def _winner(self) -> _Lane:
        """Start lanes as they are needed until one has won. Raises what `download` does."""
        self._start()
        with self.changed:
            while True:
                for lane in self._lanes:
                    if isinstance(lane.outcome, BaseException) and not isinstance(lane.outcome, _Wrong | UpstreamError):
                        raise lane.outcome
                    if lane.outcome is True:
                        return lane
                if self._stop.is_set():
                    raise UpstreamError("ended before it was complete")
                if self._lanes[-1].wants_a_rival and self._waiting:
                    self._start()
                elif not self._waiting and all(lane.outcome is not None for lane in self._lanes):
                    raise self._failure()
                else:
                    self.changed.wait(min(_POLL, self.rules.hedge))

    def _start(self) -> None:
        lane = _Lane(self, self._waiting.pop(0))
        self._lanes.append(lane)
        lane.thread.start()

    def _end(self, *, keep: bool) -> None:
        """Cancel who still runs, once; `keep`: for the next run, else what they have is removed."""
        leaving = [lane for lane in self._lanes if lane.thread.is_alive() and lane.cancel(keep=keep)]
        deadline = time.monotonic() + _LEAVING
        for lane in leaving:
            lane.thread.join(max(0.0, deadline - time.monotonic()))
        if not keep and any(lane.outcome is True for lane in self._lanes):
            for left in self.target.parent.glob(f".{self.target.name}.*"):
                left.unlink(missing_ok=True)

    def show(self) -> None:
        """Move the bar to the lane that has most."""
        with self.changed:
            most = max((lane.partial.done for lane in self._lanes if lane.opened), default=0)
            if most != self._shown:
                self._transfer.advance(most - self._shown)
                self._shown = most

    def told_size(self, size: int) -> None:
        """A server told the size, and the lock does not know it."""
        if self.size is None:
            self._transfer.total(size)

    def _failure(self) -> PipelineError:
        """What to raise when no URL had it: exit code 4 if all that is known is that the bytes are wrong."""
        outcomes = [(lane.url, lane.outcome) for lane in self._lanes]
        wrong = [(url, o.found) for url, o in outcomes if isinstance(o, _Wrong) and not isinstance(o, _Refused)]
        failed = [(url, o) for url, o in outcomes if isinstance(o, UpstreamError)]
        refused = [(url, o.found) for url, o in outcomes if isinstance(o, _Refused)]
        if wrong and not failed:
            url, found = wrong[-1]
            return DigestMismatch(
                f"{self.target.name[:12]}…: the downloaded bytes are not the ones that the lock names",
                expected=f"{self.digest}" + (f", {self.size} bytes" if self.size is not None else ""),
                found="; ".join(f"{found} from {shown(url)}" for url, found in wrong) if len(wrong) > 1 else found,
                where=shown(url),
                next_step="do not trust that file; if the vendor replaced it on purpose: nox -s resolve, "
                "review the diff",
            )
        if failed and len(outcomes) == 1:
            return failed[0][1]
        said = [f"{shown(url)}: {found}" for url, found in (*refused, *wrong)]
        said += [f"{shown(url)}: {error.found or error.summary}" for url, error in failed]
        return UpstreamError(
            "a file of the lock cannot be downloaded",
            expected=f"{self.digest} from one of {len(outcomes)} URLs" if len(outcomes) > 1 else "status 200",
            found="; ".join(said) if len(outcomes) > 1 else said[0].partition(": ")[2],
            where=shown(outcomes[-1][0]),
            next_step=NEXT_STEP,
        )


class _Lane:
    """One URL of a file. `outcome`: None while it runs, True when the file is in its place, else why not."""

    def __init__(self, race: _Race, url: str) -> None:
        self.race = race
        self.url = url
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"download {shown(url)}")
        self.outcome: bool | BaseException | None = None
        self.opened = False
        self.partial: Partial
        self._cancelled = threading.Event()
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
        if (passed := now - self._looked) >= self.race.rules.hedge:
            done = self.partial.done if self.opened else 0
            self._slow = done - self._had < self.race.rules.slow * passed
            self._looked, self._had = now, done
        return self._slow

    def cancel(self, *, keep: bool) -> bool:
        """End it; False: it has written nothing and ends by itself, when a server that says nothing is given up.

        Called from other threads; the first call counts.
        """
        if self._cancelled.is_set():
            return False
        self._keep = keep
        self._cancelled.set()
        if (response := self._response) is not None:
            hang_up(response)
        return response is not None or self._pausing

    def _run(self) -> None:
        outcome: bool | BaseException
        try:
            self.partial = Partial(self.race.target, self.url, every=self.race.rules.every)
            self.opened = True
            try:
                outcome = self._all_tries()
            except _Wrong:
                self.partial.remove()
                raise
            finally:
                self.partial.close()
        except _Cancelled as cancelled:
            outcome = _Refused(str(cancelled))
        except OSError as error:
            outcome = error
            if error.errno in _FULL:
                outcome = EngineError(
                    "the disk of the cache is full",
                    found=str(error),
                    where=str(self.race.target.parent),
                    next_step="make room there, or choose another folder: DIND_K3S_CACHE=…",
                )
        except BaseException as error:
            outcome = error
        with self.race.changed:
            self.outcome = outcome
            self.race.changed.notify_all()

    def _all_tries(self) -> bool:
        """Ask until the file is there. Raises _Wrong, UpstreamError, _Cancelled, OSError."""
        rules, partial = self.race.rules, self.partial
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
                raise _Refused(str(error)) from None
            except httpx.HTTPStatusError as error:
                problem, asked = error, error.response
            except (httpx.HTTPError, httpx.StreamError, _Broken) as error:
                problem = error
            except OSError:
                partial.remove()
                raise
            finally:
                self.race.show()
            self._leave_if_cancelled()
            partial.keep()
            if partial.done >= most + rules.gained:
                most, pauses = partial.done, iter(rules.pauses)
            if (pause := next(pauses, None)) is None:
                raise unreachable(self.url, "a file of the lock", str(problem) or type(problem).__name__) from None
            self._rest(jittered(pause) if asked is None else asked_pause(asked, pause, rules.longest_pause))

    def _rest(self, seconds: float) -> None:
        """Pause; meanwhile the next URL is asked."""
        with self.race.changed:
            self._pausing = True
            self.race.changed.notify_all()
        (self.race.rules.sleep or self._cancelled.wait)(seconds)
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
        if self.partial.digest != self.race.digest:
            return False
        self.partial.move(self.race.target)
        return True

    def _set_aside(self, found: str = "") -> _Wrong:
        """Quarantine wrong bytes, so that somebody can look at them, and say so."""
        partial, target = self.partial, self.race.target
        bad = target.with_name(f"{target.name}.{partial.path.suffixes[-2][1:]}.bad")
        found = found or f"{partial.digest}, {partial.done} bytes"
        partial.move(bad)
        self.race.tell(f"{shown(self.url)} has other bytes than the lock names: {found}; set aside as {bad.name}")
        return _Wrong(found)

    def _one_try(self) -> None:
        """One request; returns when the body is complete. Raises what _all_tries sorts out."""
        partial = self.partial
        if partial.done and partial.done == self.race.size:
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
        request = self.race.client.build_request("GET", self.url, headers=dict(headers))
        for _ in range(self.race.rules.redirects + 1):
            response = self.race.client.send(request, stream=True, follow_redirects=False)
            following = response.next_request
            if following is None:
                return response
            response.close()
            if following.url.scheme not in ("https", request.url.scheme):
                raise _Refused(
                    f"a redirect from {request.url.scheme} to {following.url.scheme}, {shown(str(following.url))}"
                )
            if following.url.host != request.url.host:
                self.race.tell(f"{request.url.host} sends its downloads on to {following.url.host}")
            request = following
        raise _Refused(f"more than {self.race.rules.redirects} redirects, the last one to {shown(str(request.url))}")

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
            raise _Refused(f"status {code}")
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise _Refused(f"packed as {encoding} although it was asked for as it is")
        tag = response.headers.get("ETag", "").strip()
        etag = tag if tag.startswith('"') else ""  # a weak one does not promise the same bytes, RFC 9110 §8.8.1
        length = response.headers.get("Content-Length", "").strip()
        if code == 200:
            size = int(length) if length.isascii() and length.isdigit() else None
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
        """The server told the size of the whole. Raises _Wrong when it cannot be the file."""
        if size is None:
            return
        limit = self.race.rules.most
        if self.race.size is not None and size != self.race.size:
            raise _Wrong(f"{size} bytes instead of {self.race.size}")
        if self.race.size is None and size > limit:
            raise _Wrong(f"{size} bytes, more than {limit} of a file whose size is not known")
        self.race.told_size(size)

    def _receive(self, response: httpx.Response) -> None:
        """The body into `partial`, never more than it may be. Raises _Broken when it is short or a trickle."""
        partial, rules = self.partial, self.race.rules
        size = self.race.size if self.race.size is not None else partial.size
        limit = size if size is not None else rules.most
        since, had = time.monotonic(), partial.done
        for chunk in pieces(response):
            self._leave_if_cancelled()
            partial.append(chunk[: limit - partial.done + 1])
            if partial.done > limit:
                raise self._set_aside(f"more than {limit} bytes")
            self.race.show()
            if (passed := time.monotonic() - since) >= rules.window:
                if partial.done - had < rules.least * passed:
                    raise _Broken(f"{partial.done - had} bytes in {passed:.1f} s are too slow")
                since, had = time.monotonic(), partial.done
        if size is not None and partial.done < size:
            raise _Broken(f"the body ended after {partial.done} of {size} bytes")


def _range(response: httpx.Response) -> tuple[int, int | None]:
    """First byte and size of the whole of a 206 (RFC 9110 §14.4). Raises _Broken."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if not found:
        raise _Broken("a part of a file that does not say which")
    return int(found[1]), None if found[3] == "*" else int(found[3])
