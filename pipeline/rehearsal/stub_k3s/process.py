"""The process of a server or an agent: its threads and its end."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from . import log


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
    log.say("stopped by a signal; pods stay as they are")


def shut_down(reason: str) -> NoReturn:
    """End because a component failed, with status 0 as k3s does (pkg/signals.RequestShutdown)."""
    log.say(f'Shutdown request received: "{reason}"', level="error")
    leave()


def leave() -> NoReturn:
    """End with status 0 without waiting for threads: the state is in the store, and dockerd keeps the pods."""
    os._exit(0)
