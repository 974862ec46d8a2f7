"""One file of the lock from whichever of its URLs has it first.

Each URL that is asked gets a `Lane`, a thread with a partial file of its own. The first URL is asked first; the next
one starts beside it as soon as it fails, pauses or is slow. The first lane whose bytes have the lock's digest wins and
the others are cancelled. Which server is honest or fast need not be known beforehand.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx

from pipeline.core.errors import DigestMismatch, PipelineError, UpstreamError
from pipeline.core.log import Transfer
from pipeline.core.names import Digest
from pipeline.fetch.attempt import Goal, Lane, Refused, Rules, Wrong
from pipeline.http.transport import NEXT_STEP, shown

_POLL = 0.2  # seconds between two looks at the lanes when nothing happens
_LEAVING = 2.0  # seconds that a cancelled lane gets to write down what is safe, or to remove it
_RULES = Rules()


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
    for the next run (partial.py); wrong bytes are set aside as `<target>.<n>.bad`. `stop`: set by the caller to end
    early. `tell` gets a sentence about whatever a person should know although it went well.

    Raises DigestMismatch when every URL that answers has other bytes, UpstreamError when none has the file or one that
    might have it cannot be reached, EngineError when the disk is full.
    """
    if not urls:
        raise UpstreamError(f"no URL for {digest}")
    target.parent.mkdir(parents=True, exist_ok=True)
    race = _Race(urls, transfer, stop or threading.Event())
    goal = Goal(
        client=client,
        target=target,
        digest=digest,
        size=size,
        rules=rules,
        tell=tell,
        changed=race.changed,
        show=race.show,
        told_size=transfer.total,
    )
    return race.run(goal)


class _Race:
    """All lanes of one file."""

    def __init__(self, urls: Sequence[str], transfer: Transfer, stop: threading.Event) -> None:
        self.changed = threading.Condition()
        self._transfer = transfer
        self._stop = stop
        self._shown = 0
        self._waiting = list(dict.fromkeys(urls))
        self._lanes: list[Lane] = []

    def run(self, goal: Goal) -> int:
        """Bring the file; returns its bytes. Raises what `download` does."""
        try:
            winner = self._winner(goal)
        except BaseException:
            self._end(keep=True)
            raise
        self._end(keep=False)
        self.show()
        return winner.partial.done

    def _winner(self, goal: Goal) -> Lane:
        """Start lanes as they are needed until one has won. Raises what `download` does."""
        self._start(goal)
        with self.changed:
            while True:
                for lane in self._lanes:
                    if isinstance(lane.outcome, BaseException) and not isinstance(lane.outcome, Wrong | UpstreamError):
                        raise lane.outcome
                    if lane.outcome is True:
                        return lane
                if self._stop.is_set():
                    raise UpstreamError("ended before it was complete")
                if self._lanes[-1].wants_a_rival and self._waiting:
                    self._start(goal)
                elif not self._waiting and all(lane.outcome is not None for lane in self._lanes):
                    raise _failure(goal, {lane.url: lane.outcome for lane in self._lanes})
                else:
                    self.changed.wait(min(_POLL, goal.rules.hedge))

    def _start(self, goal: Goal) -> None:
        lane = Lane(goal, self._waiting.pop(0))
        self._lanes.append(lane)
        lane.thread.start()

    def _end(self, *, keep: bool) -> None:
        """Cancel who still runs; `keep`: their bytes are for the next run, else they are removed."""
        leaving = [lane for lane in self._lanes if lane.thread.is_alive() and lane.cancel(keep=keep)]
        deadline = time.monotonic() + _LEAVING
        for lane in leaving:
            lane.thread.join(max(0.0, deadline - time.monotonic()))
        for lane in self._lanes:  # one that waits for a silent server has not gone yet, and leaves nothing all the same
            if lane.opened and lane.outcome is not True and not (keep and lane.partial.record.exists()):
                lane.partial.unlink()

    def show(self) -> None:
        """Move the bar to the lane that has most."""
        with self.changed:
            most = max((lane.partial.done for lane in self._lanes if lane.opened), default=0)
            if most != self._shown:
                self._transfer.advance(most - self._shown)
                self._shown = most


def _failure(goal: Goal, outcomes: Mapping[str, bool | BaseException | None]) -> PipelineError:
    """What to raise when no URL had it: exit code 4 if all that is known is that the bytes are wrong."""
    wrong = {url: o.found for url, o in outcomes.items() if isinstance(o, Wrong) and not isinstance(o, Refused)}
    refused = {url: o.found for url, o in outcomes.items() if isinstance(o, Refused)}
    failed = {url: o for url, o in outcomes.items() if isinstance(o, UpstreamError)}
    if failed and len(outcomes) == 1:
        return next(iter(failed.values()))
    found = {**refused, **wrong, **{url: error.found or error.summary for url, error in failed.items()}}
    if wrong and not failed:
        found = wrong
    where = list(found)[-1]
    said = found[where] if len(found) == 1 else "; ".join(f"{shown(url)}: {text}" for url, text in found.items())
    if wrong and not failed:
        return DigestMismatch(
            f"{goal.target.name[:12]}…: the downloaded bytes are not the ones that the lock names",
            expected=f"{goal.digest}" + (f", {goal.size} bytes" if goal.size is not None else ""),
            found=said,
            where=shown(where),
            next_step="do not trust that file; if the vendor replaced it on purpose: nox -s resolve, review the diff",
        )
    return UpstreamError(
        "a file of the lock cannot be downloaded",
        expected=f"{goal.digest} from one of {len(outcomes)} URLs" if len(outcomes) > 1 else "status 200",
        found=said,
        where=shown(where),
        next_step=NEXT_STEP,
    )
