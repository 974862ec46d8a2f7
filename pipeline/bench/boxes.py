"""The containers that `bench start` compares, and how the start of one is watched.

ours    the image as it is
bare    the same image with its entrypoint left out: a script does by hand what is necessary, and no more
dind    the same image as docker:dind does it: docker-init, then dockerd
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException

from pipeline.bench import processes
from pipeline.bench.reach import Cluster, Dockerd, root
from pipeline.core import machine, stub
from pipeline.core.errors import EngineError
from pipeline.rehearsal import clamp, pause

LIMIT = 240.0  # seconds for any wait: a real k3s on a busy machine
LOOK = 0.005  # seconds between two looks at a start
IN_POD = "k8s_one_"  # how the containers of our pods begin: cri-dockerd's names, and the name in reach.py
POD = pause.NAME  # the image of the pods: it sleeps, and as process 1 it ignores SIGTERM

# Arguments that both sides give to dockerd and k3s, so that only what is around them differs.
_DOCKERD = "--exec-opt native.cgroupdriver=cgroupfs --feature containerd-snapshotter=false --storage-driver overlay2"
_K3S = (
    "--docker --data-dir /app/k3s --write-kubeconfig /app/k3s/k3s.yaml --node-name local-node --flannel-backend host-gw"
)
# What kubelet wants from 1.35 on where the host has cgroup v1.
_KUBELET = '{"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "failCgroupV1": false}'
_NEST = r"""
if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
  mkdir -p /sys/fs/cgroup/init
  while read -r pid; do echo "$pid" >/sys/fs/cgroup/init/cgroup.procs || true; done </sys/fs/cgroup/cgroup.procs
  read -r words </sys/fs/cgroup/cgroup.controllers
  echo "+${words// / +}" >/sys/fs/cgroup/cgroup.subtree_control
fi
rm -f /run/docker.pid /run/docker.sock /run/docker/containerd/containerd.pid
"""
_BARE = rf"""
{_NEST}
# shellcheck disable=SC2086
dockerd {_DOCKERD} $DOCKER_ARGS &
until [[ -S /run/docker.sock ]]; do sleep 0.05; done
unset K3S_CONFIG_FILE KUBECONFIG
mkdir -p /app/k3s/.dind-k3s/node /app/k3s/agent/etc/kubelet.conf.d # where the image has a link to; kubelet's files
if [[ ! -e /sys/fs/cgroup/cgroup.controllers ]]; then
  echo '{_KUBELET}' >/app/k3s/agent/etc/kubelet.conf.d/10-cgroup.conf
