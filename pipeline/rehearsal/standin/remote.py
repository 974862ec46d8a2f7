"""The server's store as an agent sees it: over the Kubernetes API, with the agent's certificate."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlencode

from .resources import RESOURCES
from .status import ApiError, Object
from .store import Change

PATIENCE = 20.0
RETRY_SECONDS = 1.0


class RemoteStore:
    """Has the methods of Store that a kubelet needs. While the server is away, every one waits for it."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, node: str) -> None:
        self._host, self._port, self._context = host, port, context
        self._pods_here = urlencode({"fieldSelector": f"spec.nodeName={node}"})
        self._watch: http.client.HTTPResponse | None = None

    @property
    def version(self) -> int:
        """The version of the newest change."""
        return int(self._ask("GET", f"/api/v1/pods?{self._pods_here}")["metadata"]["resourceVersion"])

    def get(self, plural: str, namespace: str, name: str) -> Object:
        """One object."""
        return self._ask("GET", _path(plural, namespace, name))

    def find(self, plural: str, namespace: str | None = None) -> tuple[list[Object], int]:
        """All objects of a kind; of pods, those of this node."""
        query = f"?{self._pods_here}" if plural == "pods" else ""
        listed = self._ask("GET", _path(plural, namespace or "") + query)
        return listed["items"], int(listed["metadata"]["resourceVersion"])

    def create(self, plural: str, thing: Object) -> Object:
        """A new object."""
        return self._ask("POST", _path(plural, thing["metadata"].get("namespace", "")), thing)

    def modify(self, plural: str, namespace: str, name: str, change: Callable[[Object], Object]) -> Object:
        """Change an object and its status, from the newest version of it."""
        path = _path(plural, namespace, name)
        while True:
            before = self._ask("GET", path)
            after = change(json.loads(json.dumps(before)))
            try:
                if {**after, "status": None} != {**before, "status": None}:
                    stored = self._ask("PUT", path, after)
                    after["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]
                if after.get("status") != before.get("status"):
                    return self._ask("PUT", f"{path}/status", after)
            except ApiError as error:
                if error.code == 409:
                    continue
                raise
            return after

    def delete(self, plural: str, namespace: str, name: str, uid: str | None = None) -> Object:
        """Remove an object for good."""
        options: Object = {"gracePeriodSeconds": 0}
        if uid:
            options["preconditions"] = {"uid": uid}
        return self._ask("DELETE", _path(plural, namespace, name), options)

    def changes(self, after: int, timeout: float) -> list[Change]:
        """Wait for the next change of a pod of this node. 410 when some may have been missed."""
        if self._watch is None:
            query = f"{self._pods_here}&watch=1&allowWatchBookmarks=true&resourceVersion={after}"
            connection = self._connect(timeout)
            connection.request("GET", f"/api/v1/pods?{query}")
            self._watch = connection.getresponse()
        try:
            event = json.loads(self._watch.readline() or b"{}")
        except (OSError, ValueError, http.client.HTTPException):
            event = {}
        if event.get("type") not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
            self._watch.close()
            self._watch = None
            raise ApiError(410, "the watch ended")
        thing = event["object"]
        version = int(thing["metadata"]["resourceVersion"])
        if event["type"] == "BOOKMARK":
            return []
        key = ("pods", thing["metadata"]["namespace"], thing["metadata"]["name"])
        return [Change(version=version, type=event["type"], key=key, object=thing, before=None)]

    def _connect(self, timeout: float) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=self._context)

    def _ask(self, method: str, path: str, body: Object | None = None) -> Object:
        while True:
            connection = self._connect(PATIENCE)
            try:
                content = json.dumps(body) if body is not None else None
                connection.request(method, path, content, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                read: Object = json.loads(answer.read())
            except (OSError, ValueError, http.client.HTTPException):
                time.sleep(RETRY_SECONDS)
                continue
            finally:
                connection.close()
            if answer.status >= 400:
                raise ApiError(answer.status, read.get("message", ""), reason=read.get("reason"))
            return read


def _path(plural: str, namespace: str, name: str = "") -> str:
    group = RESOURCES[plural].group
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{f'/apis/{group}' if group else '/api'}/v1{scope}/{plural}" + (f"/{name}" if name else "")
