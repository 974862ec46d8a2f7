"""Clients for the dockerd and the API server inside a container, without a process inside that would cost time there.

The container's files are below /proc/PID/root, its unix sockets too; a TCP connection is made in its network namespace.
"""

from __future__ import annotations

import ctypes
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

_CLONE_NEWNET = 0x40000000  # setns(2); Python has os.setns from 3.12 on
_TIMEOUT = 10.0  # seconds
_CONTAINER = "one"  # of each pod
_POD = f"k8s_{_CONTAINER}_"  # begins the names of their containers (cri-dockerd)


def root(pid: int) -> Path:
    """Return the container's file system."""
    return Path(f"/proc/{pid}/root")


@contextmanager
def _network_of(pid: int) -> Iterator[None]:
    """Switch this thread to a process's network namespace. A socket stays in the one where it was created."""
    with Path("/proc/thread-self/ns/net").open("rb") as own, Path(f"/proc/{pid}/ns/net").open("rb") as other:
        _enter(other.fileno())
        try:
            yield
        finally:
            _enter(own.fileno())


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "setns")


def dockerd(pid: int, method: str, path: str, **content: Any) -> httpx.Response:
    """Send a request to the inner dockerd; `content`: httpx's keyword arguments.

    Raises OSError, also for a status of 400 and above. The socket is not the one in /var/run: that link is absolute and
    would lead to this machine's dockerd.
    """
    address = str(root(pid) / "run/docker.sock")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(address)  # httpcore leaks a socket that cannot be connected
    # Without TLS: a context with the certificates of this machine would take longer than dockerd does.
    transport = httpx.HTTPTransport(uds=address, verify=False)
    try:
        with httpx.Client(transport=transport, timeout=_TIMEOUT, base_url="http://docker", trust_env=False) as client:
            response = client.request(method, path, **content)
    except httpx.HTTPError as error:
        raise OSError(f"dockerd: {error}") from None
    if response.is_error:
        raise OSError(f"{method} {path}: {response.status_code} {response.text[:300]}")
    return response


def running_pods(pid: int) -> int:
    """Return how many inner containers of our pods run. Raises OSError."""
    names = (name for entry in dockerd(pid, "GET", "/containers/json").json() for name in entry["Names"])
    return sum(_POD in name for name in names)


class Cluster:
    """API server, as the administrator. Methods raise OSError while it does not answer."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._client is not None:
            self._client.close()

    def _connect(self) -> httpx.Client:
        folder = root(self._pid) / "app/k3s/server/tls"
        context = ssl.create_default_context(cafile=folder / "server-ca.crt")
        context.load_cert_chain(folder / "client-admin.crt", folder / "client-admin.key")
        return httpx.Client(base_url="https://127.0.0.1:6443", verify=context, timeout=_TIMEOUT, trust_env=False)

    def request(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Return the response, whatever its status."""
        try:
            self._client = self._client or self._connect()
            with _network_of(self._pid):
                return self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise OSError(f"the API: {error}") from None

    def ready(self) -> bool:
        """Whether pods can be made: the API and a node are ready, the default service account exists."""
        paths = ("/readyz", "/api/v1/namespaces/default/serviceaccounts/default")
        if any(self.request("GET", path).status_code != 200 for path in paths):
            return False
        nodes = self.request("GET", "/api/v1/nodes")
        return nodes.is_success and any(
            condition.get("type") == "Ready" and condition.get("status") == "True"
            for node in nodes.json()["items"]
            for condition in node.get("status", {}).get("conditions", [])
        )

    def pods(self, phase: str | None = "Running") -> int:
        """Return how many pods of the default namespace are in that phase (None: in any)."""
        response = self.request("GET", "/api/v1/namespaces/default/pods")
        if response.status_code != 200:
            raise OSError(f"the pods cannot be listed: {response.status_code}")
        return sum(phase in (None, pod.get("status", {}).get("phase")) for pod in response.json()["items"])

    def run(self, name: str, image: str) -> None:
        """Create a pod of a loaded image, with the image's command."""
        containers = [{"name": _CONTAINER, "image": image, "imagePullPolicy": "Never"}]
        spec = {"containers": containers, "terminationGracePeriodSeconds": 30}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        response = self.request("POST", "/api/v1/namespaces/default/pods", pod)
        if response.is_error:
            raise OSError(f"the pod {name} was not created: {response.status_code} {response.text[:300]}")
