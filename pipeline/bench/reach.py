"""dockerd and the API server of a container, asked from outside without a process inside that would cost time there.

The container's files are below /proc/PID/root, its unix sockets too; a TCP connection is made in its network namespace.
"""

from __future__ import annotations

import base64
import ctypes
import os
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

_CLONE_NEWNET = 0x40000000  # setns(2); Python has os.setns from 3.12 on
_TIMEOUT = 10.0  # seconds


def root(pid: int) -> Path:
    """Return the container's file system."""
    return Path(f"/proc/{pid}/root")


@contextmanager
def _network_of(pid: int) -> Iterator[None]:
    """Have this thread in that process' network namespace. A socket stays in the one that it was made in."""
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


def dockerd(pid: int, method: str, path: str, **content: Any) -> httpx.Response:
    """Ask the inner dockerd; `content`: as httpx has it. Raises OSError, also for a status of 400 and above.

    Not at /var/run: that link is absolute, and would lead to this machine's own.
    """
    address = str(root(pid) / "run/docker.sock")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(address)  # httpcore leaves a socket open that cannot be connected
    # Without TLS: a context with the certificates of this machine would take longer than dockerd does.
    transport = httpx.HTTPTransport(uds=address, verify=False)
    try:
        with httpx.Client(transport=transport, timeout=_TIMEOUT, base_url="http://docker", trust_env=False) as client:
            answer = client.request(method, path, **content)
    except httpx.HTTPError as error:
        raise OSError(f"dockerd: {error}") from None
    if answer.is_error:
        raise OSError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
    return answer


def load(pid: int, archive: bytes) -> None:
    """`docker load`. Raises OSError."""
    dockerd(pid, "POST", "/images/load?quiet=1", content=archive, headers={"Content-Type": "application/x-tar"})


def running(pid: int, name: str = "") -> int:
    """Return how many inner containers run whose name has `name` in it. Raises OSError."""
    listed = dockerd(pid, "GET", "/containers/json").json()
    return sum(any(name in one for one in entry["Names"]) for entry in listed)


class Cluster:
    """The API server, with the administrator's kubeconfig. Every method raises OSError while it does not answer."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connect(self) -> httpx.Client:
        try:
            config = yaml.safe_load((root(self._pid) / "app/k3s/k3s.yaml").read_text(encoding="utf-8"))
            cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
            authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
            pair = base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"])
            server = str(cluster["server"])
        except (yaml.YAMLError, KeyError, TypeError, ValueError, IndexError) as error:
            raise OSError(f"the kubeconfig is not whole yet: {error}") from None
        context = ssl.create_default_context(cadata=authority)
        with tempfile.NamedTemporaryFile(mode="wb") as file:
            file.write(pair)
            file.flush()
            context.load_cert_chain(file.name)
        return httpx.Client(base_url=server, verify=context, timeout=_TIMEOUT, trust_env=False)

    def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Return the answer, whatever its status."""
        try:
            if self._client is None:
                self._client = self._connect()
            with _network_of(self._pid):
                return self._client.request(method, path, json=body)
        except (OSError, httpx.HTTPError) as error:
            self.close()  # the next one reads the kubeconfig again
            raise OSError(f"the API: {error}") from None

    def ready(self) -> bool:
        """Whether pods can be made: the API is ready, a node is Ready, the default service account is there."""
        paths = ("/readyz", "/api/v1/namespaces/default/serviceaccounts/default")
        if any(self.ask("GET", path).status_code != 200 for path in paths):
            return False
        nodes = self.ask("GET", "/api/v1/nodes")
        return nodes.is_success and any(
            condition.get("type") == "Ready" and condition.get("status") == "True"
            for node in nodes.json()["items"]
            for condition in node.get("status", {}).get("conditions", [])
        )

    def pods(self, phase: str | None = "Running") -> int:
        """Return how many pods of the default namespace are in that phase; None: all that there are."""
        answer = self.ask("GET", "/api/v1/namespaces/default/pods")
        if answer.status_code != 200:
            raise OSError(f"the pods cannot be listed: {answer.status_code}")
        return sum(phase in (None, pod.get("status", {}).get("phase")) for pod in answer.json()["items"])

    def run(self, name: str, image: str) -> None:
        """Make a pod of an image that is there, with the image's own command."""
        containers = [{"name": "one", "image": image, "imagePullPolicy": "Never"}]
        spec = {"containers": containers, "terminationGracePeriodSeconds": 30}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        answer = self.ask("POST", "/api/v1/namespaces/default/pods", pod)
        if answer.is_error:
            raise OSError(f"the pod {name} was not made: {answer.status_code} {answer.text[:300]}")

    def delete(self, name: str) -> None:
        """Remove a pod at once."""
        self.ask("DELETE", f"/api/v1/namespaces/default/pods/{name}", {"gracePeriodSeconds": 0})
