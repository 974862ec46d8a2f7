"""Log lines on stderr, as logrus writes them."""

from __future__ import annotations

import json
import sys
import time


def say(message: str, *, level: str = "info") -> None:
    """Write one line, and flush it for the supervisor that forwards it."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = json.dumps(" ".join(message.split()), ensure_ascii=False)
    sys.stderr.write(f'time="{now}" level={level} msg={text}\n')
    sys.stderr.flush()
