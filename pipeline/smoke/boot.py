"""Tier `boot`: a privileged container with the workload of its users, through any docker client.

dockerd, an inner build and run with a published port, a ready node, a pod from the image just built, a restart and a
re-creation that keep all data, and a stop within its budget although a pod ignores SIGTERM. Every wait polls with a
deadline, scaled by the engine's speed; nothing needs a network.

It has three parts: docker; k3s's control plane; node and pods. On an engine that is many times slower than native, k3s
gets additional arguments, and starts that failed for that reason alone are counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.components import AIRGAP_FOLDER
from pipeline.core.log import seconds
from pipeline.core.stub import SUFFIX, marked
from pipeline.engine.engine import Engine
from pipeline.inputs.lock import Lock
from pipeline.smoke.booted import Booted, BootOptions
from pipeline.smoke.load import Loaded
from pipeline.smoke.record import Recorder

# The tier does not need the add-ons; the engine would have to pull their images.
NO_ADDONS = (
    "--disable=coredns --disable=traefik --disable=servicelb --disable=metrics-server --disable=local-storage "
    "--disable-helm-controller"
)
_SLOW = 4.0  # times slower than native: above it k3s gets _FOR_SLOW
# kubelet renews its lease every 10 s, and a node that is late by 50 s is NotReady, its pods evicted: under TCG kubelet
# is late by minutes while k3s starts (kube-controller-manager's --node-monitor-grace-period; docs/smoke.md).
_FOR_SLOW = f"{NO_ADDONS} --kube-controller-manager-arg=node-monitor-grace-period=900s"
# A fixed time limit of kubelet: it exits if the API server has not accepted its CSINode within 140 s, 10 s in old
# versions (kubernetes: pkg/volume/csi/csi_plugin.go, initializeCSINode).
_LIMIT_OF_K3S = re.compile(r"Failed to initialize CSINode after retrying: timed out")
_PROBE = "smoke-probe:1"

# Makes a build context of the image's own files (a shell, a few tools and their libraries), so that the tier needs no
# registry and runs on every platform.
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


class Phase(StrEnum):
    """The parts of the tier."""

    DOCKER = "docker"
    CONTROL_PLANE = "control plane"
    PODS = "node and pods"


@dataclass(frozen=True, kw_only=True)
class BootCheck:
    """One check of the tier."""

    phase: Phase
    name: str
    run: Callable[[Booted, Lock], Iterator[str]]  # yields details for the report
    required: bool  # if it or an earlier check failed, the later ones do not run


def _check(
    phase: Phase, name: str, *, required: bool = False
) -> Callable[[Callable[[Booted, Lock], Iterator[str]]], BootCheck]:
    return lambda run: BootCheck(phase=phase, name=name, run=run, required=required)


def run(engine: Engine, image: Loaded, lock: Lock, options: BootOptions, recorder: Recorder, logs: Path) -> None:
    """Run all checks of the tier; `logs`: the file for the container's log."""
    checks = (_dockerd, _inner_build, _inner_run, _control_plane, _node, _pod, _healthy)
    more = (_doctor, _restart, _recreate, _stop, kept_running)
    with _container(engine, image, for_speed(options, engine), recorder, logs) as machine:
        perform([*checks, *more], machine, lock, recorder)


def run_airgap(engine: Engine, image: Loaded, lock: Lock, options: BootOptions, recorder: Recorder, logs: Path) -> None:
    """Check the variant airgap in a container without network: all system images are loaded, and pods need no pull.

    Parts that booted with the image, in the same layers, are not checked again.
    """
    with _container(engine, image, replace(options, networks=("none",)), recorder, logs) as machine:
        if perform([_dockerd, _system_images, _node, _system_pod], machine, lock, recorder):
            if "K3S_ARGS" in options.extra_environment or lock.versions["k3s"].endswith(SUFFIX):
                recorder.skip(_own_pods.name, "k3s has none: it is a stub, or its add-ons are disabled")
            else:
                perform([_own_pods], machine, lock, recorder)
            perform([_healthy], machine, lock, recorder)
        perform([kept_running], machine, lock, recorder)


@contextmanager
def _container(engine: Engine, image: Loaded, options: BootOptions, recorder: Recorder, logs: Path) -> Iterator[Booted]:
    """Remove the container at the end, after an examination if a check failed (not after an interrupt)."""
    logs.unlink(missing_ok=True)
    machine = Booted(engine, image, options, recorder.log, logs)
    failed = False
    try:
        yield machine
        failed = recorder.failed
    finally:
        recorder.where += ", stub k3s" if machine.is_stub else ""
        machine.clean_up(failed=failed)


def perform(checks: Iterable[BootCheck], machine: Booted, lock: Lock, recorder: Recorder) -> bool:
    """Run checks in their order; return whether all of them ran."""
    for check in checks:
        recorder.step = check.phase
        with recorder.check(check.name) as note:
            for detail in check.run(machine, lock):
                note(detail)
        if check.required and recorder.failed:
            return False
    return True


