"""Events: what happened to a pod, for `kubectl get events`; the same again is counted, the old is forgotten."""

from __future__ import annotations

import contextlib
import secrets
from datetime import UTC, datetime, timedelta

from .status import ApiError, Object
from .store import Store, timestamp

KEPT = timedelta(hours=1)  # the API server's default --event-ttl


def record(store: Store, thing: Object, kind: str, reason: str, message: str) -> None:
    """Write one event about an object; never fails, for nothing should fail because of it."""
    metadata = thing["metadata"]
    namespace = metadata.get("namespace", "default")
    about = {
        "kind": thing.get("kind", "Pod"),
        "apiVersion": thing.get("apiVersion", "v1"),
        "name": metadata["name"],
        "namespace": metadata.get("namespace", ""),
        "uid": metadata["uid"],
    }
    now, oldest = timestamp(), (datetime.now(UTC) - KEPT).strftime("%Y-%m-%dT%H:%M:%SZ")
    with contextlib.suppress(ApiError):
        for event in store.find("events", namespace)[0]:
            name = event["metadata"]["name"]
            if event.get("lastTimestamp", now) < oldest:
                store.delete("events", namespace, name)
            elif (event["involvedObject"]["uid"], event["reason"], event["message"]) == (about["uid"], reason, message):
                store.modify("events", namespace, name, _once_more)
                return
        store.create(
            "events",
            {
                "kind": "Event",
                "apiVersion": "v1",
                "metadata": {"name": f"{metadata['name']}.{secrets.token_hex(8)}", "namespace": namespace},
                "involvedObject": about,
                "type": kind,
                "reason": reason,
                "message": message,
                "source": {"component": "standin"},
                "count": 1,
                "firstTimestamp": now,
                "lastTimestamp": now,
            },
        )


def _once_more(event: Object) -> Object:
    return {**event, "count": event["count"] + 1, "lastTimestamp": timestamp()}
