"""Tier `boot`: a privileged container that does what users run it for, through any docker client.

dockerd, an inner build and run with a published port, a ready node, a pod from the image just built, a restart and a
re-creation with everything still there, and a stop within its budget although a pod ignores SIGTERM. Every wait has a
deadline and asks; nothing needs a network.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from python_on_whales import DockerClient, Volume
from python_on_whales.exceptions import DockerException

from pipeline.lock import Lock
from pipeline.log import Log, seconds
from pipeline.smoke import inside
from pipeline.smoke.commands import LABEL
from pipeline.smoke.inside import patience
from pipeline.smoke.load import Loaded
from pipeline.smoke.record import Recorder

_STOP_BUDGET = 10.0  # seconds: what `docker stop` gives before it kills
_PROBE = "smoke-probe:1"
_Mount = tuple[Volume | str | Path, str | Path] | tuple[Volume | str | Path, str | Path, str]

# Makes a build context out of the image's own files, so that the tier needs no registry and runs on every platform:
# a shell, a few tools and the libraries that they are linked with.
_CONTEXT = r"""
set -e
rm -rf /tmp/probe && mkdir -p /tmp/probe/root/tmp && cd /tmp/probe
programs="/bin/sh /bin/cat /bin/sleep /usr/bin/socat"
for file in $programs $(ldd $programs | grep -o '/[^ )]*' | grep -v ':$' | sort -u); do
  mkdir -p "root${file%/*}" && cp -L "$file" "root$file"
done
echo "$1" > root/word
printf 'FROM scratch\nCOPY root/ /\nCMD ["/bin/cat", "/word"]\n' > Dockerfile
"""


@dataclass(frozen=True, kw_only=True)
class BootOptions:
    """What this machine needs in addition; nothing of it is part of the image."""

    extra_mounts: tuple[tuple[Path, str], ...] = ()  # file here → path in the container
    extra_environment: Mapping[str, str] = field(default_factory=dict)
    patience: float = 1.0  # every deadline is multiplied by it: a slow engine is slow and not red


class _Machine:
    """One booted container and its two volumes."""

    def __init__(self, client: DockerClient, image: Loaded, options: BootOptions, log: Log, logs: Path) -> None:
        self.client = client
        self.image = image
        self.options = options
        self.log = log
        self.logs = logs
        self.name = f"smoke-{uuid.uuid4().hex[:8]}"
        self.volumes = {f"{self.name}-docker": "/var/lib/docker", f"{self.name}-k3s": "/app/k3s"}

    def start(self) -> None:
        """A new container on the same volumes."""
        mounts: list[_Mount] = list(self.volumes.items())
        mounts += [(here, path, "ro") for here, path in self.options.extra_mounts]
        self.client.run(
            self.image.name,
            name=self.name,
            hostname=self.name,
            platform=self.image.platform.value,
            privileged=True,
            detach=True,
            volumes=mounts,
            envs=dict(self.options.extra_environment),
            labels={LABEL: "boot"},
        )

    def do(self, *command: str, limit: float = 60) -> str:
        """Run a command inside; its output. A failure or a timeout is an AssertionError with the last lines."""
        return inside.execute(self.client, self.name, command, limit=limit * self.options.patience, log=self.log)

    def until(self, what: str, ask: Callable[[], str | None], limit: float) -> str:
        """Ask until it answers with something; tells what it waits for. AssertionError at the deadline."""
        started = told = time.monotonic()
        deadline = started + limit * self.options.patience
        last = ""
        while True:
            try:
                if (answer := ask()) is not None:
                    return answer
            except AssertionError as error:
                last = f": {error}"
            now = time.monotonic()
            assert now < deadline, f"{what}: not within {seconds(limit * self.options.patience)}{last}"
            if not self.client.container.inspect(self.name).state.running:
                raise AssertionError(f"{what}: the container has ended: {self.last_lines()}")
            if now - told >= inside.TELL_EVERY:
                told = now
                self.log.say(f"  waiting for {what}, {seconds(now - started)}")
            time.sleep(0.2)

    def ready(self, what: str, limit: float) -> str:
        """`wait-ready` inside, in slices, so that something is said meanwhile."""

        def ask() -> str | None:
            return self.do("wait-ready", "--for", what, "--timeout", "4", limit=30) and f"{what} is ready"

        return self.until(f"{what} to be ready", ask, limit)

    def state(self, *jsonpath: str) -> str:
        """One value out of kubectl."""
        return self.do("kubectl", *jsonpath)

    def last_lines(self, count: int = 12) -> str:
        """The end of `docker logs`."""
        return " / ".join(" ".join(line.split()) for line in str(self.client.logs(self.name, tail=count)).splitlines())

    def examine(self) -> None:
        """After a failure: the container's last lines and what its doctor says, told and kept."""
        try:
            self.log.say(f"the container's last lines: {self.last_lines(20)}")
            if self.client.container.inspect(self.name).state.running:
                said = inside.execute(self.client, self.name, ("sh", "-c", "doctor || true"), limit=30, log=self.log)
                self.keep(f"--- doctor\n{said}\n")
                ill = [line for line in said.splitlines() if line.startswith(("fail", "warn"))]
                self.log.say(f"doctor: {' / '.join(ill) or 'all is well'}")
        except (DockerException, AssertionError, ValueError) as error:
            self.log.warn(f"the container cannot be examined: {str(error).splitlines()[0]}")

    def keep(self, text: str) -> None:
        """Append to the kept log."""
        self.logs.parent.mkdir(parents=True, exist_ok=True)
        with self.logs.open("a", encoding="utf-8") as stream:
            stream.write(text)

    def remove(self) -> None:
        """The container, its log is kept; its volumes stay."""
        try:
            self.keep(str(self.client.logs(self.name, timestamps=True)) + "\n")
        except (DockerException, ValueError) as error:
            self.log.warn(f"the container's log cannot be read: {error}")
        self.client.remove(self.name, force=True)