def for_speed(options: BootOptions, engine: Engine) -> BootOptions:
    """Return the options; for a slow engine with the additional arguments that k3s needs there."""
    if engine.patience <= _SLOW:
        return options
    arguments = f"{options.extra_environment.get('K3S_ARGS', '')} {_FOR_SLOW}".strip()
    return replace(options, extra_environment={**options.extra_environment, "K3S_ARGS": arguments})


@_check(Phase.DOCKER, "dockerd answers", required=True)
def _dockerd(machine: Booted, lock: Lock) -> Iterator[str]:
    machine.start()
    yield machine.image.confirm(machine.client, machine.name)
    machine.ready("docker", 60)
    version = machine.do("docker", "version", "--format", "{{.Server.Version}}").strip()
    assert re.match(rf"{re.escape(lock.versions['docker'])}(\D|$)", version), f"dockerd is {version}"
    yield f"dockerd {version}, storage driver {machine.do('docker', 'info', '--format', '{{.Driver}}').strip()}"


@_check(Phase.DOCKER, "docker build inside", required=True)
def _inner_build(machine: Booted, _lock: Lock) -> Iterator[str]:
    machine.do("sh", "-c", _CONTEXT, "context", machine.name)
    machine.do("docker", "build", "--quiet", "--tag", _PROBE, "/tmp/probe", limit=120)
    yield f"{_PROBE} from the image's own files"


@_check(Phase.DOCKER, "docker run inside, bridge, published port")
def _inner_run(machine: Booted, _lock: Lock) -> Iterator[str]:
    word = machine.do("docker", "run", "--rm", _PROBE).strip()
    assert word == machine.name, f"expected {machine.name!r}, the container printed {word!r}"
    serve = ["/usr/bin/socat", "TCP-LISTEN:80,fork,reuseaddr", "EXEC:/bin/cat /word"]
    machine.do("docker", "run", "--detach", "--name", "server", "--publish", "127.0.0.1:8090:80", _PROBE, *serve)
    yield "a published port"

    def published() -> str | None:
        return machine.do("socat", "-", "TCP:127.0.0.1:8090").strip() or None

    answer = machine.until("the published port", published, 15)
    assert answer == machine.name, f"the published port answered {answer!r}"
    bridge = "{{.NetworkSettings.Networks.bridge.IPAddress}}"
    address = machine.do("docker", "inspect", "--format", bridge, "server").strip()
    ask = ["/usr/bin/socat", "-", f"TCP:{address}:80"]
    answer = machine.do("docker", "run", "--rm", _PROBE, *ask).strip()
    assert answer == machine.name, f"over the bridge another container answered {answer!r}"
    machine.do("docker", "rm", "--force", "server")
    yield "container to container over the bridge"
    machine.do("docker", "volume", "create", "kept")
    machine.do("docker", "run", "--rm", "--volume", "kept:/kept", _PROBE, "/bin/sh", "-c", "cat /word > /kept/word")


@_check(Phase.CONTROL_PLANE, "k3s's API is ready")
def _control_plane(machine: Booted, lock: Lock) -> Iterator[str]:
    kept = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}, "data": {"word": machine.name}}

    def version_of_api() -> str:
        machine.kubectl("get", "--raw=/readyz")
        machine.do("sh", "-c", 'echo "$1" | kubectl apply --filename=-', "apply", json.dumps(kept))
        return str(json.loads(machine.kubectl("get", "--raw=/version"))["gitVersion"])

    version = machine.until("k3s's API to be ready", version_of_api, 240)
    # Next to a real k3s of another platform the stub has that version with its own suffix.
    machine.is_stub = version.endswith(SUFFIX)
    locked = marked(lock.versions["k3s"]) if machine.is_stub else lock.versions["k3s"]
    assert version == locked, f"the API is {version}, the lock says {lock.versions['k3s']}"
    yield f"{version}, and keeps a configmap"


@_check(Phase.PODS, "the node is ready", required=True)
def _node(machine: Booted, lock: Lock) -> Iterator[str]:
    machine.ready("k8s", 240)
    machine.wait_ready("node", "--all")
    info = json.loads(machine.kubectl("get", "nodes", "-o", "jsonpath={.items[0].status.nodeInfo}"))
    runtime, kubelet = info["containerRuntimeVersion"], info["kubeletVersion"]
    assert runtime.startswith(f"docker://{lock.versions['docker']}"), f"the node's runtime is {runtime}"
    locked = (lock.versions["k3s"], marked(lock.versions["k3s"]))
    assert kubelet in locked, f"the node runs {kubelet}, the lock says {lock.versions['k3s']}"
    yield f"{kubelet} on {runtime}"


@_check(Phase.PODS, "a pod from the image just built")
def _pod(machine: Booted, _lock: Lock) -> Iterator[str]:
    # Process 1 of a container without a handler ignores SIGTERM; the stop below must work all the same.
    script = "/bin/cat /word; exec /bin/sleep 100000"
    machine.do(
        *("kubectl", "run", "probe", f"--image={_PROBE}", "--image-pull-policy=Never"),
        *("--command", "--", "/bin/sh", "-c", script),
    )
    machine.wait_ready("pod/probe")
    printed = machine.kubectl("logs", "probe")
    assert printed == machine.name, f"kubectl logs prints {printed!r}"
    yield "no load or import step; kubectl logs has its word"


