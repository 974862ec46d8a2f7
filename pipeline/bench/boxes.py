"""The containers that `bench start` compares, and how the start of one is watched.

ours    the image as it is
bare    the same image without its entrypoint: a script does by hand what is necessary, and no more
dind    the same image as docker:dind does it: docker-init, then dockerd
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException

from pipeline.bench import processes, reach
from pipeline.bench.reach import Cluster
from pipeline.core import machine, stub
from pipeline.core.errors import EngineError
from pipeline.rehearsal import clamp, pause

LIMIT = 240.0  # seconds for any wait: a real k3s on a busy machine
LOOK = 0.005  # seconds between two looks at a start
IN_POD = "k8s_one_"  # how the containers of our pods begin: cri-dockerd's names, and the name in reach.py
POD = pause.NAME  # the image of the pods: it sleeps, and as process 1 it ignores SIGTERM


class Kind(StrEnum):
    """What a box is."""

    OURS = "ours"
    BARE = "bare"
    DIND = "dind"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where boxes are made."""

    client: DockerClient
    image: str
    pod: bytes  # a docker archive of the image POD
    k3s: str  # its version, as it reports it
    runtime: Path | None  # for machines whose root may not lower oom_score_adj (pipeline/rehearsal/clamp.py)

    @property
    def stub(self) -> bool:
        """Whether k3s is a rehearsal's stub, not a real one."""
        return self.k3s.endswith(stub.SUFFIX)


def place(client: DockerClient, image: str, pod: bytes, folder: Path) -> Place:
    """Return what boxes need. `pod`: see Place; `folder` is one that the engine sees, too."""
    runtime = None
    if not machine.has_capability(machine.CAP_SYS_RESOURCE):
        runtime = folder / "runc-clamped"
        runtime.write_text(clamp.RUNTIME, encoding="ascii")
        runtime.chmod(0o755)
    reported = str(client.run(image, ["--version"], entrypoint="k3s", remove=True, networks=["none"]))
    version = reported.split()[2]  # k3s version v1.37.1+k3s1 (0123abcd)
    return Place(client=client, image=image, pod=pod, k3s=version, runtime=runtime)


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
        settings = {"K3S_ARGS": pause.K3S_ARGS, "DOCKER_ARGS": "", **self.environment}
        volumes: list[Any] = [*self._volumes.items()]
        if self.place.runtime is not None:
            settings["DOCKER_ARGS"] = clamp.ARGUMENTS
            volumes.append((self.place.runtime, clamp.INSIDE, "ro"))
        more: dict[str, Any] = {}
        if self.kind is not Kind.OURS:
            script = (Path(__file__).parent / "usual/by-hand").read_text(encoding="utf-8")
            more = {"entrypoint": "/bin/bash", "command": ["-c", script, "by-hand", self.kind.value]}
        run = partial(self.place.client.run, self.place.image, detach=True, privileged=True, **more)
        self._start(partial(run, name=self.name, hostname=self.name, volumes=volumes, envs=settings))

    def restart(self) -> None:
        """`docker restart`."""
        self._start(lambda: self.place.client.restart(self.name))

    def kill(self) -> None:
        """SIGKILL to everything in it."""
        self.place.client.kill(self.name)
        self.place.client.wait(self.name)

    def start(self) -> None:
        """`docker start`."""
        self._start(lambda: self.place.client.start(self.name))

    def _start(self, do: Callable[[], object]) -> None:
        self.began = time.time()
        try:
            do()
        except DockerException as error:
            raise EngineError("the engine cannot start the container", found=str(error.stderr or error)) from None
        self.pid = processes.first(self.place.client.container.inspect(self.name).id)
        if not self.pid:
            raise EngineError("the container has ended at once", found=self.last_lines())

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
        """Ask until the answer is true; OSError is a no. Return time.time(). Raises EngineError at the deadline."""
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
                how = "the container has ended" if ended else f"not within {LIMIT:g} s"
                reasons = "; ".join(part for part in (last, self.last_lines()) if part)
                raise EngineError(f"{what}: {how}", found=reasons)
            time.sleep(every)

    def pods_running(self) -> int:
        """Return how many containers of our pods run."""
        return reach.running(self.pid, IN_POD)

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


