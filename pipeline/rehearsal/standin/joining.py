"""The server's part in an agent's joining: the token is checked, the node's password kept, its certificates are made.

Paths and headers are k3s's (pkg/server/handlers): /v1-k3s/client-ca.crt, client-kubelet.crt, serving-kubelet.crt.
"""

from __future__ import annotations

import base64
import hashlib
from email.message import Message

from .certs import Certificates
from .status import ApiError
from .store import Store

PREFIX = "/v1-k3s/"


class Joining:
    """Answers for agents."""

    def __init__(self, store: Store, certificates: Certificates, token: str) -> None:
        self._store = store
        self._certificates = certificates
        self._token = token

    def answer(self, path: str, headers: Message) -> bytes:
        """The file that is asked for. ApiError when the token or the password is not right."""
        scheme, _, words = (headers.get("Authorization") or "").partition(" ")
        try:
            user, _, password = base64.b64decode(words).decode().partition(":")
        except ValueError:
            user = password = ""
        if scheme != "Basic" or user != "node" or password != self._token:
            raise ApiError(401, "Unauthorized")
        name = path.removeprefix(PREFIX)
        if name == "client-ca.crt":
            return self._certificates.client_ca.read_bytes()
        if name not in ("client-kubelet.crt", "serving-kubelet.crt"):
            raise ApiError(404, f"the stand-in has no {path}")
        node = headers.get("k3s-Node-Name") or ""
        self._check_password(node, headers.get("k3s-Node-Password") or "")
        address = headers.get("k3s-Node-IP") or "127.0.0.1"
        return self._certificates.for_node(node, address, serving=name.startswith("serving"))

    def _check_password(self, node: str, password: str) -> None:
        """The first password of a node name is the right one, as long as the node is there."""
        name = f"{node}.node-password.k3s"
        data = {"hash": base64.b64encode(hashlib.sha256(password.encode()).hexdigest().encode()).decode()}
        try:
            known = self._store.get("secrets", "kube-system", name)
        except ApiError:
            metadata = {"name": name, "namespace": "kube-system"}
            secret = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}
            self._store.create("secrets", secret)
            return
        if known["data"] == data:
            return
        try:
            self._store.get("nodes", "", node)
        except ApiError:
            self._store.modify("secrets", "kube-system", name, lambda secret: {**secret, "data": data})
        else:
            raise ApiError(
                403,
                f"Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match "
                f"server node-passwd entry of {node}",
            )
