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

    def __init__(self, server: tuple[str, int], context: ssl.SSLContext, node: str) -> None:
        self._server = server
        self._context = context
        self._pods_here = urlencode({"fieldSelector": f"spec.nodeName={node}"})
        self._watch: http.client.HTTPResponse | None = None

    @property
    def version(self) -> int:
        """The version of the newest change."""
        return self.find("pods")[1]

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
        """Change an object, from the newest version of it."""
        path = _path(plural, namespace, name)
        while True:
            try:
                return self._ask("PUT", path, change(self._ask("GET", path)))
            except ApiError as error:
                if error.code != 409:
                    raise

    def delete(self, plural: str, namespace: str, name: str, uid: str) -> Object:
        """Remove an object for good."""
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
        return self._ask("DELETE", _path(plural, namespace, name), options)

    def changes(self, after: int, timeout: float) -> list[Change]:
        """Wait for the next change of a pod of this node. 410 when some may have been missed."""
        try:
            if self._watch is None:
                connection = self._connect(timeout)
                connection.request("GET", f"/api/v1/pods?{self._pods_here}&watch=1&resourceVersion={after}")
                self._watch = connection.getresponse()
            event = json.loads(self._watch.readline())
        except (OSError, ValueError, http.client.HTTPException):
            event = {"type": "ERROR"}
        if event["type"] == "ERROR":
            self._watch = None
            raise ApiError(410, "the watch ended")
        thing = event["object"]
        metadata = thing["metadata"]
        key = ("pods", metadata["namespace"], metadata["name"])
        version = int(metadata["resourceVersion"])
        return [Change(version=version, type=event["type"], key=key, object=thing, before=None)]

    def _connect(self, timeout: float) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(*self._server, timeout=timeout, context=self._context)

    def _ask(self, method: str, path: str, body: Object | None = None) -> Object:
        while True:
            connection = self._connect(PATIENCE)
            try:
                content = json.dumps(body) if body is not None else None
                connection.request(method, path, content, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                thing: Object = json.loads(answer.read())
            except (OSError, ValueError, http.client.HTTPException):
                time.sleep(RETRY_SECONDS)
                continue
            finally:
                connection.close()
            if answer.status >= 400:
                raise ApiError(answer.status, thing.get("message", ""), reason=thing.get("reason", ""))
            return thing


def _path(plural: str, namespace: str, name: str = "") -> str:
    group = RESOURCES[plural].group
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{f'/apis/{group}' if group else '/api'}/v1{scope}/{plural}" + (f"/{name}" if name else "")
