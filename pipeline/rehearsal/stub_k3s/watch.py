"""Selectors (`a=b,c=d` over labels, and over any path of an object for fields), and watches of what they select."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .errors import ApiError, Object
from .resources import Resource
from .store import Store

QUIET_SECONDS = 5.0  # how often a silent watch checks whether its client is still connected
BOOKMARK_SECONDS = 60.0  # the image's own watch counts as dead after 150 s without one


@dataclass(frozen=True, kw_only=True)
class Selector:
    """The objects that a list or a watch is about."""

    namespace: str | None  # None: all
    labels: str = ""
    fields: str = ""

    def matches(self, thing: Object) -> bool:
        """Return whether an object is selected."""
        metadata = thing["metadata"]
        if self.namespace is not None and metadata.get("namespace", "") != self.namespace:
            return False
        labels: dict[str, str] = metadata.get("labels") or {}
        return all(labels.get(key, "") == value for key, value in _parts(self.labels)) and all(
            _field(thing, key) == value for key, value in _parts(self.fields)
        )


def _parts(text: str) -> list[tuple[str, str]]:
    """Return key and value of each part. Raises ApiError."""
    parts = []
    for part in text.split(",") if text else []:
        key, sign, value = part.partition("=")
        if not sign or " " in part or key.endswith("!"):
            raise ApiError(400, f"the stub has no selectors like {part}, only key=value")
        parts.append((key, value.removeprefix("=")))
    return parts


def _field(thing: Object, path: str) -> str:
    value: object = thing
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def follow(
    store: Store, resource: Resource, selector: Selector, query: dict[str, str], alive: Callable[[], bool]
) -> Iterator[Object]:
    """Yield the watch's events until its time is over or its client has disconnected."""
    until = time.monotonic() + float(query.get("timeoutSeconds") or 3600)
    initial = query.get("sendInitialEvents") == "true"
    start = query.get("resourceVersion", "")
    if start in ("", "0") or initial:
        things, version = store.find(resource.plural, selector.namespace)
        yield from ({"type": "ADDED", "object": thing} for thing in things if selector.matches(thing))
        if initial:
            # For clients that watch instead of listing: the end of the initial events (WatchList, KEP-3157).
            yield _bookmark(resource, version, {"k8s.io/initial-events-end": "true"})
    else:
        version = int(start)
    marked = time.monotonic()
    while (left := until - time.monotonic()) > 0 and alive():
        try:
            changes = store.changes(version, timeout=min(QUIET_SECONDS, left))
        except ApiError as error:
            yield {"type": "ERROR", "object": error.to_object()}
            return
        for change in changes:
            version = change.version
            if change.key[0] == resource.plural and selector.matches(change.object):
                yield {"type": change.type, "object": change.object}
        if query.get("allowWatchBookmarks") == "true" and time.monotonic() - marked > BOOKMARK_SECONDS:
            marked = time.monotonic()
            yield _bookmark(resource, version, {})


def _bookmark(resource: Resource, version: int, annotations: dict[str, str]) -> Object:
    metadata = {"resourceVersion": str(version), "creationTimestamp": None, "annotations": annotations}
    return {
        "type": "BOOKMARK",
        "object": {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata},
    }
