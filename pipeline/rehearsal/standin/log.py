"""Log lines: one time, one level, one sentence, on stderr."""

from __future__ import annotations

import sys
from datetime import UTC, datetime


def say(sentence: str, *, level: str = "info") -> None:
    """Write one line; it is flushed at once, for a supervisor forwards it."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
    sys.stderr.write(f"{now}Z {level} {' '.join(sentence.split())}\n")
    sys.stderr.flush()


def warn(sentence: str) -> None:
    """Write a line that somebody should read."""
    say(sentence, level="warning")
