"""The server's side of a joining agent: checks the token, stores the node's password, makes its certificate.

Paths and headers are k3s's (pkg/server/handlers): /v1-k3s/client-ca.crt, /v1-k3s/client-kubelet.crt.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from email.message import Message

from .certs import Certificates, for_node, key_of
from .errors import ApiError
from .store import Store

PREFIX = "/v1-k3s/"


class Joining:
    """Answers the requests of agents."""

    def __init__(
        self, store: Store, certificates: Certificates, token: str, on_join: Callable[[str, str], None]
    ) -> None:
        """`on_join` gets the name and the address of the node."""
        self._store = store
        self._certificates = certificates
        self._credentials = basic(token)
        self._on_join = on_join

    def answer(self, path: str, headers: Message) -> bytes:
        """Return the requested file. Raises ApiError for a wrong token or password."""
        if headers.get("Authorization") != self._credentials:
            raise ApiError(401, "Unauthorized")
        if path == f"{PREFIX}client-ca.crt":
            return self._certificates.client_ca.read_bytes()
        if path != f"{PREFIX}client-kubelet.crt":
            raise ApiError(404, f"the stub has no {path}")
        node = headers.get("k3s-Node-Name") or ""
        self._check_password(node, headers.get("k3s-Node-Password") or "")
        certificate = for_node(self._certificates.client_ca, node)
        self._on_join(node, headers.get("k3s-Node-IP") or "")
        return certificate.read_bytes() + key_of(certificate).read_bytes()

    def _check_password(self, node: str, password: str) -> None:
        """Accept the first password of a node name, and no other one while that node exists."""
        key = ("secrets", "kube-system", f"{node}.node-password.k3s")
        data = {"hash": base64.b64encode(hashlib.sha256(password.encode()).hexdigest().encode()).decode()}
        try:
            known = self._store.get(*key)["data"]
        except ApiError:
            metadata = {"name": key[2], "namespace": key[1]}
            self._store.create("secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})
            return
        if known != data and node in (other["metadata"]["name"] for other in self._store.find("nodes")[0]):
            raise ApiError(403, f"Node password rejected, {node} is the name of a node that has another one")
        self._store.modify(*key, lambda secret: {**secret, "data": data})


def basic(token: str) -> str:
    """Return the Authorization header of an agent."""
    return "Basic " + base64.b64encode(f"node:{token}".encode()).decode()
