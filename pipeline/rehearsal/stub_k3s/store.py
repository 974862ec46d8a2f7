"""Objects in memory and in one sqlite file, with a version counter and a log of changes for watches.

sqlite in WAL mode survives a SIGKILL; k3s keeps its state there by default (server/db/state.db). Changes are visible
once they are written. The log has all changes since the start. A watch from before it gets 410, as after a compaction,
and clients list again.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sqlite3
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from .errors import ApiError, Object

Key = tuple[str, str, str]  # plural, namespace ("" for none), name
Kind = Literal["ADDED", "MODIFIED", "DELETED"]

_SERVERS_OWN = ("uid", "creationTimestamp", "resourceVersion", "name", "namespace")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of an object; of a deleted one its last state."""

    version: int
    type: Kind
    key: Key
    object: Object


def timestamp(*, after: float = 0) -> str:
    """Return the time in `after` seconds, as Kubernetes writes it."""
    return (datetime.now(UTC) + timedelta(seconds=after)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """All objects; thread-safe."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._changed = threading.Condition()
        self._database = sqlite3.connect(path, check_same_thread=False)
        path.chmod(0o600)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute("CREATE TABLE IF NOT EXISTS version (one INTEGER PRIMARY KEY, value INTEGER NOT NULL)")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS objects (plural TEXT, namespace TEXT, name TEXT, content TEXT NOT NULL,"
            " PRIMARY KEY (plural, namespace, name))"
        )
        row = self._database.execute("SELECT value FROM version").fetchone()
        self._version = int(row[0]) if row else 1
        self._objects: dict[Key, Object] = {
            (plural, namespace, name): json.loads(content)
            for plural, namespace, name, content in self._database.execute("SELECT * FROM objects")
        }
        self._log: list[Change] = []  # one for each version after the first one
        self._first = self._version

    def close(self) -> None:
        """Close the file."""
        with self._changed:
            self._database.close()

    @property
    def version(self) -> int:
        """The version of the latest change."""
        with self._changed:
            return self._version

    def get(self, plural: str, namespace: str, name: str) -> Object:
        """Return a copy of one object."""
        with self._changed:
            thing = self._objects.get((plural, namespace, name))
            if thing is None:
                raise ApiError(404, f'{plural} "{name}" not found')
            return copy.deepcopy(thing)

    def find(self, plural: str, namespace: str | None = None) -> tuple[list[Object], int]:
        """Return copies of all objects of a kind, sorted by name, and their version."""
        with self._changed:
            keys = sorted(key for key in self._objects if key[0] == plural and namespace in (None, key[1]))
            return [copy.deepcopy(self._objects[key]) for key in keys], self._version

    def create(self, plural: str, thing: Object) -> Object:
        """Add an object, with a new uid and the time."""
        metadata = thing["metadata"]
        key = (plural, metadata.get("namespace", ""), metadata["name"])
        with self._changed:
            if key in self._objects:
                raise ApiError(409, f'{plural} "{key[2]}" already exists', reason="AlreadyExists")
            metadata["uid"] = str(uuid.uuid4())
            metadata["creationTimestamp"] = timestamp()
            return self._put("ADDED", key, thing)

    def modify(self, plural: str, namespace: str, name: str, change: Callable[[Object], Object]) -> Object:
        """Replace an object by what `change` returns for it; without effect if both are equal.

        Raises ApiError 409 if the new object has a resourceVersion other than the current one.
        """
        with self._changed:
            key = (plural, namespace, name)
            before = self.get(*key)
            after = change(copy.deepcopy(before))
            if after["metadata"].get("resourceVersion") not in (None, "", before["metadata"]["resourceVersion"]):
                raise ApiError(
                    409, f'Operation cannot be fulfilled on {plural} "{name}": the object has been modified; try again'
                )
            for field in _SERVERS_OWN:
                if field in before["metadata"]:
                    after["metadata"][field] = before["metadata"][field]
            return before if after == before else self._put("MODIFIED", key, after)

    def delete(self, plural: str, namespace: str, name: str, uid: str | None = None) -> Object:
        """Remove an object; with `uid`, only if it still has that one."""
        with self._changed:
            key = (plural, namespace, name)
            before = self._objects.get(key)
            if before is None or uid not in (None, before["metadata"]["uid"]):
                raise ApiError(404, f'{plural} "{name}" not found')
            return self._put("DELETED", key, copy.deepcopy(before))

    def _put(self, kind: Kind, key: Key, thing: Object) -> Object:
        version = self._version + 1
        thing["metadata"]["resourceVersion"] = str(version)
        content = json.dumps(thing, separators=(",", ":"))
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO version VALUES (1, ?)", (version,))
            if kind == "DELETED":
                self._database.execute("DELETE FROM objects WHERE plural=? AND namespace=? AND name=?", key)
            else:
                self._database.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", (*key, content))
        self._version = version
        stored: Object = json.loads(content)  # a copy that no caller holds
        if kind == "DELETED":
            del self._objects[key]
        else:
            self._objects[key] = stored
        self._log.append(Change(version=version, type=kind, key=key, object=stored))
        self._changed.notify_all()
        return copy.deepcopy(stored)

    def changes(self, after: int, timeout: float) -> list[Change]:
        """Wait for changes after a version and return them, not to be modified; none after `timeout` seconds."""
        with self._changed:
            if after < self._first:
                raise ApiError(410, f"too old resource version: {after} ({self._first})")
            self._changed.wait_for(lambda: self._version > after, timeout)
            return self._log[after - self._first :]

    def record_event(self, thing: Object, kind: str, reason: str, message: str) -> None:
        """Add an event about an object, named after both; a repeated one gets the current time."""
        metadata = thing["metadata"]
        namespace, now = metadata["namespace"], timestamp()
        name = f"{metadata['name']}.{reason}"
        event = {
            "kind": "Event",
            "apiVersion": "v1",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {"kind": thing["kind"], "name": metadata["name"], "namespace": namespace},
            "type": kind,
            "reason": reason,
        }
        with contextlib.suppress(ApiError):  # an earlier one
            self.create("events", event)
        with contextlib.suppress(ApiError):  # somebody deleted it
            latest = {"message": message, "lastTimestamp": now}
            self.modify("events", namespace, name, lambda old: {**old, **latest})
