"""Runs and records checks, each with its time, a log line at its end, and its failure as one message."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from python_on_whales.exceptions import DockerException

from pipeline.core.log import Log, seconds
from pipeline.core.records import Check, State, Tier, TierReport


class Recorder:
    """Collects the checks of one tier on one platform."""

    def __init__(self, tier: Tier, where: str, log: Log) -> None:
        self.where = where  # the engine, for the report
        self._tier = tier
        self.log = log
        self._checks: list[Check] = []
        self.step = ""  # the part of the tier that the next checks belong to

    @contextmanager
    def check(self, name: str) -> Iterator[Callable[[str], None]]:
        """Record one check; yields a function to add details. AssertionError or a docker failure make it fail.

        The checks after a failure still run; use `failed` to stop where they make no sense.
        """
        details: list[str] = []
        started = time.monotonic()
        state = State.FAILED
        try:
            yield details.append
            state = State.PASSED
        except AssertionError as error:
            details.append(str(error))
        except DockerException as error:
            details.append(_reason(error))
        except (OSError, ValueError, KeyError) as error:
            details.append(f"{type(error).__name__}: {error}")
        finally:
            took = round(time.monotonic() - started, 2)
            check = Check(name=name, state=state, seconds=took, detail="; ".join(details), step=self.step)
            self._checks.append(check)
            mark = "✓" if state == State.PASSED else "✗"
            self.log.say(f"{mark} {name} · {seconds(check.seconds)}  {check.detail}")

    def skip(self, name: str, reason: str) -> None:
        """Record a check that does not run."""
        self._checks.append(Check(name=name, state=State.NOT_RUN, seconds=0.0, detail=reason, step=self.step))
        self.log.say(f"- {name} not run: {reason}")

    @property
    def failed(self) -> bool:
        """Whether a check has failed so far."""
        return any(check.state == State.FAILED for check in self._checks)

    def report(self, trouble: str | None = None) -> TierReport:
        """Return the report of the tier. `trouble`: what was wrong with its machine, added to the reason."""
        first = next((check for check in self._checks if check.state == State.FAILED), None)
        return TierReport(
            tier=self._tier,
            state=State.PASSED if first is None and self._checks else State.FAILED,
            reason="; ".join(filter(None, (f"{first.name}: {first.detail}" if first else "", trouble))),
            where=self.where,
            checks=tuple(self._checks),
        )


def not_run(tier: Tier, reason: str) -> TierReport:
    """Return the report of a tier that could not run."""
    return TierReport(tier=tier, state=State.NOT_RUN, reason=reason, where="", checks=())


def _reason(error: DockerException) -> str:
    output = (error.stderr or "").strip() or (error.stdout or "").strip()
    return f"exit code {error.return_code}: {' / '.join(output.splitlines()[-3:]) or 'no output'}"