@_check(Phase.PODS, "HEALTHCHECK")
def _healthy(machine: Booted, _lock: Lock) -> Iterator[str]:
    def healthy() -> str | None:
        health = machine.client.container.inspect(machine.name).state.health
        return "healthy" if health and health.status == "healthy" else None

    yield machine.until("the container to be healthy", healthy, 60)


@_check(Phase.DOCKER, "doctor")
def _doctor(machine: Booted, _lock: Lock) -> Iterator[str]:
    yield machine.do("doctor").strip().splitlines()[-1]


def _still_there(machine: Booted) -> str:
    """Check that the image, inner volume, configmap, node and pod of earlier checks still exist."""
    machine.ready("docker", 60)
    word = machine.do("docker", "run", "--rm", "--volume", "kept:/kept", _PROBE, "/bin/cat", "/kept/word").strip()
    assert word == machine.name, f"the inner volume holds {word!r}"
    machine.ready("k8s", 240)
    kept = machine.until(
        "the configmap", lambda: machine.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.word}"), 240
    )
    assert kept == machine.name, f"the configmap holds {kept!r}"
    machine.wait_ready("node", "--all")
    machine.wait_ready("pod/probe")
    printed = machine.until("the pod's log", lambda: machine.kubectl("logs", "probe") or None, 30)
    assert machine.name in printed, f"kubectl logs prints {printed!r}"
    nodes = machine.kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}").split()
    assert len(nodes) == 1, f"the cluster has the nodes {', '.join(nodes)}"
    return "image, inner volume, configmap, node and pod"


@_check(Phase.DOCKER, "docker restart: all is still there")
def _restart(machine: Booted, _lock: Lock) -> Iterator[str]:
    machine.restart()
    yield _still_there(machine)


@_check(Phase.DOCKER, "a new container on the same volumes, after SIGKILL")
def _recreate(machine: Booted, _lock: Lock) -> Iterator[str]:
    machine.client.kill(machine.name)
    machine.remove()
    machine.start()
    yield _still_there(machine)


@_check(Phase.DOCKER, "docker stop, with a pod that ignores SIGTERM")
def _stop(machine: Booted, _lock: Lock) -> Iterator[str]:
    took, code = machine.stop()
    yield f"{seconds(took)}, exit code {code}"
    assert code not in (137, None), f"killed after {seconds(took)}; it had {seconds(machine.budget)} to end"


@_check(Phase.DOCKER, "system images, without a network", required=True)
def _system_images(machine: Booted, _lock: Lock) -> Iterator[str]:
    interfaces = machine.do("sh", "-c", "ls /sys/class/net")
    assert "eth0" not in interfaces, f"there is a network: {interfaces.split()}"
    read = f"zstd -dcq /{AIRGAP_FOLDER}/*.tar.zst | tar -xO manifest.json"
    wanted = {name for entry in json.loads(machine.do("sh", "-c", read)) for name in entry["RepoTags"]}

    def loaded() -> str | None:
        there = machine.do("docker", "images", "--format", "{{.Repository}}:{{.Tag}}").split()
        return f"{len(wanted)}, all loaded" if wanted <= set(there) else None

    yield machine.until("all system images to be loaded", loaded, 120)


@_check(Phase.PODS, "a pod of a system image")
def _system_pod(machine: Booted, _lock: Lock) -> Iterator[str]:
    pause = "docker images --format '{{.Repository}}:{{.Tag}}' | grep -m1 pause"
    image = machine.do("sh", "-c", pause).strip()
    machine.do("kubectl", "run", "still", f"--image={image}", "--image-pull-policy=Never")
    machine.wait_ready("pod/still")
    yield image


@_check(Phase.PODS, "k3s's own pods")
def _own_pods(machine: Booted, _lock: Lock) -> Iterator[str]:
    def settled() -> str | None:
        pods = json.loads(machine.kubectl("--namespace=kube-system", "get", "pods", "-o", "json"))["items"]
        done = all(pod["status"].get("phase") == "Succeeded" or _is_ready(pod) for pod in pods)
        return ", ".join(pod["metadata"]["name"] for pod in pods) or None if done else None

    yield machine.until("all of k3s's own pods", settled, 240)


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", ())
    return any((condition["type"], condition["status"]) == ("Ready", "True") for condition in conditions)


@_check(Phase.CONTROL_PLANE, "k3s did not end by itself")
def kept_running(machine: Booted, _lock: Lock) -> Iterator[str]:
    """Fail for an exit of k3s that was not requested, except for its fixed time limit on a slow engine."""
    slow = machine.engine.patience > _SLOW
    ends = machine.ends_of_k3s()
    others = [end for end in ends if not (slow and _LIMIT_OF_K3S.search(end))]
    assert not others, f"it did {len(others)} times: {others[0]}"
    yield f"but for {len(ends)} starts, on which a fixed time limit ran out: {ends[0]}" if ends else "not once"
