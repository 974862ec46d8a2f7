"""The tables of `kubectl get nodes` and `get pods`; of other objects kubectl prints names and ages by itself."""

from __future__ import annotations

from .errors import Object
from .node import CONTROL_PLANE
from .nodes import is_ready

COLUMNS = {"nodes": ("Name", "Status", "Roles", "Version"), "pods": ("Name", "Ready", "Status", "Restarts")}


def render(plural: str, things: list[Object]) -> Object:
    """Return the table of nodes or pods."""
    cells = _node if plural == "nodes" else _pod
    rows = [{"cells": [thing["metadata"]["name"], *cells(thing)], "object": thing} for thing in things]
    columns = [{"name": name, "type": "string"} for name in COLUMNS[plural]]
    return {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": columns, "rows": rows}


def _node(node: Object) -> list[object]:
    version = node.get("status", {}).get("nodeInfo", {}).get("kubeletVersion", "<unknown>")
    role = "control-plane" if CONTROL_PLANE in node["metadata"]["labels"] else "<none>"
    return ["Ready" if is_ready(node) else "NotReady", role, version]


def _pod(pod: Object) -> list[object]:
    containers = pod["status"].get("containerStatuses") or []
    ready = f"{sum(container['ready'] for container in containers)}/{len(pod['spec']['containers'])}"
    return [ready, pod["status"].get("phase", "Pending"), sum(container["restartCount"] for container in containers)]
