"""The server's part in an agent's joining: the token is checked, the node's password kept, its certificate is made.

Paths and headers are k3s's (pkg/server/handlers): /v1-k3s/client-ca.crt, /v1-k3s/client-kubelet.crt.
"""

from __future__ import annotations

import base64
import hashlib
from email.message import Message

from .certs import Certificates, for_node, key_of
from .status import ApiError
from .store import Store

PREFIX = "/v1-k3s/"


class Joining:
    """Answers for agents."""

    def __init__(self, store: Store, certificates: Certificates, token: str) -> None:
        self._store = store
        self._certificates = certificates
        self.token = token

    def answer(self, path: str, headers: Message) -> bytes:
        """The file that is asked for. ApiError when the token or the password is not right."""
        credentials = base64.b64encode(f"node:{self.token}".encode()).decode()
        if headers.get("Authorization") != f"Basic {credentials}":
            raise ApiError(401, "Unauthorized")
        if path == f"{PREFIX}client-ca.crt":
            return self._certificates.client_ca.read_bytes()
        if path != f"{PREFIX}client-kubelet.crt":
            raise ApiError(404, f"the stub has no {path}")
        node = headers.get("k3s-Node-Name") or ""
        self._check_password(node, headers.get("k3s-Node-Password") or "")
        made = for_node(self._certificates.client_ca, node)
        return made.read_bytes() + key_of(made).read_bytes()

    def _check_password(self, node: str, password: str) -> None:
        """The first password of a node name is the right one, as long as the node is there."""
        key = ("secrets", "kube-system", f"{node}.node-password.k3s")
        data = {"hash": base64.b64encode(hashlib.sha256(password.encode()).hexdigest().encode()).decode()}
        try:
            known = self._store.get(*key)["data"]
        except ApiError:
            metadata = {"name": key[2], "namespace": key[1]}
            self._store.create("secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})
            return
        if known != data and node in (known["metadata"]["name"] for known in self._store.find("nodes")[0]):
            raise ApiError(403, f"Node password rejected, {node} is the name of a node that has another one")
        self._store.modify(*key, lambda secret: {**secret, "data": data})
