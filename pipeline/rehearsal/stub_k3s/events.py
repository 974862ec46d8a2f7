"""Events: what happened to an object, for `kubectl get events`."""

from __future__ import annotations

import contextlib
import hashlib

from .status import ApiError, Object
from .store import Store, timestamp


def record(store: Store, thing: Object, kind: str, reason: str, message: str) -> None:
    """Write an event about an object; the same again changes its time. No failure of it is one of its caller."""
    metadata = thing["metadata"]
    namespace, now = metadata["namespace"], timestamp()
    digest = hashlib.sha256(f"{metadata['uid']} {reason} {message}".encode()).hexdigest()
    name = f"{metadata['name']}.{digest[:16]}"
    event = {
        "kind": "Event",
        "apiVersion": "v1",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {"kind": thing["kind"], "name": metadata["name"], "namespace": namespace},
        "type": kind,
        "reason": reason,
        "message": message,
        "lastTimestamp": now,
    }
    try:
        store.create("events", event)
    except ApiError:
        with contextlib.suppress(ApiError):
            store.modify("events", namespace, name, lambda old: {**old, "lastTimestamp": now})
