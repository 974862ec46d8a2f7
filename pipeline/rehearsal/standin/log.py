"""Log lines on stderr, as logrus writes them."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime


def say(sentence: str, *, level: str = "info") -> None:
    """Write one line; it is flushed at once, for a supervisor forwards it."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    message = json.dumps(" ".join(sentence.split()), ensure_ascii=False)
    sys.stderr.write(f'time="{now}" level={level} msg={message}\n')
    sys.stderr.flush()


def warn(sentence: str) -> None:
    """Write a line that somebody should read."""
    say(sentence, level="warning")
