"""The containers that `bench start` compares.

ours    the image as it is
bare    the same image without its entrypoint: usual/by-hand starts dockerd and k3s
dind    the same image as docker:dind does it: docker-init, then dockerd
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException

from pipeline.bench import processes
from pipeline.core import stub
from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.rehearsal import clamp, pause
from pipeline.smoke.booted import BootOptions

LIMIT = 240.0  # seconds for any wait: a real k3s on a busy machine


class Kind(StrEnum):
    """How dockerd and k3s are started in a box."""

    OURS = "ours"
    BARE = "bare"
    DIND = "dind"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where boxes are made."""

    client: DockerClient
    image: str
    pod: bytes  # a docker archive of pause.NAME, the image of the pods: it sleeps, and ignores SIGTERM as process 1
    k3s: str  # its version, as it reports it
    clamp: BootOptions  # for machines whose root may not lower oom_score_adj (pipeline/rehearsal/clamp.py)

    @property
    def stub(self) -> bool:
        """Whether k3s is a rehearsal's stub, not a real one."""
        return self.k3s.endswith(stub.SUFFIX)


def place(client: DockerClient, image: str, pod: bytes, folder: Path) -> Place:
    """Return what boxes need. `pod`: see Place; `folder`: one that the engine sees, too."""
    reported = str(client.run(image, ["--version"], entrypoint="k3s", remove=True, networks=["none"]))
    version = reported.split()[2]  # k3s version v1.37.1+k3s1 (0123abcd)
    own = clamp.apply(BootOptions(), folder, Log(quiet=True))
    return Place(client=client, image=image, pod=pod, k3s=version, clamp=own)


@dataclass(kw_only=True)
class Box:
    """One privileged container with two named volumes."""

    place: Place
    kind: Kind
    environment: Mapping[str, str] = field(default_factory=dict)
    name: str = field(default_factory=lambda: f"bench-{uuid.uuid4().hex[:8]}")
    pid: int = 0  # of its first process, as we see it
    began: float = 0.0  # time.time() before the last start

    def run(self) -> None:
        """`docker run`."""
        own = self.place.clamp
        settings = {"K3S_ARGS": pause.K3S_ARGS, "DOCKER_ARGS": "", **own.extra_environment, **self.environment}
        volumes = [*self._volumes.items(), *((file, inside, "ro") for file, inside in own.extra_files)]
        more: dict[str, Any] = {}
        if self.kind is not Kind.OURS:
            script = (Path(__file__).parent / "usual/by-hand").read_text(encoding="utf-8")
            more = {"entrypoint": "/bin/bash", "command": ["-c", script, "by-hand", self.kind.value]}
        run = partial(self.place.client.run, self.place.image, detach=True, privileged=True, **more)
        self._start(partial(run, name=self.name, hostname=self.name, volumes=volumes, envs=settings))

    def restart(self) -> None:
        """`docker restart`."""
        self._start(lambda: self.place.client.restart(self.name))

    def start(self) -> None:
        """`docker start`."""
        self._start(lambda: self.place.client.start(self.name))

    def _start(self, command: Callable[[], object]) -> None:
        self.began = time.time()
        try:
            command()
        except DockerException as error:
            raise EngineError("the engine cannot start the container", found=str(error.stderr or error)) from None
        self.pid = processes.first(self.place.client.container.inspect(self.name).id)
        if not self.pid:
            raise EngineError("the container ended at once", found=self.last_lines())

    def kill(self) -> None:
        """SIGKILL to everything in it."""
        self.place.client.kill(self.name)
        self.place.client.wait(self.name)

    def stop(self) -> tuple[float, int]:
        """`docker stop`; return seconds and exit code."""
        started = time.monotonic()
        self.place.client.stop(self.name)
        code = self.place.client.container.inspect(self.name).state.exit_code
        return time.monotonic() - started, -1 if code is None else code

    @property
    def _volumes(self) -> dict[str, str]:
        return {f"{self.name}-docker": "/var/lib/docker", f"{self.name}-k3s": "/app/k3s"}

    def last_lines(self) -> str:
        """Return the end of `docker logs`."""
        with suppress(DockerException):
            return "; ".join(str(self.place.client.logs(self.name, tail=12)).splitlines())
        return "no log"

    def until(self, what: str, ask: Callable[[], object], every: float = 0.02) -> float:
        """Poll until the answer is true, every `every` seconds; return time.time().

        OSError counts as false. Raises EngineError at the deadline, or when the container ended.
        """
        deadline = time.monotonic() + LIMIT
        last = ""
        while True:
            try:
                if ask():
                    return time.time()
            except OSError as error:
                last = str(error)
            ended = not Path(f"/proc/{self.pid}").exists()
            if ended or time.monotonic() > deadline:
                how = "the container ended" if ended else f"not within {LIMIT:g} s"
                reasons = "; ".join(part for part in (last, self.last_lines()) if part)
                raise EngineError(f"{what}: {how}", found=reasons)
            time.sleep(every)

    def remove(self) -> None:
        """Remove it with its volumes."""
        with suppress(DockerException):
            self.place.client.remove(self.name, force=True, volumes=True)
        for volume in self._volumes:
            with suppress(DockerException):
                self.place.client.volume.remove(volume)


@contextmanager
def box(place: Place, kind: Kind, **environment: str) -> Iterator[Box]:
    """Start a box (`docker run`) and remove it at the end."""
    made = Box(place=place, kind=kind, environment=environment)
    try:
        made.run()
        yield made
    finally:
        made.remove()
