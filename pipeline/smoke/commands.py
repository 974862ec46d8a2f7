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
from pipeline.platforms import Platform
from pipeline.smoke.record import Recorder

LABEL = "io.github.dind-k3s.smoke"
_TRIES = 3
_SECONDS = {True: 20, False: 90}  # native?
_TIMED_OUT = 124  # exit code of timeout(1)

# Command → the component whose version its output must name; None: an answer is enough.
_COMMANDS = (
    (("dockerd", "--version"), "docker"),
    (("docker", "--version"), "docker"),
    (("containerd", "--version"), None),
    (("runc", "--version"), None),
    (("docker-init", "--version"), None),
    (("docker", "buildx", "version"), "buildx"),
    (("docker", "compose", "version"), "compose"),
    (("kubectl", "version", "--client"), "kubectl"),
    (("k3s", "--version"), "k3s"),
    (("supervisord", "--version"), None),
    (("doctor", "--help"), None),
    (("wait-ready", "--help"), None),
)

# iptables opens a netlink socket even for its version, and qemu-user refuses that (facts: docs/smoke.md).
_NATIVE_ONLY = ((("iptables", "--version"), None),)


def run(client: DockerClient, image: str, platform: Platform, lock: Lock, recorder: Recorder, *, native: bool) -> None:
    """All checks of the tier, in one container that sleeps meanwhile."""
    container = client.run(
        image,
        ["86400"],
        entrypoint="sleep",
        platform=platform.value,
        detach=True,
        remove=True,
        networks=["none"],
        init=True,
        labels={LABEL: "commands"},
        name=f"smoke-{uuid.uuid4().hex[:8]}",
    )
    try:
        with recorder.check("a trivial program") as told:
            told(_answer(client, container.name, ("uname", "-m"), native=native))
        if recorder.failed:
            return
        for command, component in (*_COMMANDS, *(_NATIVE_ONLY if native else ())):
            with recorder.check(" ".join(command)) as told:
                said = _answer(client, container.name, command, native=native)
                told(said)
                if component is not None:
                    _names_version(said, lock.versions[component])
    finally:
        client.remove(container, force=True, volumes=True)


def _answer(client: DockerClient, container: str, command: tuple[str, ...], *, native: bool) -> str:
    """The first line that says something; tried again after a timeout or a crash of the emulator."""
    limit = _SECONDS[native]
    for attempt in range(1, _TRIES + 1):
        try:
            output = client.execute(container, ["timeout", str(limit), *command])
        except DockerException as error:
            # A usage text with exit code 2 is an answer too.
            said = f"{error.stdout or ''}\n{error.stderr or ''}".strip()
            if error.return_code == 2 and "usage" in said.lower():
                return said.splitlines()[0]
            if attempt < _TRIES and (error.return_code == _TIMED_OUT or not native):
                continue
            reason = f"no answer within {limit} s" if error.return_code == _TIMED_OUT else said[-300:] or "no output"
            raise AssertionError(f"{' '.join(command)}: exit code {error.return_code}: {reason}") from None
        lines = [line.strip() for line in str(output).splitlines() if line.strip()]
        assert lines, f"{' '.join(command)} says nothing"
        return lines[0]
    raise AssertionError("unreachable")


def _names_version(said: str, version: str) -> None:
    """A distribution's `28.5.2+dfsg4` counts as 28.5.2; a longer number does not."""
    wanted = version.removeprefix("v")
    assert re.search(rf"(?<![\d.]){re.escape(wanted)}(?!\d|\.\d)", said), f"expected version {version}"
