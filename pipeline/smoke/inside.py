"""Commands inside a container, each with a hard time limit."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException

from pipeline.core.log import Log

_GRACE = 15.0  # seconds after timeout(1)'s limit until the container is killed
_TIMEOUT, _SIGKILL = 124, 137  # exit codes of timeout(1) after SIGTERM and after SIGKILL


class Failed(AssertionError):
    """A command inside did not exit with 0; the message is one line with its last output."""

    def __init__(
        self, command: tuple[str, ...], limit: float, error: DockerException, *, killed: bool, took: float
    ) -> None:
        self.output = f"{error.stdout or ''}\n{error.stderr or ''}".strip()
        self.code = error.return_code
        # 137 is also the exit code of a command whose container was killed.
        self.timed_out = killed or error.return_code == _TIMEOUT or (error.return_code == _SIGKILL and took >= limit)
        how = f"exit code {error.return_code}"
        if self.timed_out:
            how = f"no end within {limit:g} s" + (", so the container was killed" if killed else "")
        last = " / ".join(line for line in self.output.splitlines()[-4:] if line.strip())[-500:]
        super().__init__(f"{' '.join(command)[:120]}: {how}: {last or 'no output'}")


def execute(client: DockerClient, container: str, command: tuple[str, ...], *, limit: float, log: Log) -> str:
    """Return a command's output. `limit`: seconds, enforced by timeout(1) inside. Raises Failed.

    An emulator that stalls can stall timeout(1), too; then the container is killed from outside.
    """
    killed = threading.Event()

    def give_up() -> None:
        killed.set()
        with suppress(DockerException):
            client.kill(container)

    started = time.monotonic()
    killer = threading.Timer(limit + _GRACE, give_up)
    killer.start()
    try:
        with log.waiting(" ".join(command)[:80]):
            return str(client.execute(container, ["timeout", "--kill-after=5", f"{limit:g}", *command]))
    except DockerException as error:
        took = time.monotonic() - started
        raise Failed(command, limit, error, killed=killed.is_set(), took=took) from None
    finally:
        killer.cancel()
