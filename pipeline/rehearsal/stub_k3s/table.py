"""The tables of `kubectl get`, which for other objects prints only names and ages.

The columns are some of those of kubernetes (pkg/printers/internalversion/printers.go).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .errors import Object

Columns = Mapping[str, Callable[[Object], object]]


def render(plural: str, things: list[Object], version: str) -> Object:
    """Return the table of some objects, each with its row."""
    columns = COLUMNS.get(plural, {"Name": _name})
    names = [{"name": name, "type": "string", "format": "name" if name == "Name" else ""} for name in columns]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version},
        "columnDefinitions": [{**name, "description": "", "priority": 0} for name in names],
        "rows": [{"cells": [cell(thing) for cell in columns.values()], "object": thing} for thing in things],
    }


def _pod_status(pod: Object) -> str:
    """Return why a container waits or how it ended, else the pod's phase."""
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    for container in _containers(pod):
        state = container["state"].get("waiting") or container["state"].get("terminated")
        if state:
            return str(state["reason"])
    return str(pod["status"]["phase"])


def _containers(pod: Object) -> list[Object]:
    return list(pod["status"].get("containerStatuses") or [])


def _ready(pod: Object) -> str:
    return f"{sum(container['ready'] for container in _containers(pod))}/{len(pod['spec']['containers'])}"


def _node_status(node: Object) -> str:
    conditions = {entry["type"]: entry["status"] for entry in node.get("status", {}).get("conditions") or []}
    return "Ready" if conditions.get("Ready") == "True" else "NotReady"


def _roles(node: Object) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = node["metadata"].get("labels") or {}
    return ",".join(label.removeprefix(prefix) for label in labels if label.startswith(prefix)) or "<none>"


def _name(thing: Object) -> object:
    return thing["metadata"]["name"]


COLUMNS: dict[str, Columns] = {
    "pods": {
        "Name": _name,
        "Ready": _ready,
        "Status": _pod_status,
        "Restarts": lambda pod: sum(container["restartCount"] for container in _containers(pod)),
    },
    "nodes": {
        "Name": _name,
        "Status": _node_status,
        "Roles": _roles,
        "Version": lambda node: node.get("status", {}).get("nodeInfo", {}).get("kubeletVersion", "<unknown>"),
    },
    "events": {
        "Reason": lambda event: event["reason"],
        "Object": lambda event: event["involvedObject"]["name"],
        "Message": lambda event: event["message"],
    },
}
