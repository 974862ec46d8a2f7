"""Tier `commands`: each program of the image answers with the locked version, in a container of its platform.

Natively, on a virtual engine, or under qemu-user for a non-native platform: even a version query can stall there, so
each has a timeout and a few tries, and the emulator is tried with something trivial before the image is blamed.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException

from pipeline.components import COMPONENTS
from pipeline.core.log import Log
from pipeline.engine.engine import Engine
from pipeline.inputs.lock import Lock
from pipeline.smoke import inside
from pipeline.smoke.load import Loaded
from pipeline.smoke.record import Recorder

LABEL = "io.github.dind-k3s.smoke"
_TRIES = 3
_SECONDS = 20.0  # natively
_SECONDS_EMULATED = 90.0  # under qemu-user; on a quiet machine they take up to 2

# Command → the component whose version its output must name; None: an answer is enough.
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

# iptables opens a netlink socket even for its version, and qemu-user refuses that (facts: docs/smoke.md).
_UNDER_A_KERNEL = ((("iptables", "--version"), None),)


def run(engine: Engine, image: Loaded, lock: Lock, recorder: Recorder, *, emulated: bool) -> None:
    """All checks of the tier, in one container that sleeps meanwhile. `emulated`: under qemu-user."""
    client = engine.docker
    ask = _Asking(
        client, _SECONDS_EMULATED if emulated else _SECONDS * engine.patience, recorder.log, emulated=emulated
    )
    name = f"smoke-{uuid.uuid4().hex[:8]}"
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
            note(ask.answer(name, ("uname", "-m")))
        if recorder.failed:
            return
        for command, component in (*_COMMANDS, *(() if emulated else _UNDER_A_KERNEL)):
            with recorder.check(" ".join(command)) as note:
                answer = ask.answer(name, command)
                note(answer)
                if component is not None:
                    _names_version(answer, lock.versions[component])
            if recorder.failed and not _runs(client, name):
                return  # it was killed because a command hung; the others cannot be asked
    finally:
        if client.container.exists(name):
            client.remove(name, force=True, volumes=True)


def _runs(client: DockerClient, container: str) -> bool:
    try:
        return bool(client.container.inspect(container).state.running)
    except DockerException:
        return False


@dataclass(frozen=True)
class _Asking:
    """How a command is asked: with which limit in seconds, and again when."""

    client: DockerClient
    limit: float
    log: Log
    emulated: bool

    def answer(self, container: str, command: tuple[str, ...]) -> str:
        """The first line that is not empty; tried again after a timeout or a crash of the emulator."""
        for left in range(_TRIES - 1, -1, -1):
            try:
                output = inside.execute(self.client, container, command, limit=self.limit, log=self.log)
            except inside.Failed as failed:
                # A usage text with exit code 2 is an answer too.
                if failed.code == 2 and "usage" in failed.output.lower():
                    return failed.output.splitlines()[0]
                if left and (failed.timed_out or self.emulated) and _runs(self.client, container):
                    self.log.say(f"  again: {failed}")
                    continue
                raise
            lines = [line.strip() for line in output.splitlines() if line.strip()]
            assert lines, f"{' '.join(command)} prints nothing"
            return lines[0]
        raise AssertionError("unreachable")


def _names_version(output: str, version: str) -> None:
    """A distribution's `28.5.2+dfsg4` counts as 28.5.2; a longer number does not."""
    wanted = version.removeprefix("v")
    assert re.search(rf"(?<![\d.]){re.escape(wanted)}(?!\d|\.\d)", output), f"expected version {version}"
