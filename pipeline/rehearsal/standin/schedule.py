"""Which node a pod goes to, and which nodes have fallen silent."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from functools import partial

from . import log
from .status import ApiError, Object
from .store import Store, timestamp

LOOK_SECONDS = 5.0
SILENT = timedelta(seconds=40)  # the node controller's --node-monitor-grace-period, until 1.31


class Scheduler:
    """Gives every pod without a node the one with the fewest pods, of those that are Ready and have its labels."""

    def __init__(self, store: Store, own_node: str) -> None:
        self._store = store
        self._own_node = own_node

    def run(self) -> None:
        """For ever."""
        version = 0
        while True:
            self.look()
            with contextlib.suppress(ApiError):
                self._store.changes(version or self._store.version, timeout=LOOK_SECONDS)
            version = self._store.version

    def look(self) -> None:
        """Once."""
        self._place()
        self._notice_silence()

    def _place(self) -> None:
        pods = self._store.find("pods")[0]
        waiting = [pod for pod in pods if not pod["spec"].get("nodeName")]
        if not waiting:
            return
        nodes = self._store.find("nodes")[0]
        for pod in waiting:
            selector = pod["spec"].get("nodeSelector") or {}
            fit = [node for node in nodes if is_fit(node, selector)]
            count = {node["metadata"]["name"]: 0 for node in fit}
            for other in pods:
                if (name := other["spec"].get("nodeName")) in count:
                    count[name] += 1
            chosen = min(count, key=lambda name: (count[name], name != self._own_node, name), default="")
            why = "" if chosen else f"0/{len(nodes)} nodes are available: none is Ready and has its labels"
            with contextlib.suppress(ApiError):  # it is gone by now
                key = ("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
                self._store.modify(*key, partial(_placed, node=chosen, why=why))
            pod["spec"]["nodeName"] = chosen

    def _notice_silence(self) -> None:
        """Nodes of agents that are not heard of any more are not Ready."""
        oldest = (datetime.now(UTC) - SILENT).strftime("%Y-%m-%dT%H:%M:%SZ")
        for node in self._store.find("nodes")[0]:
            name = node["metadata"]["name"]
            ready = next((one for one in conditions(node) if one["type"] == "Ready"), None)
            if name == self._own_node or ready is None or ready["status"] == "Unknown":
                continue
            if ready["lastHeartbeatTime"] < oldest:
                log.warn(f"node {name} is not heard of any more")
                self._store.modify("nodes", "", name, _silent)


def is_fit(node: Object, selector: dict[str, str]) -> bool:
    """Whether pods with this selector may go there."""
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions(node))
    labels = node["metadata"].get("labels") or {}
    return ready and not node["spec"].get("unschedulable") and selector.items() <= labels.items()


def conditions(node: Object) -> list[Object]:
    """Of a node that may have been made a moment ago."""
    return list(node.get("status", {}).get("conditions") or [])


def _placed(pod: Object, node: str, why: str) -> Object:
    condition = {"type": "PodScheduled", "status": "True" if node else "False"}
    if node:
        pod["spec"]["nodeName"] = node
    else:
        condition |= {"reason": "Unschedulable", "message": why}
    old = pod["status"].get("conditions") or []
    same = [one for one in old if {key: one.get(key) for key in condition} == condition]
    pod["status"]["conditions"] = same or [{**condition, "lastTransitionTime": timestamp()}]
    return pod


def _silent(node: Object) -> Object:
    for condition in node["status"]["conditions"]:
        if condition["type"] == "Ready":
            message = "the node's agent has told nothing for 40 s"
            condition |= {"status": "Unknown", "reason": "NodeStatusUnknown", "message": message}
            condition["lastTransitionTime"] = timestamp()
    return node
