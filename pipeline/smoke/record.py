"""How checks are run and written down: each with its time, told as it ends, its failure as one sentence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from python_on_whales.exceptions import DockerException

from pipeline.log import Log, seconds
from pipeline.release import Check, State, Tier, TierReport


class Recorder:
    """Collects the checks of one tier on one platform."""

    def __init__(self, tier: Tier, where: str, log: Log, *, quiet: bool = False) -> None:
        self._tier = tier
        self._where = where
        self._log = log
        self._quiet = quiet
        self._checks: list[Check] = []

    @contextmanager
    def check(self, name: str) -> Iterator[Callable[[str], None]]:
        """One check; call what it yields with what was seen. An assertion or a docker failure makes it fail.

        A failure does not end the tier: the next checks tell more. Use `failed` to stop where that makes no sense.
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
            check = Check(
                name=name, state=state, seconds=round(time.monotonic() - started, 2), detail="; ".join(details)
            )
            self._checks.append(check)
            if not self._quiet or state == State.FAILED:
                mark = "✓" if state == State.PASSED else "✗"
                self._log.say(f"{mark} {name} · {seconds(check.seconds)}  {check.detail}")

    @property
    def failed(self) -> bool:
        """Whether a check has failed so far."""
        return any(check.state == State.FAILED for check in self._checks)

    def report(self) -> TierReport:
        """What was recorded."""
        first = next((check for check in self._checks if check.state == State.FAILED), None)
        return TierReport(
            tier=self._tier,
            state=State.PASSED if first is None and self._checks else State.FAILED,
            reason=f"{first.name}: {first.detail}" if first else "",
            where=self._where,
            checks=tuple(self._checks),
        )


def not_run(tier: Tier, reason: str) -> TierReport:
    """A tier that could not run, with its reason."""
    return TierReport(tier=tier, state=State.NOT_RUN, reason=reason, where="", checks=())


def _last_words(error: DockerException) -> str:
    said = (error.stderr or "").strip() or (error.stdout or "").strip()
    return f"exit code {error.return_code}: {' / '.join(said.splitlines()[-3:]) or 'no output'}"
