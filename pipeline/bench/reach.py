"""dockerd and the API server of a container, asked from outside without a process inside that would cost time there.

The container's files are below /proc/PID/root, its unix sockets too; a TCP connection is made in its network namespace.
"""

from __future__ import annotations

import base64
import ctypes
import http.client
import json
import os
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

_CLONE_NEWNET = 0x40000000  # setns(2); Python has os.setns from 3.12 on
_TIMEOUT = 10.0  # seconds


def root(pid: int) -> Path:
    """The container's file system."""
    return Path(f"/proc/{pid}/root")


@contextmanager
def network_of(pid: int) -> Iterator[None]:
    """This thread is in that process' network namespace. A socket stays in the one that it was made in."""
    own, other = (os.open(path, os.O_RDONLY) for path in ("/proc/thread-self/ns/net", f"/proc/{pid}/ns/net"))
    try:
        _enter(other)
        try:
            yield
        finally:
            _enter(own)
    finally:
        os.close(own)
        os.close(other)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "setns")


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Dockerd:
    """The inner dockerd. Every method raises OSError while it does not answer."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """The answer's JSON, or None without any. Raises OSError also for a status of 400 and above."""
        # Not /var/run: that link is absolute, and would lead to this machine's own.
        connection = _Unix(root(self._pid) / "run/docker.sock")
        try:
            data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
            kind = "application/x-tar" if isinstance(body, bytes) else "application/json"
            connection.request(method, path, data, {"Content-Type": kind})
            answer = connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"dockerd: {error}") from None
        finally:
            connection.close()
        if answer.status >= 400:
            raise OSError(f"{method} {path}: {answer.status} {text[:300].decode(errors='replace')}")
        return json.loads(text) if text.startswith((b"{", b"[")) and b"\n{" not in text else None

    def answers(self) -> bool:
        """Whether it is there."""
        try:
            self.ask("GET", "/_ping")
        except OSError:
            return False
        return True

    def load(self, archive: bytes) -> None:
        """`docker load`."""
        self.ask("POST", "/images/load?quiet=1", archive)

    def running(self, name: str = "") -> int:
        """How many containers run whose name has `name` in it."""
        return sum(any(name in one for one in entry["Names"]) for entry in self.ask("GET", "/containers/json"))


class Cluster:
    """The API server, with the administrator's kubeconfig. Every method raises OSError while it does not answer."""

    def __init__(self, pid: int, kubeconfig: str = "app/k3s/k3s.yaml") -> None:
        self._pid = pid
        self._kubeconfig = root(pid) / kubeconfig
        self._connection: http.client.HTTPSConnection | None = None

    def _connect(self) -> http.client.HTTPSConnection:
        try:
            config = yaml.safe_load(self._kubeconfig.read_text(encoding="utf-8"))
            server = str(config["clusters"][0]["cluster"]["server"]).removeprefix("https://")
            authority = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"])
            user = config["users"][0]["user"]
            pair = base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"])
        except (yaml.YAMLError, KeyError, TypeError, ValueError, IndexError) as error:
            raise OSError(f"the kubeconfig is not whole yet: {error}") from None
        context = ssl.create_default_context(cadata=authority.decode())
        with tempfile.NamedTemporaryFile(mode="wb") as file:
            file.write(pair)
            file.flush()
            context.load_cert_chain(file.name)
        host, _, port = server.partition(":")
        connection = http.client.HTTPSConnection(host, int(port or 443), timeout=_TIMEOUT, context=context)
        with network_of(self._pid):
            connection.connect()
        return connection

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and JSON (None when it is no JSON)."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            data = None if body is None else json.dumps(body)
            self._connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise OSError(f"the API: {error}") from None
        return answer.status, json.loads(text) if text.startswith(b"{") else None

    def close(self) -> None:
        """The connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ready(self) -> bool:
        """Whether /readyz answers 200."""
        return self.ask("GET", "/readyz")[0] == 200

    def node(self) -> bool:
        """Whether a node is Ready."""
        status, nodes = self.ask("GET", "/api/v1/nodes")
        return status == 200 and any(_is(one, "Ready") for one in nodes["items"])

    def account(self) -> bool:
        """Whether pods are admitted: the default service account is there."""
        return self.ask("GET", "/api/v1/namespaces/default/serviceaccounts/default")[0] == 200

    def pods(self, phase: str | None = "Running") -> int:
        """How many pods of the default namespace are in that phase; None: all that there are."""
        status, pods = self.ask("GET", "/api/v1/namespaces/default/pods")
        if status != 200:
            raise OSError(f"the pods cannot be listed: {status}")
        return sum(phase in (None, one.get("status", {}).get("phase")) for one in pods["items"])

    def run(self, name: str, image: str) -> None:
        """Make a pod of an image that is there, with the image's own command."""
        spec = {
            "containers": [{"name": "one", "image": image, "imagePullPolicy": "Never"}],
            "terminationGracePeriodSeconds": 30,
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        status, answer = self.ask("POST", "/api/v1/namespaces/default/pods", pod)
        if status >= 300:
            raise OSError(f"the pod {name} was not made: {status} {answer}")

    def delete(self, name: str) -> None:
        """Remove a pod at once."""
        self.ask("DELETE", f"/api/v1/namespaces/default/pods/{name}", {"gracePeriodSeconds": 0})


def _is(thing: dict[str, Any], condition: str) -> bool:
    conditions = thing.get("status", {}).get("conditions", [])
    return any(one.get("type") == condition and one.get("status") == "True" for one in conditions)
