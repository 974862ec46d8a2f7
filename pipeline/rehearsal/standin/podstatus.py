"""The status of a pod, worked out from its containers: no I/O, so every case can be tested by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from .containers import Container
from .status import Object
from .store import timestamp


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Why a container does not run."""

    reason: str
    message: str = ""

    def to_object(self) -> Object:
        """The `waiting` state."""
        return {"reason": self.reason} | ({"message": self.message} if self.message else {})


@dataclass(frozen=True, kw_only=True)
class View:
    """What is known of a pod's containers at one moment: their attempts, oldest first, and why one waits."""

    attempts: dict[str, list[Container]] = field(default_factory=dict)
    waiting: dict[str, Waiting] = field(default_factory=dict)

    def last(self, name: str) -> Container | None:
        """The newest attempt of a container."""
        attempts = self.attempts.get(name)
        return attempts[-1] if attempts else None


def done(container: Container | None) -> bool:
    """Whether a container ended well."""
    return container is not None and container.ended and container.exit_code == 0


def phase(pod: Object, view: View) -> str:
    """The pod's phase (kubernetes: pkg/kubelet/kubelet_pods.go, getPhase)."""
    policy = pod["spec"]["restartPolicy"]
    for spec in pod["spec"].get("initContainers") or []:
        container = view.last(spec["name"])
        if not done(container):
            return "Failed" if policy == "Never" and container is not None and container.ended else "Pending"
    lasts = [view.last(spec["name"]) for spec in pod["spec"]["containers"]]
    if any(container is None or not (container.running or container.ended) for container in lasts):
        return "Pending"
    if any(container.running for container in lasts if container) or policy == "Always":
        return "Running"
    if all(done(container) for container in lasts):
        return "Succeeded"
    return "Running" if policy == "OnFailure" else "Failed"


def status(pod: Object, view: View, node_ip: str) -> Object:
    """The whole status; times of conditions that did not change stay as they were."""
    old: Object = pod.get("status") or {}
    spec = pod["spec"]
    inits = [_container(entry, view, init=True) for entry in spec.get("initContainers") or []]
    initialized = all(done(view.last(entry["name"])) for entry in spec.get("initContainers") or [])
    containers = [_container(entry, view, initialized=initialized) for entry in spec["containers"]]
    now = phase(pod, view)
    all_ready = bool(containers) and all(container["ready"] for container in containers)
    why = {} if all_ready else _not_ready(now, containers)
    conditions = {
        "PodReadyToStartContainers": (now == "Running", {}),
        "Initialized": (initialized, {} if initialized else {"reason": "ContainersNotInitialized"}),
        "Ready": (all_ready, why),
        "ContainersReady": (all_ready, why),
        "PodScheduled": (True, {}),
    }
    known = {entry["type"]: entry for entry in old.get("conditions") or []}
    address = node_ip if spec.get("hostNetwork") else _address(view) or old.get("podIP", "")
    if now in ("Pending", "Succeeded", "Failed") and not spec.get("hostNetwork"):
        address = _address(view) or (old.get("podIP", "") if now != "Pending" else "")
    result: Object = {
        "phase": now,
        "conditions": [_condition(name, value, extra, known.get(name)) for name, (value, extra) in conditions.items()],
        "hostIP": node_ip,
        "hostIPs": [{"ip": node_ip}],
        "startTime": old.get("startTime") or timestamp(),
        "containerStatuses": containers,
        "qosClass": old.get("qosClass", "BestEffort"),
    }
    if inits:
        result["initContainerStatuses"] = inits
    if address:
        result |= {"podIP": address, "podIPs": [{"ip": address}]}
    return result


def _address(view: View) -> str:
    every = [container for attempts in view.attempts.values() for container in attempts]
    return next((container.address for container in every if container.running and container.address), "")


def _not_ready(now: str, containers: list[Object]) -> Object:
    if now == "Succeeded":
        return {"reason": "PodCompleted"}
    names = " ".join(container["name"] for container in containers if not container["ready"])
    return {"reason": "ContainersNotReady", "message": f"containers with unready status: [{names}]"}


def _condition(name: str, value: bool, extra: Object, old: Object | None) -> Object:
    text = "True" if value else "False"
    since = old["lastTransitionTime"] if old and old["status"] == text else timestamp()
    return {"type": name, "status": text, "lastProbeTime": None, "lastTransitionTime": since, **extra}


def _container(spec: Object, view: View, *, init: bool = False, initialized: bool = True) -> Object:
    attempts = view.attempts.get(spec["name"]) or []
    last = attempts[-1] if attempts else None
    waiting = view.waiting.get(spec["name"])
    result: Object = {
        "name": spec["name"],
        "image": spec["image"],
        "imageID": f"docker://{last.image_id}" if last else "",
        "restartCount": last.attempt if last else 0,
        "ready": done(last) if init else bool(last and last.running),
        "started": bool(last and last.running),
        "lastState": {},
    }
    previous = attempts[-2] if len(attempts) > 1 else None
    if last:
        result["containerID"] = f"docker://{last.id}"
    if last and last.running:
        result["state"] = {"running": {"startedAt": last.started}}
    elif last and waiting is None and last.ended:
        result["state"] = {"terminated": _terminated(last)}
    else:
        default = Waiting(reason="ContainerCreating" if initialized or init else "PodInitializing")
        result["state"] = {"waiting": (waiting or default).to_object()}
        if last and last.ended:  # it waits to be started again, so what we see last is its past
            previous = last
    if previous and previous.ended:
        result["lastState"] = {"terminated": _terminated(previous)}
    return result


def _terminated(container: Container) -> Object:
    if container.out_of_memory:
        reason = "OOMKilled"
    elif container.state == "created":
        reason = "StartError"
    else:
        reason = "Error" if container.exit_code else "Completed"
    return {
        "exitCode": container.exit_code,
        "reason": reason,
        **({"message": container.error} if container.error else {}),
        "startedAt": container.started,
        "finishedAt": container.finished,
        "containerID": f"docker://{container.id}",
    }
