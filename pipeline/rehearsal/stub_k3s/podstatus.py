"""The status of a pod, derived from its containers. No I/O."""

from __future__ import annotations

from collections.abc import Mapping

from .containers import Container
from .errors import Object
from .store import timestamp


def phase(pod: Object, containers: Mapping[str, Container]) -> str:
    """Return the pod's phase (kubernetes: pkg/kubelet/kubelet_pods.go, getPhase)."""
    policy = pod["spec"]["restartPolicy"]
    started = [container for container in containers.values() if container.running or container.ended]
    if len(started) < len(pod["spec"]["containers"]):
        return "Pending"
    if policy == "Always" or any(container.running for container in started):
        return "Running"
    if all(container.exit_code == 0 for container in started):
        return "Succeeded"
    return "Running" if policy == "OnFailure" else "Failed"


def status(pod: Object, containers: Mapping[str, Container], waiting: Mapping[str, Object]) -> Object:
    """Return the whole status; `waiting`: why containers do not run, by name."""
    old: Object = pod["status"]
    statuses = []
    for spec in pod["spec"]["containers"]:
        container = containers.get(spec["name"])
        statuses.append(
            {
                "name": spec["name"],
                "image": spec["image"],
                "restartCount": container.attempt if container else 0,
                "ready": bool(container and container.running),
                "state": _state(container, waiting.get(spec["name"])),
            }
        )
    addresses = (container.address for container in containers.values() if container.running and container.address)
    unready = " ".join(status["name"] for status in statuses if not status["ready"])
    return {
        "phase": phase(pod, containers),
        "conditions": [ready_condition(old, f"containers with unready status: [{unready}]" if unready else "")],
        "containerStatuses": statuses,
        "podIP": next(addresses, old.get("podIP", "")),
    }


def ready_condition(status: Object, problem: str) -> Object:
    """Return the condition Ready of a pod or a node; `problem`: why it is not Ready, empty if it is."""
    value = "False" if problem else "True"
    old: Object = next((entry for entry in status.get("conditions") or [] if entry["type"] == "Ready"), {})
    since = old["lastTransitionTime"] if old.get("status") == value else timestamp()
    return {"type": "Ready", "status": value, "message": problem, "lastTransitionTime": since}


def _state(container: Container | None, waiting: Object | None) -> Object:
    if container and container.running:
        return {"running": {}}
    if container and container.ended and waiting is None:
        reason = "StartError" if container.state == "created" else "Error" if container.exit_code else "Completed"
        return {"terminated": {"exitCode": container.exit_code, "reason": reason, "message": container.error}}
    return {"waiting": waiting or {"reason": "ContainerCreating"}}
