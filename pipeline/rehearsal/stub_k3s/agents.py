"""`k3s agent`, and the server's side of it: it joins with the token, which the server checks, and the node's name.

The server then runs pods on the agent's dockerd, through a tunnel. Paths and headers are k3s's (pkg/server/handlers).
"""

from __future__ import annotations

import base64
import http.client
import ssl
import time
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from . import credentials
from .certs import Certificates, for_node, key_of
from .config import Config
from .errors import ApiError, Failure
from .node import start_kubelet
from .nodes import own_address
from .process import in_background, leave, say, until_stopped
from .store import Store
from .tunnel import Tunnel

PREFIX = "/v1-k3s/"
AUTHORITY, CERTIFICATE = f"{PREFIX}client-ca.crt", f"{PREFIX}client-kubelet.crt"
RETRY_SECONDS = 1.0
REJECTED_SECONDS = 5.0
REJECTED = (
    "Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server"
    " node-passwd entry, try enabling a unique node name with the --with-node-id flag"
)


class Joining:
    """Answers the requests of agents. The first password of a node is the right one while its node exists."""

    def __init__(
        self, store: Store, certificates: Certificates, token: str, on_join: Callable[[str, str], None]
    ) -> None:
        """`on_join` gets the name and the address of the node."""
        self._store = store
        self._certificates = certificates
        self._credentials = _basic(token)
        self._on_join = on_join
        self._passwords: dict[str, str] = {}  # by node; forgotten when the server ends

    def answer(self, path: str, headers: Message) -> bytes:
        """Return the requested file. Raises ApiError for a wrong token or password."""
        if headers.get("Authorization") != self._credentials:
            raise ApiError(401, "Unauthorized")
        if path == AUTHORITY:
            return self._certificates.client_ca.read_bytes()
        if path != CERTIFICATE:
            raise ApiError(404, f"the stub has no {path}")
        node, password = headers.get("k3s-Node-Name") or "", headers.get("k3s-Node-Password") or ""
        exists = node in (other["metadata"]["name"] for other in self._store.find("nodes")[0])
        if exists and self._passwords.get(node, password) != password:
            raise ApiError(403, f"Node password rejected, {node} is the name of a node that has another one")
        self._passwords[node] = password
        certificate = for_node(self._certificates.client_ca, node)
        self._on_join(node, headers.get("k3s-Node-IP") or "")
        return certificate.read_bytes() + key_of(certificate).read_bytes()


def _basic(token: str) -> str:
    """Return the Authorization header of an agent."""
    return "Basic " + base64.b64encode(f"node:{token}".encode()).decode()


def run(config: Config) -> NoReturn:
    """Run an agent until SIGTERM or SIGINT; then end at once with status 0, pods running, as k3s does."""
    url = urlsplit(config.server)
    if url.scheme != "https" or not url.hostname:
        raise Failure(f"invalid address of a server: {config.server}; expected https://NAME:6443 (--server)")
    certificates = _join(config, (url.hostname, url.port or 443))
    in_background("agent", lambda: _serve(config, certificates))
    until_stopped()
    leave()


def _serve(config: Config, certificates: Certificates) -> None:
    start_kubelet(config)
    Tunnel("0.0.0.0", certificates, config.docker_socket).serve_forever()


def _join(config: Config, server: tuple[str, int]) -> Certificates:
    """Download the certificates, once the server answers. Raises Failure if it refuses this agent."""
    folder = config.data_dir / "agent"
    own = folder / "client-kubelet.crt"
    certificates = Certificates(
        server_ca=folder / "server-ca.crt", client_ca=folder / "client-ca.crt", server=own, client=own
    )
    headers = {
        "Authorization": _basic(config.token),
        "k3s-Node-Name": config.node_name,
        "k3s-Node-Password": credentials.ensure_node_password(config),
        "k3s-Node-IP": config.node_ip or own_address(),
    }
    authority = certificates.server_ca
    credentials.write(authority, _download(server, "/cacerts", None, {}))
    credentials.write(certificates.client_ca, _download(server, AUTHORITY, authority, headers))
    certificate, begin, key = _download(server, CERTIFICATE, authority, headers).partition("-----BEGIN PRIVATE")
    credentials.write(key_of(own), begin + key)
    credentials.write(own, certificate)
    credentials.write_kubelet_kubeconfig(config, own, ca=authority, server=credentials.url(*server))
    say(f"node {config.node_name} has joined {config.server}")
    return certificates


def _download(server: tuple[str, int], path: str, ca: Path | None, headers: dict[str, str]) -> str:
    """Retry until the server answers and accepts the node's name. `ca`: None without a check of the server."""
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    context.check_hostname = False  # agents may use a name of the server that its certificate does not have
    if ca is None:
        context.verify_mode = ssl.CERT_NONE
    while True:
        connection = http.client.HTTPSConnection(*server, timeout=10, context=context)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            say(f"failed to get {path} of {server[0]}: {error}", level="warning")
            time.sleep(RETRY_SECONDS)
            continue
        finally:
            connection.close()
        if answer.status == 200:
            return body
        if answer.status != 403:
            raise Failure(f"failed to get {path} of {server[0]}: {answer.status} {answer.reason}: {body}")
        # The node name is taken. k3s retries without an end (pkg/agent/config).
        say(f"Waiting to retrieve agent configuration; server is not ready: {REJECTED}")
        time.sleep(REJECTED_SECONDS)
