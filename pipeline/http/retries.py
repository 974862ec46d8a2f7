"""One policy for retries: which failures may pass, how many attempts, how long the pauses."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from pipeline.core.errors import PipelineError
from pipeline.http import headers

Sleep = Callable[[float], None]
T = TypeVar("T")

PAUSES = (0.5, 1.5, 4.0, 8.0)  # seconds before each further attempt, with jitter
LONGEST_PAUSE = 60.0  # seconds; the limit of Retry-After
AGAIN = frozenset({408, 425, 429, *range(500, 600)})  # statuses to retry; CDNs have their own 5xx
# Refused, unknown host, TLS, filtered, a redirect to nowhere: a retry within seconds would not help, and a user waits.
FINAL = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.TooManyRedirects,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)


class Retry(Exception):
    """An attempt failed and another may not: `retrying` raises `problem` if none is left."""

    def __init__(self, problem: PipelineError, response: httpx.Response | None) -> None:
        super().__init__(problem.summary)
        self.problem = problem
        self.response = response  # can request a pause


def failed(problem: PipelineError, cause: httpx.Response | Exception) -> Retry | PipelineError:
    """Return what an attempt must raise: `problem`, or a Retry of it if the cause may pass."""
    if isinstance(cause, httpx.Response):
        return Retry(problem, cause) if cause.status_code in AGAIN else problem
    return problem if isinstance(cause, FINAL) else Retry(problem, None)


def retrying(attempt: Callable[[], T], sleep: Sleep | None = None) -> T:
    """Call `attempt` until it raises no Retry, with growing pauses."""
    for pause in PAUSES:
        try:
            return attempt()
        except Retry as retry:
            (sleep or time.sleep)(pause_after(retry.response, pause))
    try:
        return attempt()
    except Retry as retry:
        raise retry.problem from None


def reason(error: Exception) -> str:
    """Return an error's message, else its type."""
    return str(error) or type(error).__name__


def pause_after(response: httpx.Response | None, pause: float, longest: float = LONGEST_PAUSE) -> float:
    """Return the seconds before the next attempt: what the server requests, else `pause`, with jitter."""
    if response is not None and (requested := headers.retry_after(response)) is not None:
        return min(requested, longest)
    return pause * random.uniform(0.75, 1.25)
