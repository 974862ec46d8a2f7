"""The clock of the day, when somebody sets it while everything runs.

Nothing of ours goes by it. Certificates and the tokens of pods do, so watch.py reports a jump and helps where it can. A
pod's token is good from the moment that it is made, and kubelet keeps it for most of an hour: after a jump back
the API refuses it («service account token is not valid yet») until that moment comes again, or until a new kubelet asks
for others.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

ENOUGH = 60.0  # seconds; what is less is a correction


def offset() -> float:
    """From the clock that cannot be set to the one of the day.

    CLOCK_BOOTTIME continues while a machine is suspended, as the clock of the day does; CLOCK_MONOTONIC does not.
    A laptop that slept has had no jump. A virtual machine that was paused has: nothing in it counted meanwhile.
    """
    return time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """Looked at now and then."""

    def __init__(self) -> None:
        self._offset = offset()

    def jump(self) -> float:
        """Seconds by which it was set since the last look, below 0 for back; 0 when it was not.

        A clock that is slewed moves by milliseconds between two looks.
        """
        before, self._offset = self._offset, offset()
        by = self._offset - before
        return by if abs(by) >= ENOUGH else 0.0


def description(by: float, now: datetime | None = None) -> str:
    """A jump in words."""
    size = timedelta(seconds=round(abs(by)))
    text = (now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M:%S")
    return f"the clock was set {'forward' if by > 0 else 'back'} by {size}, to {text} UTC"
