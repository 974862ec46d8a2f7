"""The API server, asked with the credentials that k3s writes: the administrator's, or an agent's own."""

from __future__ import annotations

import base64
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dind_k3s.http_api import Connection
from dind_k3s.root import RUN, at
from dind_k3s.trust import trusting

Object = dict[str, Any]

PATIENCE = 5.0
# A watch without events gets a bookmark about every minute; one that gets none is dead.
SILENCE = 150.0
EVENTS = "/api/v1/namespaces/kube-system/events?fieldSelector=type%3DWarning,involvedObject.kind%3D"
AGAIN = 0.3  # seconds before the next try after a failure that is not the server's end


class Kubernetes:
    """k3s's API server. `up` is set while it answers; who notices otherwise calls `lost`."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.up = threading.Event()
        self.on_loss: Callable[[], None] = lambda: None
        self.certificate = b""  # the client's, PEM
        self._read_at = 0
        self._server = ("127.0.0.1", 6443)
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._probe: Connection | None = None

    def lost(self) -> None:
        """It does not answer any more; no request is made until a probe says that it does."""
        if self.up.is_set():
            self.up.clear()
            self.on_loss()

    def problem(self) -> str:
        """Why it is not ready; empty when it is. The connection is kept for the next question."""
        try:
            if self._probe is None:
                self._probe = self.connect()
            answer = self._probe.get("/readyz")
            body = answer.read()
            if not answer.reusable:
                self.forget()
        except FileNotFoundError:
            self.forget()
            return "k3s has not written its kubeconfig yet"
        except (OSError, KeyError, ValueError) as error:
            self.forget()
            self._read_at = 0  # new certificates, perhaps
            why = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or error
            return f"the API server does not answer ({why})"
        if answer.status == 200:
            return ""
        failed = ", ".join(re.findall(r"^\[-\](\S+) failed", body.decode(errors="replace"), re.MULTILINE))
        return f"the API server is not ready (readyz answers {answer.status}{failed and f': {failed}'})"

    def connect(self, headers: str = "") -> Connection:
        """A connection of its own. OSError, KeyError or ValueError when there is none to be had."""
        with self._lock:
            self._load()
        assert self._context is not None
        sock = socket.create_connection(self._server, timeout=PATIENCE)
        try:
            tls = self._context.wrap_socket(sock, server_hostname=self._server[0])
        except BaseException:
            sock.close()
            raise
        return Connection(tls, f"{self._server[0]}:{self._server[1]}", f"Accept: application/json\r\n{headers}")

    def get(self, path: str) -> tuple[int, Object]:
        """One question and its answer."""
        with self.connect() as connection:
            answer = connection.get(path)
            body = answer.read()
        return answer.status, json.loads(body) if body.startswith(b"{") else {}

    def patch(self, path: str, change: Object) -> None:
        """Merge a change into an object (RFC 7396). Raises OSError when the server refuses it."""
        with self.connect("Content-Type: application/merge-patch+json\r\n") as connection:
            answer = connection.ask("PATCH", path, json.dumps(change).encode())
            body = answer.read()
        if answer.status != 200:
            raise OSError(f"{path}: {answer.status} {body.decode(errors='replace')}")

    def delete(self, path: str) -> None:
        """Delete an object at once, if it is there. Raises OSError when the server refuses it."""
        with self.connect("Content-Type: application/json\r\n") as connection:
            now = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
            answer = connection.ask("DELETE", path, json.dumps(now).encode())
            body = answer.read()
        if answer.status not in (200, 202, 404):
            raise OSError(f"{path}: {answer.status} {body.decode(errors='replace')}")

    def forget(self) -> None:
        """Ask the next question on a new connection."""
        if self._probe:
            self._probe.close()
        self._probe = None

    def _load(self) -> None:
        """Read the kubeconfig when it is new. k3s writes it, so lines are enough to find what is needed."""
        changed = self.kubeconfig.stat().st_mtime_ns
        if changed == self._read_at:
            return
        found = dict(re.findall(r"^\s*([a-z-]+): *\"?([^\s\"]+)\"?$", self.kubeconfig.read_text(), re.MULTILINE))

        def content(key: str) -> bytes:
            if data := found.get(f"{key}-data"):
                return base64.b64decode(data)
            return Path(found[key]).read_bytes()

        context = trusting(content("certificate-authority").decode())
        self.certificate = content("client-certificate")
        pair = at(f"{RUN}/client.pem")
        pair.touch(mode=0o600)
        try:
            pair.write_bytes(self.certificate + b"\n" + content("client-key"))
            context.load_cert_chain(pair)
        finally:
            pair.unlink()
        address = re.match(r"https://([^/:]+|\[[^]]+\])(?::(\d+))?", found["server"])
        if address:
            self._server = (address[1].strip("[]"), int(address[2] or 443))
        self._context, self._read_at = context, changed


class Watch(threading.Thread):
    """Follows the objects at one path of the API, and reports all of them whenever one changes.

    `report` gets the objects by name; None while the API server has no such path (its CRD is not there yet).
    """

    def __init__(self, kubernetes: Kubernetes, path: str, report: Callable[[dict[str, Object] | None], None]) -> None:
        super().__init__(name=path, daemon=True)
        self._kubernetes = kubernetes
        self._path, _, self._query = path.partition("?")
        self._report = report
        self._objects: dict[str, Object] = {}

    def run(self) -> None:
        """For ever."""
        pause = threading.Event()
        while True:
            self._kubernetes.up.wait()
            try:
                version = self._list()
                while version:
                    version = self._follow(version)
            except (OSError, KeyError, ValueError):
                self._kubernetes.lost()  # the next probe shows whether it is
                pause.wait(AGAIN)
                continue
            pause.wait(AGAIN)  # it is there, but not this path, or not from that version on

    def _list(self) -> str:
        status, listed = self._kubernetes.get(f"{self._path}?{self._query}")
        if status != 200:
            self._report(None)
            return ""
        self._objects = {item["metadata"]["name"]: item for item in listed.get("items") or []}
        self._report(self._objects)
        return str(listed["metadata"]["resourceVersion"])

    def _follow(self, version: str) -> str:
        """Watch from a version on until the server ends the watch; the version then, empty when it is too old."""
        query = f"{self._query}&watch=1&allowWatchBookmarks=true&resourceVersion={version}"
        with self._kubernetes.connect() as connection:
            connection.wait(SILENCE)
            answer = connection.get(f"{self._path}?{query}")
            if answer.status != 200:
                return ""
            for line in answer.lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return ""
                thing = event["object"]
                version = str(thing["metadata"]["resourceVersion"])
                if event["type"] == "BOOKMARK":
                    continue
                if event["type"] == "DELETED":
                    self._objects.pop(thing["metadata"]["name"], None)
                else:
                    self._objects[thing["metadata"]["name"]] = thing
                self._report(self._objects)
        return version


def warnings(kubernetes: Kubernetes, kind: str) -> list[Object]:
    """Warning events of kube-system about objects of a kind, oldest first. Raises OSError, KeyError or ValueError."""
    _, listed = kubernetes.get(f"{EVENTS}{kind}")
    return sorted(listed.get("items") or [], key=lambda event: str(event.get("lastTimestamp")))


def is_ready(node: Object) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
