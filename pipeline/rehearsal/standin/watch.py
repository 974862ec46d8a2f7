"""Watches: the changes of one selection, from one version on, for as long as somebody listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from .selectors import Selector
from .status import ApiError, Object
from .store import Change, Store

QUIET_SECONDS = 5.0  # how often a silent watch looks whether its client is still there
BOOKMARK_SECONDS = 60.0


def follow(
    store: Store,
    resource_plural: str,
    kind: str,
    selector: Selector,
    query: dict[str, str],
    alive: Callable[[], bool],
) -> Iterator[Object]:
    """Give the watch's events; ends when its time is over or `alive` says that nobody listens."""
    until = time.monotonic() + float(query.get("timeoutSeconds") or 3600)
    bookmarks = query.get("allowWatchBookmarks") == "true"
    initial = query.get("sendInitialEvents") == "true"
    start = query.get("resourceVersion", "")
    if start in ("", "0") or initial:
        things, version = store.find(resource_plural, selector.namespace)
        for thing in things:
            if selector.matches(thing):
                yield {"type": "ADDED", "object": thing}
        if initial and bookmarks:
            # Tells clients that stream instead of listing that they have seen everything (WatchList, KEP-3157).
            yield _bookmark(kind, version, {"k8s.io/initial-events-end": "true"})
    else:
        if not start.isdecimal():
            yield {"type": "ERROR", "object": ApiError(400, f"invalid resource version: {start}").to_object()}
            return
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
            event = select(change, resource_plural, selector)
            if event:
                yield event
        if bookmarks and time.monotonic() - marked > BOOKMARK_SECONDS:
            marked = time.monotonic()
            yield _bookmark(kind, version, {})


def select(change: Change, plural: str, selector: Selector) -> Object | None:
    """A change as its watcher sees it: entering and leaving the selection are ADDED and DELETED."""
    if change.key[0] != plural:
        return None
    now = change.type != "DELETED" and selector.matches(change.object)
    before = change.before is not None and selector.matches(change.before)
    if not now and not before:
        return None
    kind = ("MODIFIED" if before else "ADDED") if now else "DELETED"
    return {"type": kind, "object": change.object}


def _bookmark(kind: str, version: int, annotations: dict[str, str]) -> Object:
    metadata: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    if annotations:
        metadata["annotations"] = annotations
    return {"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": "v1", "metadata": metadata}}
