"""The process of a server or an agent: its log lines, its threads and its end."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn


def say(message: str, *, level: str = "info") -> None:
    """Write one line to stderr as logrus does, and flush it for the supervisor that forwards it."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = json.dumps(" ".join(message.split()), ensure_ascii=False)
    sys.stderr.write(f'time="{now}" level={level} msg={text}\n')
    sys.stderr.flush()


def in_background(name: str, work: Callable[[], object]) -> None:
    """Run work in a thread; an unexpected exception in it ends the process."""

    def guarded() -> None:
        try:
            work()
        except Exception:
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=guarded, name=name, daemon=True).start()


def until_stopped() -> None:
    """Wait for SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    say("stopped by a signal; pods stay as they are")


def shut_down(reason: str) -> NoReturn:
    """End because a component failed, with status 0 as k3s does (pkg/signals.RequestShutdown)."""
    say(f'Shutdown request received: "{reason}"', level="error")
    leave()


def leave() -> NoReturn:
    """End with status 0 without waiting for threads: the state is in the store, and dockerd keeps the pods."""
    os._exit(0)
