"""Expected failures, each with its exit code.

An error has four parts: expected, found, where, and the next step. Only `__main__` catches these; anything else is a
bug and keeps its traceback. `python -m pipeline errors` prints the table of codes, which is also in docs/exit-codes.md.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of all expected failures: a summary, then expected, found, where, and the next step.

    Every argument but `summary` can be left out when it would repeat the summary.
    """

    exit_code = 1
    kind = "error"

    def __init_subclass__(cls, *, exit_code: int | None = None, kind: str | None = None) -> None:
        cls.exit_code, cls.kind = exit_code or cls.exit_code, kind or cls.kind

    def __init__(
        self,
        summary: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        where: str | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(summary)
        self.summary = summary
        self.expected = expected
        self.found = found
        self.where = where
        self.next_step = next_step

    def lines(self) -> list[str]:
        """Return the message as the user sees it: one line per part, in a fixed order."""
        parts = {"expected": self.expected, "found": self.found, "where": self.where, "next step": self.next_step}
        return [self.summary, *(f"  {name}: {text}" for name, text in parts.items() if text)]

    @property
    def text(self) -> str:
        """The message in one line, for a report."""
        return "; ".join(line.strip() for line in self.lines())

    def __str__(self) -> str:
        return "\n".join(self.lines())


class IntentError(PipelineError, exit_code=2, kind="usage or intent"):
    """versions.yaml, an argument or the environment asks for something impossible."""


class UpstreamError(PipelineError, exit_code=3, kind="upstream unreachable or incomplete"):
    """An origin cannot be reached, or does not have what a release needs."""


class DigestMismatch(PipelineError, exit_code=4, kind="digest mismatch"):
    """Bytes do not have the digest in the lock."""


class LockStale(PipelineError, exit_code=5, kind="lock missing or stale"):
    """The lock was made from another versions.yaml, or there is none."""


class Incompatible(PipelineError, exit_code=6, kind="incompatible versions"):
    """The chosen versions are known not to work together."""


class BuildFailed(PipelineError, exit_code=7, kind="build failed"):
    """BuildKit could not build the image."""


class SmokeFailed(PipelineError, exit_code=8, kind="smoke failed"):
    """A built image does not do what it must."""


class RegistryError(PipelineError, exit_code=9, kind="registry"):
    """A registry refused, or holds something else than was pushed."""


class VerificationFailed(PipelineError, exit_code=10, kind="verification failed"):
    """What was read back is not what was released, a signature is invalid, or a provenance level is too low."""


class EngineError(PipelineError, exit_code=11, kind="engine or machine"):
    """No engine can do the job, or the machine lacks what one needs."""


class Slower(PipelineError, exit_code=12, kind="benchmark regression"):
    """A benchmark's ratio is worse than the committed one beyond its factor."""
