"""How checks are run and recorded: each with its time, logged as it ends, its failure as one message."""

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
        self.where = where  # what it runs on, for the report
        self._tier = tier
        self.log = log
        self._checks: list[Check] = []
        self.step = ""  # the part of the tier that the next checks belong to

    @contextmanager
    def check(self, name: str) -> Iterator[Callable[[str], None]]:
        """One check; call what it yields with what was seen. An assertion or a docker failure makes it fail.

        A failure does not end the tier: the next checks show more. Use `failed` to stop where that makes no sense.
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
            details.append(_last_words(error))
        except (OSError, ValueError, KeyError) as error:
            details.append(f"{type(error).__name__}: {error}")
        finally:
            took = round(time.monotonic() - started, 2)
            check = Check(name=name, state=state, seconds=took, detail="; ".join(details), step=self.step)
            self._checks.append(check)
            mark = "✓" if state == State.PASSED else "✗"
            self.log.say(f"{mark} {name} · {seconds(check.seconds)}  {check.detail}")

    def left(self, name: str, reason: str) -> None:
        """A check that does not run here, with its reason."""
        self._checks.append(Check(name=name, state=State.NOT_RUN, seconds=0.0, detail=reason, step=self.step))
        self.log.say(f"- {name} not run: {reason}")

    @property
    def failed(self) -> bool:
        """Whether a check has failed so far."""
        return any(check.state == State.FAILED for check in self._checks)

    def report(self, trouble: str | None = None) -> TierReport:
        """What was recorded. `trouble`: what was wrong with the machine that it ran on, which then is the reason."""
        first = next((check for check in self._checks if check.state == State.FAILED), None)
        return TierReport(
            tier=self._tier,
            state=State.PASSED if first is None and self._checks else State.FAILED,
            reason="; ".join(filter(None, (f"{first.name}: {first.detail}" if first else "", trouble))),
            where=self.where,
            checks=tuple(self._checks),
        )


def not_run(tier: Tier, reason: str) -> TierReport:
    """A tier that could not run, with its reason."""
    return TierReport(tier=tier, state=State.NOT_RUN, reason=reason, where="", checks=())


def _last_words(error: DockerException) -> str:
    output = (error.stderr or "").strip() or (error.stdout or "").strip()
    return f"exit code {error.return_code}: {' / '.join(output.splitlines()[-3:]) or 'no output'}"
