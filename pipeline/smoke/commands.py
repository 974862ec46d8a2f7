"""Tier `commands`: each program of the image answers with the locked version, in a container of its platform.

Natively, or under qemu-user for a foreign platform: even a version query can stall there, so each has a timeout and a
few tries, and the emulator is tried with something trivial before the image is blamed.
"""

from __future__ import annotations

import re
import uuid

from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException

from pipeline.lock import Lock
from pipeline.log import Log
from pipeline.smoke import inside
from pipeline.smoke.load import Loaded
from pipeline.smoke.record import Recorder

LABEL = "io.github.dind-k3s.smoke"
_TRIES = 3
_SECONDS = {True: 20.0, False: 90.0}  # native? Emulated ones take up to 2 s on a quiet machine

# Command → the component whose version its output must name; None: an answer is enough.
_COMMANDS = (
    (("dockerd", "--version"), "docker"),
    (("docker", "--version"), "docker"),
    (("containerd", "--version"), None),
    (("ctr", "--version"), None),
    (("runc", "--version"), None),
    (("docker-init", "--version"), None),
    (("docker", "buildx", "version"), "buildx"),
    (("docker", "compose", "version"), "compose"),
    (("kubectl", "version", "--client"), "kubectl"),
    (("k3s", "--version"), "k3s"),
    (("supervisord", "--version"), None),
    (("python3", "-c", "import ssl, json; print(ssl.OPENSSL_VERSION)"), None),
    (("/usr/local/sbin/dind-k3s-entrypoint", "echo", "the entrypoint runs a command"), None),
    (("doctor", "--help"), None),
    (("wait-ready", "--help"), None),
)

# iptables opens a netlink socket even for its version, and qemu-user refuses that (facts: docs/smoke.md).
_NATIVE_ONLY = ((("iptables", "--version"), None),)


def run(client: DockerClient, image: Loaded, lock: Lock, recorder: Recorder, log: Log, *, native: bool) -> None:
    """All checks of the tier, in one container that sleeps meanwhile."""
    name = f"smoke-{uuid.uuid4().hex[:8]}"
    try:
        with recorder.check("a trivial program") as told:
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
            told(image.confirm(client, name))
            told(_answer(client, name, ("uname", "-m"), log, native=native))
        if recorder.failed:
            return
        for command, component in (*_COMMANDS, *(_NATIVE_ONLY if native else ())):
            with recorder.check(" ".join(command)) as told:
                said = _answer(client, name, command, log, native=native)
                told(said)
                if component is not None:
                    _names_version(said, lock.versions[component])
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


def _answer(client: DockerClient, container: str, command: tuple[str, ...], log: Log, *, native: bool) -> str:
    """The first line that says something; tried again after a timeout or a crash of the emulator."""
    for left in range(_TRIES - 1, -1, -1):
        try:
            output = inside.execute(client, container, command, limit=_SECONDS[native], log=log)
        except inside.Failed as failed:
            # A usage text with exit code 2 is an answer too.
            if failed.code == 2 and "usage" in failed.output.lower():
                return failed.output.splitlines()[0]
            if left and (failed.timed_out or not native) and _runs(client, container):
                log.say(f"  again: {failed}")
                continue
            raise
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        assert lines, f"{' '.join(command)} says nothing"
        return lines[0]
    raise AssertionError("unreachable")


def _names_version(said: str, version: str) -> None:
    """A distribution's `28.5.2+dfsg4` counts as 28.5.2; a longer number does not."""
    wanted = version.removeprefix("v")
    assert re.search(rf"(?<![\d.]){re.escape(wanted)}(?!\d|\.\d)", said), f"expected version {version}"
