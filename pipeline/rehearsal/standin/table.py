"""Objects as the tables that `kubectl get` shows (kubernetes: pkg/printers/internalversion/printers.go)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from .status import Object

Cell = str | int


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column; those of priority 1 are shown by `-o wide` only."""

    name: str
    cell: Callable[[Object], Cell]
    wide: bool = False


def render(plural: str, things: list[Object], version: str | None, include: str) -> Object:
    """Make the table of some objects; `include` says how much of each object goes with its row."""
    columns = COLUMNS.get(plural, SIMPLE)
    rows = []
    for thing in things:
        row: Object = {"cells": [column.cell(thing) for column in columns]}
        if include == "Object":
            row["object"] = thing
        elif include != "None":
            partial = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
            row["object"] = {**partial, "metadata": thing["metadata"]}
        rows.append(row)
    definitions = [
        {
            "name": column.name,
            "type": "string",
            "format": "name" if column.name == "Name" else "",
            "description": "",
            "priority": 1 if column.wide else 0,
        }
        for column in columns
    ]
    metadata = {"resourceVersion": version} if version else {}
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    }


def duration(seconds: float) -> str:
    """A duration as kubectl writes it: two units at most, coarser the longer it is."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 120:
        return f"{whole}s"
    if minutes < 10:
        return f"{minutes}m{whole % 60}s" if whole % 60 else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if days < 2:
        return f"{hours}h"
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    return f"{days}d"


def since(moment: str | None) -> str:
    """How long ago a Kubernetes time was."""
    if not moment:
        return "<unknown>"
    then = datetime.fromisoformat(moment.replace("Z", "+00:00"))
    return duration((datetime.now(UTC) - then).total_seconds())


def pod_status(pod: Object) -> str:
    """The STATUS column of a pod: why it waits or ended, else its phase."""
    status = pod.get("status", {})
    reason = str(status.get("reason") or status.get("phase", "Unknown"))
    running = False
    for number, container in enumerate(status.get("initContainerStatuses") or []):
        state = container.get("state", {})
        if (state.get("terminated") or {}).get("exitCode") == 0:
            continue
        why = (state.get("waiting") or {}).get("reason") or (state.get("terminated") or {}).get("reason")
        total = len(pod["spec"].get("initContainers") or [])
        return _gone(pod) or (f"Init:{why}" if why and why != "PodInitializing" else f"Init:{number}/{total}")
    for container in reversed(status.get("containerStatuses") or []):
        state = container.get("state", {})
        if "waiting" in state:
            reason = state["waiting"].get("reason") or reason
        elif "terminated" in state:
            reason = state["terminated"].get("reason") or f"ExitCode:{state['terminated'].get('exitCode')}"
        elif container.get("ready"):
            running = True
    if reason == "Completed" and running:
        conditions = {entry["type"]: entry["status"] for entry in status.get("conditions") or []}
        reason = "Running" if conditions.get("Ready") == "True" else "NotReady"
    return _gone(pod) or reason


def _gone(pod: Object) -> str:
    return "Terminating" if pod["metadata"].get("deletionTimestamp") else ""


def _ready(pod: Object) -> str:
    ready = sum(1 for container in pod.get("status", {}).get("containerStatuses") or [] if container.get("ready"))
    return f"{ready}/{len(pod['spec']['containers'])}"


def _restarts(pod: Object) -> str:
    statuses = pod.get("status", {}).get("containerStatuses") or []
    count = sum(container.get("restartCount", 0) for container in statuses)
    ends = [(container.get("lastState") or {}).get("terminated", {}).get("finishedAt") for container in statuses]
    last = max((end for end in ends if end), default=None)
    return f"{count} ({since(last)} ago)" if count and last else str(count)


def _node_status(node: Object) -> str:
    ready = [entry["status"] for entry in node["status"].get("conditions") or [] if entry["type"] == "Ready"]
    words = ["Ready" if ready == ["True"] else "NotReady"]
    if node.get("spec", {}).get("unschedulable"):
        words.append("SchedulingDisabled")
    return ",".join(words)


def _roles(node: Object) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = node["metadata"].get("labels") or {}
    return ",".join(sorted(label.removeprefix(prefix) for label in labels if label.startswith(prefix))) or "<none>"


def _node_address(kind: str) -> Callable[[Object], str]:
    def cell(node: Object) -> str:
        addresses = node["status"].get("addresses") or []
        return next((str(entry["address"]) for entry in addresses if entry["type"] == kind), "<none>")

    return cell


def _node_info(field: str) -> Callable[[Object], str]:
    return lambda node: str(node["status"]["nodeInfo"].get(field) or "<unknown>")


def _ports(service: Object) -> str:
    words = []
    for entry in service["spec"].get("ports") or []:
        node_port = f":{entry['nodePort']}" if entry.get("nodePort") else ""
        words.append(f"{entry['port']}{node_port}/{entry['protocol']}")
    return ",".join(words) or "<none>"


def _selector(service: Object) -> str:
    return ",".join(f"{key}={value}" for key, value in (service["spec"].get("selector") or {}).items()) or "<none>"


NAME = Column(name="Name", cell=lambda thing: str(thing["metadata"]["name"]))
AGE = Column(name="Age", cell=lambda thing: since(thing["metadata"].get("creationTimestamp")))
SIMPLE = (NAME, AGE)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "pods": (
        NAME,
        Column(name="Ready", cell=_ready),
        Column(name="Status", cell=pod_status),
        Column(name="Restarts", cell=_restarts),
        AGE,
        Column(name="IP", cell=lambda pod: pod.get("status", {}).get("podIP") or "<none>", wide=True),
        Column(name="Node", cell=lambda pod: pod["spec"].get("nodeName") or "<none>", wide=True),
        Column(name="Nominated Node", cell=lambda _: "<none>", wide=True),
        Column(name="Readiness Gates", cell=lambda _: "<none>", wide=True),
    ),
    "nodes": (
        NAME,
        Column(name="Status", cell=_node_status),
        Column(name="Roles", cell=_roles),
        AGE,
        Column(name="Version", cell=_node_info("kubeletVersion")),
        Column(name="Internal-IP", cell=_node_address("InternalIP"), wide=True),
        Column(name="External-IP", cell=_node_address("ExternalIP"), wide=True),
        Column(name="OS-Image", cell=_node_info("osImage"), wide=True),
        Column(name="Kernel-Version", cell=_node_info("kernelVersion"), wide=True),
        Column(name="Container-Runtime", cell=_node_info("containerRuntimeVersion"), wide=True),
    ),
    "namespaces": (NAME, Column(name="Status", cell=lambda thing: str(thing["status"]["phase"])), AGE),
    "services": (
        NAME,
        Column(name="Type", cell=lambda service: str(service["spec"]["type"])),
        Column(name="Cluster-IP", cell=lambda service: service["spec"].get("clusterIP") or "<none>"),
        Column(name="External-IP", cell=lambda _: "<none>"),
        Column(name="Port(s)", cell=_ports),
        AGE,
        Column(name="Selector", cell=_selector, wide=True),
    ),
    "configmaps": (NAME, Column(name="Data", cell=lambda thing: str(len(thing.get("data") or {}))), AGE),
    "secrets": (
        NAME,
        Column(name="Type", cell=lambda thing: str(thing.get("type"))),
        Column(name="Data", cell=lambda thing: str(len(thing.get("data") or {}))),
        AGE,
    ),
    "serviceaccounts": (NAME, Column(name="Secrets", cell=lambda thing: str(len(thing.get("secrets") or []))), AGE),
    "events": (
        Column(name="Last Seen", cell=lambda event: since(event.get("lastTimestamp"))),
        Column(name="Type", cell=lambda event: event.get("type") or ""),
        Column(name="Reason", cell=lambda event: event.get("reason") or ""),
        Column(
            name="Object",
            cell=lambda event: "/".join(
                str(event.get("involvedObject", {}).get(field, "")).lower() for field in ("kind", "name")
            ),
        ),
        Column(name="Message", cell=lambda event: event.get("message") or ""),
    ),
}
