"""Watches: the changes of one selection, from one version on, for as long as somebody listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from .resources import Resource
from .selectors import Selector
from .status import ApiError, Object
from .store import Change, Store

QUIET_SECONDS = 5.0  # how often a silent watch looks whether its client is still there
BOOKMARK_SECONDS = 60.0  # the image's own watch takes one without for dead


def follow(
    store: Store, resource: Resource, selector: Selector, query: dict[str, str], alive: Callable[[], bool]
) -> Iterator[Object]:
    """Yield the watch's events; ends when its time is over or `alive` says that nobody listens."""
    until = time.monotonic() + float(query.get("timeoutSeconds") or 3600)
    initial = query.get("sendInitialEvents") == "true"
    start = query.get("resourceVersion", "")
    if start in ("", "0") or initial:
        things, version = store.find(resource.plural, selector.namespace)
        yield from ({"type": "ADDED", "object": thing} for thing in things if selector.matches(thing))
        if initial:
            # Tells clients that stream instead of listing that they have seen everything (WatchList, KEP-3157).
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
            if event := _select(change, resource.plural, selector):
                yield event
        if query.get("allowWatchBookmarks") == "true" and time.monotonic() - marked > BOOKMARK_SECONDS:
            marked = time.monotonic()
            yield _bookmark(resource, version, {})


def _select(change: Change, plural: str, selector: Selector) -> Object | None:
    """A change as its watcher sees it: entering and leaving the selection are ADDED and DELETED."""
    if change.key[0] != plural:
        return None
    now = change.type != "DELETED" and selector.matches(change.object)
    before = change.before is not None and selector.matches(change.before)
    if not now and not before:
        return None
    kind = ("MODIFIED" if before else "ADDED") if now else "DELETED"
    return {"type": kind, "object": change.object}


def _bookmark(resource: Resource, version: int, annotations: dict[str, str]) -> Object:
    metadata = {"resourceVersion": str(version), "creationTimestamp": None, "annotations": annotations}
    return {
        "type": "BOOKMARK",
        "object": {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata},
    }
