"""Objects in memory and in one sqlite file, with a version counter and a log of changes to watch.

sqlite in WAL mode is what survives a SIGKILL, and where k3s keeps its own state by default (server/db/state.db). Every
change is written before it is seen. A watch older than the log gets 410, as after a compaction, and clients list again.
"""

from __future__ import annotations

import copy
import json
import sqlite3
import threading
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from .status import ApiError, Object

Key = tuple[str, str, str]  # plural, namespace ("" for none), name
Kind = Literal["ADDED", "MODIFIED", "DELETED"]

LOG_LENGTH = 4000
_SERVERS_OWN = ("uid", "creationTimestamp", "resourceVersion", "name", "namespace")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One step in the life of an object; `before` lets a watch tell when an object leaves its selection."""

    version: int
    type: Kind
    key: Key
    object: Object
    before: Object | None


def timestamp(*, after: float = 0) -> str:
    """Now, or some seconds later, as Kubernetes writes times."""
    return (datetime.now(UTC) + timedelta(seconds=after)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """All objects; every method may be called from any thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._changed = threading.Condition()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
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
        self._log: deque[Change] = deque(maxlen=LOG_LENGTH)
        self._forgotten = self._version  # changes up to here are no longer in the log

    def close(self) -> None:
        """Close the file; nothing can be written afterwards."""
        with self._changed:
            self._database.close()

    @property
    def version(self) -> int:
        """The version of the newest change."""
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
        """Return copies of all objects of a kind, in the order of their names, and the version they are of."""
        with self._changed:
            keys = sorted(key for key in self._objects if key[0] == plural and namespace in (None, key[1]))
            return [copy.deepcopy(self._objects[key]) for key in keys], self._version

    def create(self, plural: str, thing: Object) -> Object:
        """Add an object; its identity and its time come from here."""
        metadata = thing["metadata"]
        key = (plural, metadata.get("namespace", ""), metadata["name"])
        with self._changed:
            if key in self._objects:
                raise ApiError(409, f'{plural} "{key[2]}" already exists', reason="AlreadyExists")
            metadata["uid"] = str(uuid.uuid4())
            metadata["creationTimestamp"] = timestamp()
            return self._put("ADDED", key, thing, None)

    def modify(self, plural: str, namespace: str, name: str, change: Callable[[Object], Object]) -> Object:
        """Change an object by a function from the old to the new; nothing happens when both are equal.

        A resourceVersion in the new object that is not the current one is a conflict.
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
            return before if after == before else self._put("MODIFIED", key, after, before)

    def delete(self, plural: str, namespace: str, name: str, uid: str | None = None) -> Object:
        """Remove an object; with `uid`, only when it is still that one."""
        with self._changed:
            key = (plural, namespace, name)
            before = self._objects.get(key)
            if before is None or uid not in (None, before["metadata"]["uid"]):
                raise ApiError(404, f'{plural} "{name}" not found')
            return self._put("DELETED", key, copy.deepcopy(before), before)

    def _put(self, kind: Kind, key: Key, thing: Object, before: Object | None) -> Object:
        version = self._version + 1
        thing["metadata"]["resourceVersion"] = str(version)
        content = json.dumps(thing, separators=(",", ":"))
        self._database.execute("BEGIN")
        try:
            self._database.execute("INSERT OR REPLACE INTO version VALUES (1, ?)", (version,))
            if kind == "DELETED":
                self._database.execute("DELETE FROM objects WHERE plural=? AND namespace=? AND name=?", key)
            else:
                self._database.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", (*key, content))
            self._database.execute("COMMIT")
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._version = version
        stored: Object = json.loads(content)  # a copy that no caller holds
        if kind == "DELETED":
            del self._objects[key]
        else:
            self._objects[key] = stored
        if len(self._log) == LOG_LENGTH:
            self._forgotten = self._log[0].version
        self._log.append(Change(version=version, type=kind, key=key, object=stored, before=before))
        self._changed.notify_all()
        return copy.deepcopy(stored)

    def changes(self, after: int, timeout: float) -> list[Change]:
        """Wait for changes newer than `after`; an empty list when there was none in time. Do not change them."""
        with self._changed:
            if after < self._forgotten:
                raise ApiError(410, f"too old resource version: {after} ({self._forgotten})")
            self._changed.wait_for(lambda: self._version > after, timeout)
            return [change for change in self._log if change.version > after]