def run(
    client: DockerClient,
    image: Loaded,
    lock: Lock,
    options: BootOptions,
    recorder: Recorder,
    log: Log,
    logs: Path,
) -> None:
    """All checks of the tier. What the container said is kept in `logs`."""
    logs.unlink(missing_ok=True)
    machine = _Machine(client, image, options, log, logs)
    try:
        for check in (_dockerd, _inner_build, _inner_run, _node, _pod, _healthy, _doctor):
            check(machine, lock, recorder)
            if recorder.failed and check in (_dockerd, _inner_build, _node):
                return
        _restart(machine, lock, recorder)
        _recreate(machine, recorder)
        _stop(machine, recorder)
    finally:
        if client.container.exists(machine.name):
            if recorder.failed:
                machine.examine()
            machine.remove()
        for volume in machine.volumes:
            if client.volume.exists(volume):
                client.volume.remove(volume)


def _dockerd(machine: _Machine, lock: Lock, recorder: Recorder) -> None:
    with recorder.check("dockerd answers") as told:
        machine.start()
        told(machine.image.confirm(machine.client, machine.name))
        machine.ready("docker", 60)
        version = machine.do("docker", "version", "--format", "{{.Server.Version}}").strip()
        assert re.match(rf"{re.escape(lock.versions['docker'])}(\D|$)", version), f"dockerd is {version}"
        told(f"dockerd {version}, storage driver {machine.do('docker', 'info', '--format', '{{.Driver}}').strip()}")


def _inner_build(machine: _Machine, _lock: Lock, recorder: Recorder) -> None:
    with recorder.check("docker build inside") as told:
        machine.do("sh", "-c", _CONTEXT, "context", machine.name)
        machine.do("docker", "build", "--quiet", "--tag", _PROBE, "/tmp/probe", limit=120)
        told(f"{_PROBE} from the image's own files")


def _inner_run(machine: _Machine, _lock: Lock, recorder: Recorder) -> None:
    with recorder.check("docker run inside, bridge, published port") as told:
        word = machine.do("docker", "run", "--rm", _PROBE).strip()
        assert word == machine.name, f"expected {machine.name!r}, the container said {word!r}"
        serve = ["/usr/bin/socat", "TCP-LISTEN:80,fork,reuseaddr", "EXEC:/bin/cat /word"]
        machine.do("docker", "run", "--detach", "--name", "server", "--publish", "127.0.0.1:8090:80", _PROBE, *serve)
        told("a published port")

        def published() -> str | None:
            return machine.do("socat", "-", "TCP:127.0.0.1:8090").strip() or None

        said = machine.until("the published port", published, 15)
        assert said == machine.name, f"the published port said {said!r}"
        address = machine.do(
            "docker", "inspect", "--format", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "server"
        ).strip()
        ask = ["/usr/bin/socat", "-", f"TCP:{address}:80"]
        said = machine.do("docker", "run", "--rm", _PROBE, *ask).strip()
        assert said == machine.name, f"over the bridge another container said {said!r}"
        machine.do("docker", "rm", "--force", "server")
        told("container to container over the bridge")


