"""The verbs of the API on the store, with defaults and validation of objects."""

from __future__ import annotations

import contextlib
import copy
from ipaddress import IPv4Network
from typing import Any

from .errors import ApiError, Object
from .resources import Resource
from .store import Store, timestamp

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
# Those of a new cluster that somebody asks for.
NAMESPACES = ("default", "kube-system")


def furnish(store: Store, service_cidr: IPv4Network, api_port: int) -> None:
    """Create the objects of a new cluster: namespaces, their service accounts, the API's own service."""
    spec = {"clusterIP": str(service_cidr[1]), "ports": [{"name": "https", "port": 443, "targetPort": api_port}]}
    metadata = {"name": "kubernetes", "namespace": "default"}
    things: list[tuple[str, Object]] = [("services", {"kind": "Service", "metadata": metadata, "spec": spec})]
    for name in NAMESPACES:
        things.append(("namespaces", {"kind": "Namespace", "metadata": {"name": name}}))
        account = {"name": "default", "namespace": name}
        things.append(("serviceaccounts", {"kind": "ServiceAccount", "metadata": account}))
    for plural, thing in things:
        with contextlib.suppress(ApiError):  # it exists already
            store.create(plural, {"apiVersion": "v1", **thing})


def create(store: Store, resource: Resource, namespace: str, thing: Object) -> Object:
    """Store a new object with the defaults of its kind."""
    thing = {"apiVersion": resource.api_version, "kind": resource.kind, **thing}
    metadata = thing.setdefault("metadata", {})
    if not metadata.get("name"):
        raise ApiError(422, f"{resource.kind} is invalid: metadata.name: Required value")
    if resource.namespaced:
        if metadata.setdefault("namespace", namespace) != namespace:
            raise ApiError(400, "the namespace of the object does not match the namespace of the request")
        store.get("namespaces", "", namespace)
    if resource.plural == "pods":
        complete_pod(thing.setdefault("spec", {}))
        thing["status"] = {"phase": "Pending"}
    return store.create(resource.plural, thing)


def delete(store: Store, plural: str, namespace: str, name: str, options: Object) -> Object:
    """Delete an object. A running pod is only marked as deleted: its kubelet stops and removes it."""
    key = (plural, namespace, name)
    thing = store.get(*key)
    seconds = 0
    lives = plural == "pods" and thing["status"]["phase"] not in ("Succeeded", "Failed")
    if lives and thing["spec"].get("nodeName"):
        seconds = options.get("gracePeriodSeconds", thing["spec"]["terminationGracePeriodSeconds"])
    if seconds == 0:
        return store.delete(*key)
    mark = {"deletionTimestamp": timestamp(after=seconds), "deletionGracePeriodSeconds": seconds}
    return store.modify(*key, lambda old: {**old, "metadata": {**old["metadata"], **mark}})


def complete_pod(spec: Object) -> None:
    """Add the defaults of a pod (kubernetes: pkg/apis/core/v1/defaults.go). Raises ApiError if it is not supported."""
    if spec.get("initContainers") or spec.get("hostNetwork"):
        raise ApiError(501, "the stub has neither init containers nor hostNetwork")
    if not spec.get("containers") or any("image" not in container for container in spec["containers"]):
        raise ApiError(422, "Pod is invalid: spec.containers: Required value: containers with images")
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    for container in spec["containers"]:
        last = container["image"].rpartition("/")[2]
        newest = "@" not in last and (":" not in last or last.endswith(":latest"))
        container.setdefault("imagePullPolicy", "Always" if newest else "IfNotPresent")


def patched(media_type: str, thing: Object, patch: Any) -> Object:
    """Return a patched copy (RFC 7386).

    A strategic merge differs only in lists of objects, which it merges item by item, as keys like
    `$setElementOrder` state: those are refused.
    """
    if media_type not in (MERGE, STRATEGIC):
        raise ApiError(415, f"the stub has no patches of type {media_type or 'none'}, only {MERGE} and {STRATEGIC}")
    return _merge(copy.deepcopy(thing), patch)


def _merge(old: Any, new: Object) -> Object:
    result: Object = dict(old) if isinstance(old, dict) else {}
    for key, value in new.items():
        if key.startswith("$"):
            raise ApiError(415, f"the stub merges no lists of objects (the patch has {key})")
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = _merge(result.get(key), value)
        else:
            result[key] = value
    return result
