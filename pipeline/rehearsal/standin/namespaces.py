"""The life of namespaces: what is in each from its first moment, and how it goes."""

from __future__ import annotations

import contextlib
import threading

from . import log
from .resources import RESOURCES
from .status import ApiError, Object
from .store import Store, timestamp

# The namespaces that every cluster has from its start.
INITIAL = ("default", "kube-system", "kube-public", "kube-node-lease")


def furnish(store: Store, namespace: str, ca: str) -> None:
    """Put the default service account and the CA into a namespace, where they are not there yet."""
    metadata = {"namespace": namespace}
    things: tuple[tuple[str, Object], ...] = (
        ("serviceaccounts", {"kind": "ServiceAccount", "metadata": {**metadata, "name": "default"}}),
        (
            "configmaps",
            {"kind": "ConfigMap", "metadata": {**metadata, "name": "kube-root-ca.crt"}, "data": {"ca.crt": ca}},
        ),
    )
    for plural, thing in things:
        with contextlib.suppress(ApiError):  # it is there already
            store.create(plural, {"apiVersion": "v1", **thing})


class Reaper(threading.Thread):
    """Empties namespaces that are being deleted: first what is in them, then, once the pods are gone, themselves."""

    def __init__(self, store: Store) -> None:
        super().__init__(name="namespaces", daemon=True)
        self._store = store

    def run(self) -> None:
        """Look again whenever a namespace or a pod changed."""
        version = 0
        while True:
            try:
                changes = self._store.changes(version, timeout=3600) if version else []
            except ApiError:
                changes = []
            relevant = not version or any(change.key[0] in ("namespaces", "pods") for change in changes)
            version = changes[-1].version if changes else self._store.version
            if relevant:
                for namespace in self._store.find("namespaces")[0]:
                    if namespace["metadata"].get("deletionTimestamp"):
                        self._empty(namespace["metadata"]["name"])

    def _empty(self, name: str) -> None:
        for plural, resource in RESOURCES.items():
            if resource.namespaced and plural != "pods":
                for thing in self._store.find(plural, name)[0]:
                    with contextlib.suppress(ApiError):
                        self._store.delete(plural, name, thing["metadata"]["name"])
        pods = self._store.find("pods", name)[0]
        for pod in pods:
            with contextlib.suppress(ApiError):
                delete_pod(self._store, pod, grace=None)
        if not self._store.find("pods", name)[0]:
            with contextlib.suppress(ApiError):
                self._store.delete("namespaces", "", name)
                log.say(f"namespace {name} is gone")


def delete_pod(store: Store, pod: Object, *, grace: int | None) -> Object:
    """Begin the end of a pod: the kubelet stops it in its time and takes it away; with no time it is gone at once."""
    metadata = pod["metadata"]
    key = (metadata.get("namespace", ""), metadata["name"])
    seconds = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
    if pod.get("status", {}).get("phase") in ("Succeeded", "Failed") or not pod["spec"].get("nodeName"):
        seconds = 0
    if seconds == 0:
        return store.delete("pods", *key, uid=metadata["uid"])

    def mark(old: Object) -> Object:
        known = old["metadata"].get("deletionGracePeriodSeconds")
        if known is None or seconds < known:
            old["metadata"]["deletionTimestamp"] = timestamp(after=seconds)
            old["metadata"]["deletionGracePeriodSeconds"] = seconds
        return old

    return store.modify("pods", *key, mark)