# The stages of a start, in their order: what happens until then. Seconds since the clock of the command began.
STAGES = {
    "entrypoint": "engine, runc, bash",
    "dockerd exec": "until dockerd is executed",
    "dockerd answers": "dockerd starts",
    "cluster": "API, node and service account",
    "network": "flannel",
    "cluster is told": "until wait-ready returns",
    "pod": "first pod runs",
}
CPU = "processor"  # besides the stages: seconds that our first process and its children had used when dockerd came


class Until(StrEnum):
    """What a start is watched until."""

    DOCKER = "dockerd answers"
    CLUSTER = "the cluster is ready"
    POD = "a new pod runs"
    SAME_POD = "the pod of an earlier life runs again"


def watch(box: Box, until: Until = Until.CLUSTER) -> dict[str, float]:
    """Look at a start until it is through; return stage → seconds since `box.began`. Raises EngineError.

    A new pod is made as soon as pods can have a network: ours when wait-ready returns, by hand when node, account and
    network are there. One that is made before waits for kubelet's back-off, 10 s and more.
    """
    at: dict[str, float] = {}
    more: dict[str, float] = {}
    ours = box.kind is Kind.OURS
    if ours:
        at["dockerd exec"] = box.until("dockerd to be started", lambda: _has_dockerd(box), LOOK)
        more[CPU] = processes.cpu(box.pid)
    at["dockerd answers"] = box.until("dockerd to answer", lambda: reach.dockerd(box.pid, "GET", "/_ping"), LOOK)
    if until is not Until.DOCKER:
        with ThreadPoolExecutor(1) as pool, closing(Cluster(box.pid)) as cluster:
            loading = pool.submit(reach.load, box.pid, box.place.pod) if until is Until.POD else None
            at["cluster"] = box.until("the cluster to be ready", cluster.ready, LOOK)
            if not box.place.stub:  # which has no network of its own
                at["network"] = _written(box, "run/flannel/subnet.env")
            if until is Until.SAME_POD:  # what the API says of it is of its earlier life
                at["pod"] = box.until("a pod to run again", lambda: box.pods_running() > 0)
            if ours:
                at["cluster is told"] = _written(box, "run/dind-k3s/ready/k8s")
            if loading is not None:
                loading.result()
                cluster.run("first", POD)
                at["pod"] = box.until("a pod to run", lambda: cluster.pods() > 0)
    if ours:
        at["entrypoint"] = _first_line(box)
    return {**{stage: at[stage] - box.began for stage in STAGES if stage in at}, **more}


def _has_dockerd(box: Box) -> bool:
    """Whether a child of the first process has become dockerd; a script starts it, which is there before."""
    for child in processes.children(box.pid):
        with suppress(OSError, IndexError):
            if processes.read(child).name == "dockerd":
                return True
    return False


def _written(box: Box, path: str) -> float:
    """Wait for a file that is written in this life of the container; return its time."""
    file = reach.root(box.pid) / path
    box.until(f"/{path} to be written", lambda: file.stat().st_mtime >= box.began, LOOK)
    return file.stat().st_mtime


def _first_line(box: Box) -> float:
    """Return when the entrypoint began: the time of its first line of this life, less the time that the line names."""
    for line in str(box.place.client.logs(box.name, timestamps=True)).splitlines():
        if match := re.match(r"(\S+\.\d{6})\d*Z dind-k3s +(\d+\.\d+)s ", line):
            when = datetime.fromisoformat(f"{match[1]}+00:00").timestamp()
            if when >= box.began:
                return when - float(match[2])
    raise EngineError("the entrypoint has logged no step", found=box.last_lines())