fi
k3s server {_K3S} $K3S_ARGS &
wait -n
"""
_DIND = rf"""
{_NEST}
# shellcheck disable=SC2086
exec docker-init -- dockerd {_DOCKERD} $DOCKER_ARGS
"""


class Kind(StrEnum):
    """What a box is."""

    OURS = "ours"
    BARE = "bare"
    DIND = "dind"


_SCRIPTS = {Kind.BARE: _BARE, Kind.DIND: _DIND}


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


@dataclass(kw_only=True)
class Box:
    """One privileged container with two named volumes."""

    place: Place
    kind: Kind
    environment: Mapping[str, str] = field(default_factory=dict)
    name: str = field(default_factory=lambda: f"bench-{uuid.uuid4().hex[:8]}")
    pid: int = 0  # of its first process, as we see it
    began: float = 0.0  # time.time() before the last start

    @property
    def dockerd(self) -> Dockerd:
        """The dockerd inside."""
        return Dockerd(self.pid)

    @property
    def cluster(self) -> Cluster:
        """The API inside; a connection of its own."""
        return Cluster(self.pid)

    def run(self) -> None:
        """`docker run`."""
        settings: dict[str, Any] = {"K3S_ARGS": pause.K3S_ARGS, "DOCKER_ARGS": "", **self.environment}
        volumes: list[Any] = [(f"{self.name}-docker", "/var/lib/docker"), (f"{self.name}-k3s", "/app/k3s")]
        if self.place.runtime is not None:
            settings["DOCKER_ARGS"] = clamp.ARGUMENTS
            volumes.append((self.place.runtime, clamp.INSIDE, "ro"))
        more: dict[str, Any] = {}
        command: list[str] = []
        if self.kind is not Kind.OURS:
            more["entrypoint"] = "/bin/bash"
            command = ["-euo", "pipefail", "-c", _SCRIPTS[self.kind]]
        self._began(
            lambda: self.place.client.run(
                self.place.image,
                command,
                detach=True,
                privileged=True,
                name=self.name,
                hostname=self.name,
                volumes=volumes,
                envs=settings,
                **more,
            )
        )

    def restart(self) -> None:
        """`docker restart`."""
        self._began(lambda: self.place.client.restart(self.name))

    def kill_and_start(self) -> None:
        """SIGKILL to everything in it, then `docker start`, which is what the clock begins with."""
        self.place.client.kill(self.name)
        self.until("the container to be gone", lambda: not self._inspect().state.running)
        self._began(lambda: self.place.client.start(self.name))

    def start(self) -> None:
        """`docker start`."""
        self._began(lambda: self.place.client.start(self.name))

    def _began(self, do: Callable[[], object]) -> None:
        self.began = time.time()
        try:
            do()
        except DockerException as error:
            raise EngineError("the engine cannot start the container", found=str(error.stderr or error)) from None
        self.pid = processes.first(self._inspect().id)
        if not self.pid:
            raise EngineError("the container has ended at once", found=self.last_words())

    def stop(self) -> tuple[float, int]:
        """`docker stop`; seconds and exit code."""
        started = time.monotonic()
        self.place.client.stop(self.name)
        code = self._inspect().state.exit_code
        return time.monotonic() - started, -1 if code is None else code

    def _inspect(self) -> Any:
        return self.place.client.container.inspect(self.name)

    def last_words(self) -> str:
        """The end of `docker logs`."""
        with suppress(DockerException):
            return "; ".join(str(self.place.client.logs(self.name, tail=12)).splitlines())
        return "no log"

    def log(self, since: float) -> list[tuple[float, str]]:
        """The lines of `docker logs` since then, each with its time.time()."""
        found = []
        for line in str(self.place.client.logs(self.name, timestamps=True)).splitlines():
            stamp, _, text = line.partition(" ")
            with suppress(ValueError):
                when = datetime.fromisoformat(re.sub(r"(\.\d{6})\d*Z$", r"\1+00:00", stamp)).timestamp()
                if when >= since:
                    found.append((when, text))
        return found

    def until(self, what: str, ask: Callable[[], object], limit: float = LIMIT, every: float = 0.02) -> float:
        """Ask until the answer is true; OSError is a no. Returns time.time(). Raises EngineError at the deadline."""
        deadline = time.monotonic() + limit
        last = ""
        while True:
            try:
                if ask():
                    return time.time()
            except OSError as error:
                last = str(error)
            ended = not processes.name_of(self.pid) and not what.startswith("the container to")
            if ended or time.monotonic() > deadline:
                how = "the container has ended" if ended else f"not within {limit:g} s"
                found = "; ".join(part for part in (last, self.last_words()) if part)
                raise EngineError(f"{what}: {how}", found=found)
            time.sleep(every)

    def remove(self) -> None:
        """With its volumes."""
        with suppress(DockerException):
            self.place.client.remove(self.name, force=True, volumes=True)
        for volume in (f"{self.name}-docker", f"{self.name}-k3s"):
            with suppress(DockerException):
                self.place.client.volume.remove(volume)


@contextmanager
def box(place: Place, kind: Kind, **environment: str) -> Iterator[Box]:
    """A box that has been started (`docker run`) and is removed at the end."""
    made = Box(place=place, kind=kind, environment=environment)
    try:
        made.run()
        yield made
    finally:
        made.remove()


def place(client: DockerClient, image: str, pod: bytes, folder: Path) -> Place:
    """What boxes need. `pod`: see Place; `folder` is one that the engine sees, too."""
    runtime = None
    if not machine.has_capability(machine.CAP_SYS_RESOURCE):
        runtime = folder / "runc-clamped"
        runtime.write_text(clamp.RUNTIME, encoding="ascii")
        runtime.chmod(0o755)
    reported = str(client.run(image, ["--version"], entrypoint="k3s", remove=True, networks=["none"]))
    version = reported.split()[2]  # k3s version v1.37.1+k3s1 (0123abcd)
    return Place(client=client, image=image, pod=pod, k3s=version, runtime=runtime)


# The stages of a start, in their order. Seconds since the clock of `docker run` (or start, restart) began.
STAGES = {
    "first process": "the engine has made it",
    "entrypoint": "our first line",
    "supervisor": "our last step is done",
    "dockerd exec": "dockerd is a process",
    "dockerd answers": "GET /_ping",
    "docker is told": "wait-ready --for docker returns",
    "k3s exec": "k3s is a process",
    "API": "/readyz answers 200",
    "node": "a node is Ready",
    "account": "the default service account is there",
    "cluster": "API, node and service account",
    "network": "flannel has written /run/flannel/subnet.env",
    "cluster is told": "wait-ready returns",
    "pod": "the first pod is Running",
}


CPU = "processor"  # beside the stages: seconds that the first process and its children had used when dockerd came


def watch(made: Box, *, cluster: bool = True, pod: bool = False, first: bool = True) -> dict[str, float]:
    """Look at a start until it is through: stage → seconds since `made.began`. Raises EngineError.

    `cluster`: until the cluster is ready, else dockerd; `pod`: then until a pod runs; `first`: the pod and its image
    are made, else they are there from an earlier life. A pod is made as soon as pods can have a network: ours when
    wait-ready returns, by hand when node, account and network are there.
    """
    at = {"first process": processes.began(made.pid)}
    at["dockerd exec"] = _seen(made, "dockerd to be started", _is_dockerd)
    used = processes.cpu(made.pid)
    at["dockerd answers"] = made.until("dockerd to answer", made.dockerd.answers, every=LOOK)
    loading = threading.Thread(target=made.dockerd.load, args=(made.place.pod,), daemon=True)
    if cluster:
        if pod and first:
            loading.start()
        at["k3s exec"] = _seen(made, "k3s to be started", _is_k3s)
        asked = made.cluster
        at["API"] = made.until("the API to be ready", asked.ready, every=LOOK)
        left: dict[str, Callable[[], bool]] = {"node": asked.node, "account": asked.account}
        if not made.place.stub:
            left["network"] = partial(_has_network, made)
        while left:
            for stage in [*left]:
                with suppress(OSError):
                    if left[stage]():
                        at[stage] = time.time()
                        del left[stage]
            if time.time() - made.began > LIMIT:
                raise EngineError(f"not there after {LIMIT:g} s: {', '.join(left)}", found=made.last_words())
            time.sleep(LOOK)
        at["cluster"] = max(at["API"], at["node"], at["account"])
        if pod:
            if first:
                # A pod that is made before it can have a network waits for kubelet's back-off, 10 s and more.
                loading.join()
                if made.kind is Kind.OURS:
                    made.until("wait-ready to return", _flag(made, "k8s").exists, every=LOOK)
                asked.run("first", POD)
                at["pod"] = made.until("a pod to run", lambda: asked.pods() > 0)
            else:  # what the API says of it is of its earlier life
                at["pod"] = made.until("a pod to run again", lambda: made.dockerd.running(IN_POD) > 0)
        asked.close()
    if made.kind is Kind.OURS:
        for stage, flag in {"docker is told": "docker", **({"cluster is told": "k8s"} if cluster else {})}.items():
            file = _flag(made, flag)
            made.until(f"{flag} to be told", file.exists)
            at[stage] = file.stat().st_mtime
        at |= {stage: when for stage, (when, _) in own_stages(made).items()}
    return {**{stage: at[stage] - made.began for stage in STAGES if stage in at}, CPU: used}


def _flag(made: Box, what: str) -> Path:
    """Return the file that the image writes when it calls `what` ready."""
    return root(made.pid) / "run/dind-k3s/ready" / what


def _has_network(made: Box) -> bool:
    """Whether pods can have a network: flannel has written its file in this life of the container."""
    return (root(made.pid) / "run/flannel/subnet.env").stat().st_mtime >= made.began


def _seen(made: Box, what: str, is_it: Callable[[processes.Process], bool]) -> float:
    """When a child of the first process became that program.

    By hand it may be there before the first look, and then its start counts. Ours are scripts before, which start long
    before they become the program, so there it is the look: never too early.
    """
    looks = 0
    found: list[processes.Process] = []

    def look() -> bool:
        nonlocal looks
        looks += 1
        for child in processes.children(made.pid):
            with suppress(OSError, IndexError):
                if is_it(process := processes.read(child)):
                    found.append(process)
        return bool(found)

    when = made.until(what, look, every=LOOK)
    return processes.began(found[0].pid) if looks == 1 and made.kind is not Kind.OURS else when


def _is_dockerd(process: processes.Process) -> bool:
    return process.name == "dockerd"


def _is_k3s(process: processes.Process) -> bool:
    return "server" in process.line and any(word.endswith("/k3s") or word == "k3s" for word in process.line[:3])


_LINE = re.compile(r"dind-k3s +(\d+\.\d+)s +(\S+) +(.*)")


def own_stages(made: Box) -> dict[str, tuple[float, str]]:
    """When the entrypoint began and when it was through: its own clock, set by the time of its first line."""
    lines = steps(made.log(made.began))
    if not lines:
        raise EngineError("the entrypoint has told no step", found=made.last_words())
    when, first, _, text = lines[0]
    return {"entrypoint": (when - first, text), "supervisor": (when - first + lines[-1][1], lines[-1][3])}


def steps(lines: list[tuple[float, str]]) -> list[tuple[float, float, str, str]]:
    """The entrypoint's lines: when each was written, the entrypoint's own clock, the step, its words."""
    found = []
    for when, text in lines:
        if match := _LINE.match(text):
            found.append((when, float(match[1]), match[2], match[3]))
    return found


def step_seconds(lines: list[tuple[float, str]]) -> list[tuple[str, float]]:
    """Each step with the seconds between the line before and its own; lines of one step are added."""
    found: dict[str, float] = {}
    before = 0.0
    for _, at, step, _ in steps(lines):
        found[step] = found.get(step, 0.0) + at - before
        before = at
    return [*found.items()]