def _node(machine: _Machine, lock: Lock, recorder: Recorder) -> None:
    with recorder.check("k3s and its node are ready") as told:
        machine.ready("k8s", 240)
        machine.do("kubectl", "wait", "--for=condition=Ready", "node", "--all", "--timeout=60s", limit=70)
        runtime = machine.state("get", "nodes", "-o", "jsonpath={.items[0].status.nodeInfo.containerRuntimeVersion}")
        assert runtime.startswith(f"docker://{lock.versions['docker']}"), f"the node's runtime is {runtime}"
        kubelet = machine.state("get", "nodes", "-o", "jsonpath={.items[0].status.nodeInfo.kubeletVersion}").strip()
        assert kubelet == lock.versions["k3s"], f"the node runs {kubelet}, the lock says {lock.versions['k3s']}"
        told(f"{kubelet} on {runtime.strip()}")


def _pod(machine: _Machine, _lock: Lock, recorder: Recorder) -> None:
    with recorder.check("a pod from the image just built") as told:
        # As process 1 of its container it has no handler for SIGTERM, so it ignores it: the stop below has to cope.
        script = "/bin/cat /word; exec /bin/sleep 100000"
        machine.do(
            *("kubectl", "run", "probe", f"--image={_PROBE}", "--image-pull-policy=Never"),
            *("--command", "--", "/bin/sh", "-c", script),
        )
        machine.do("kubectl", "wait", "--for=condition=Ready", "pod/probe", "--timeout=90s", limit=100)
        said = machine.do("kubectl", "logs", "probe").strip()
        assert said == machine.name, f"kubectl logs says {said!r}"
        kept = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}, "data": {"word": machine.name}}
        machine.do("sh", "-c", 'echo "$1" | kubectl apply --filename=-', "apply", json.dumps(kept))
        machine.do("docker", "volume", "create", "kept")
        machine.do("docker", "run", "--rm", "--volume", "kept:/kept", _PROBE, "/bin/sh", "-c", "cat /word > /kept/word")
        told("no load or import step; kubectl logs has its word")


def _healthy(machine: _Machine, _lock: Lock, recorder: Recorder) -> None:
    with recorder.check("HEALTHCHECK") as told:

        def healthy() -> str | None:
            health = machine.client.container.inspect(machine.name).state.health
            return "healthy" if health and health.status == "healthy" else None

        told(machine.until("the container to be healthy", healthy, 60))


def _doctor(machine: _Machine, _lock: Lock, recorder: Recorder) -> None:
    with recorder.check("doctor") as told:
        told(machine.do("doctor").strip().splitlines()[-1])


def _still_there(machine: _Machine) -> None:
    """Image, volume, configmap and pod of before."""
    machine.ready("docker", 60)
    word = machine.do("docker", "run", "--rm", "--volume", "kept:/kept", _PROBE, "/bin/cat", "/kept/word").strip()
    assert word == machine.name, f"the inner volume holds {word!r}"
    machine.ready("k8s", 240)
    kept = machine.state("get", "configmap", "kept", "-o", "jsonpath={.data.word}").strip()
    assert kept == machine.name, f"the configmap holds {kept!r}"
    machine.do("kubectl", "wait", "--for=condition=Ready", "node", "--all", "--timeout=90s", limit=100)
    machine.do("kubectl", "wait", "--for=condition=Ready", "pod/probe", "--timeout=90s", limit=100)

    def logged() -> str | None:
        return machine.do("kubectl", "logs", "probe").strip() or None

    said = machine.until("the pod's log", logged, 30)
    assert machine.name in said, f"kubectl logs says {said!r}"


def _restart(machine: _Machine, _lock: Lock, recorder: Recorder) -> None:
    with recorder.check("docker restart: all is still there") as told:
        with patience("docker restart", machine.log):
            machine.client.restart(machine.name, time=int(_STOP_BUDGET * machine.options.patience))
        _still_there(machine)
        told("image, inner volume, configmap, node and pod")


def _recreate(machine: _Machine, recorder: Recorder) -> None:
    with recorder.check("a new container on the same volumes, after SIGKILL") as told:
        machine.client.kill(machine.name)
        machine.remove()
        machine.start()
        _still_there(machine)
        nodes = machine.state("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}").split()
        assert len(nodes) == 1, f"the cluster has the nodes {', '.join(nodes)}"
        told("image, inner volume, configmap, node and pod")


def _stop(machine: _Machine, recorder: Recorder) -> None:
    with recorder.check("docker stop, with a pod that ignores SIGTERM") as told:
        budget = _STOP_BUDGET * machine.options.patience
        started = time.monotonic()
        with patience("docker stop", machine.log):
            machine.client.stop(machine.name, time=int(budget))
        took = time.monotonic() - started
        code = machine.client.container.inspect(machine.name).state.exit_code
        told(f"{seconds(took)}, exit code {code}")
        assert code not in (137, None), f"killed: it did not end within {seconds(budget)}; {machine.last_lines()}"
