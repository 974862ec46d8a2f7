"""Which node a pod goes to."""

from __future__ import annotations

import contextlib

from .status import ApiError, Object
from .store import Store

LOOK_SECONDS = 5.0


def run(store: Store, own_node: str) -> None:
    """Place pods whenever something changed; never ends."""
    while True:
        version = store.version
        look(store, own_node)
        with contextlib.suppress(ApiError):
            store.changes(version, timeout=LOOK_SECONDS)


def look(store: Store, own_node: str) -> None:
    """Give every pod without a node a Ready one that has its labels: the server's own, if it does."""
    nodes = store.find("nodes")[0]
    for pod in store.find("pods")[0]:
        selector = pod["spec"].get("nodeSelector") or {}
        fit = [node["metadata"]["name"] for node in nodes if is_fit(node, selector)]
        if fit and not pod["spec"].get("nodeName"):
            spec = {**pod["spec"], "nodeName": own_node if own_node in fit else fit[0]}
            with contextlib.suppress(ApiError):  # it is gone by now
                key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
                store.modify("pods", *key, lambda old, spec=spec: {**old, "spec": spec})  # type: ignore[misc]


def is_fit(node: Object, selector: dict[str, str]) -> bool:
    """Whether pods with this selector may go there; a node that was made a moment ago has no status yet."""
    conditions = node.get("status", {}).get("conditions") or []
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and selector.items() <= (node["metadata"].get("labels") or {}).items()
