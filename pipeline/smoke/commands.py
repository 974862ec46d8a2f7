"""Tier `commands`: each program of the image answers with the locked version, in a container of its platform.

Natively, on a virtual engine, or under qemu-user for a non-native platform. Even a version query can stall there, so
each has a timeout and retries; a trivial program runs first, to distinguish the emulator's failures from the image's.
`execute`, a command in a container with a hard time limit, is tier `boot`'s, too.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from contextlib import suppress
from functools import partial

from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException

from pipeline.components import COMPONENTS
from pipeline.core.log import Log
from pipeline.engine.engine import Engine
from pipeline.inputs.lock import Lock
from pipeline.smoke.load import Loaded
from pipeline.smoke.record import Recorder

LABEL = "io.github.dind-k3s.smoke"
_GRACE = 15.0  # seconds after timeout(1)'s limit until the container is killed
_TIMEOUT, _SIGKILL = 124, 137  # exit codes of timeout(1) after SIGTERM and after SIGKILL
_TRIES = 3
_SECONDS = 20.0  # natively
_SECONDS_EMULATED = 90.0  # under qemu-user; up to 2 on an idle machine

# Command → the component whose version its output must contain; None: any output will do.
_COMMANDS = (
    *(
        (program.command, component.name if program.own_version else None)
        for component in COMPONENTS.values()
        for program in component.programs
        if program.command
    ),
    (("supervisord", "--version"), None),
    (("python3", "-c", "import ssl, json; print(ssl.OPENSSL_VERSION)"), None),
    (("/usr/local/sbin/dind-k3s-entrypoint", "echo", "the entrypoint runs a command"), None),
    (("doctor", "--help"), None),
    (("wait-ready", "--help"), None),
)

# iptables opens a netlink socket even to print its version, which qemu-user does not support (docs/smoke.md).
_UNDER_A_KERNEL = ((("iptables", "--version"), None),)


def run(engine: Engine, image: Loaded, lock: Lock, recorder: Recorder, *, emulated: bool) -> None:
    """Run all checks of the tier in one sleeping container. `emulated`: under qemu-user."""
    client = engine.docker
    limit = _SECONDS_EMULATED if emulated else _SECONDS * engine.patience
    name = f"smoke-{uuid.uuid4().hex[:8]}"
    first_line = partial(_first_line, client, name, limit=limit, log=recorder.log, emulated=emulated)
    try:
        with recorder.check("a trivial program") as note:
            client.run(
                image.name,
                ["86400"],
                entrypoint="sleep",
                platform=image.platform.value,
                detach=True,
                networks=["none"],
                init=True,
                labels={LABEL: "commands"},
                name=name,
            )
            note(image.confirm(client, name))
            note(first_line(("uname", "-m")))
        if recorder.failed:
            return
        for command, component in (*_COMMANDS, *(() if emulated else _UNDER_A_KERNEL)):
            with recorder.check(" ".join(command)) as note:
                output = first_line(command)
                note(output)
                if component is not None:
                    _require_version(output, lock.versions[component])
            if recorder.failed and not _runs(client, name):
                return  # a command hung, so the container was killed
    finally:
        if client.container.exists(name):
            client.remove(name, force=True, volumes=True)


def _runs(client: DockerClient, container: str) -> bool:
    try:
        return bool(client.container.inspect(container).state.running)
    except DockerException:
        return False


def _first_line(
    client: DockerClient, container: str, command: tuple[str, ...], *, limit: float, log: Log, emulated: bool
) -> str:
    """Return a command's first line that is not empty. `limit`: seconds.

    Retries after a timeout, and after any failure under qemu-user.
    """
    for left in range(_TRIES - 1, -1, -1):
        try:
            output = execute(client, container, command, limit=limit, log=log)
        except Failed as failed:
            # A usage text with exit code 2 will do.
            if failed.code == 2 and "usage" in failed.output.lower():
                return failed.output.splitlines()[0]
            if left and (failed.timed_out or emulated) and _runs(client, container):
                log.say(f"  again: {failed}")
                continue
            raise
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        assert lines, f"{' '.join(command)} prints nothing"
        return lines[0]
    raise AssertionError("unreachable")


def _require_version(output: str, version: str) -> None:
    """Raise AssertionError unless the output has that version; `28.5.2+dfsg4` counts as 28.5.2, `28.5.20` does not."""
    number = version.removeprefix("v")
    assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d|\.\d)", output), f"expected version {version}"


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
