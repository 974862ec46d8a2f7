"""`k3s agent`: joins a server with its token and runs the pods that the server gives to its node."""

from __future__ import annotations

import base64
import http.client
import ssl
import time
from pathlib import Path
from typing import NoReturn, cast
from urllib.parse import urlsplit

from . import credentials, files, log
from .api import Kubelet
from .certs import Certificates, key_of
from .config import Config
from .failure import Failure
from .joining import PREFIX
from .node import own_address
from .remote import RemoteStore
from .server import in_background, leave, register_node, start_kubelet, start_pods, until_stopped
from .store import Store

RETRY_SECONDS = 1.0
REJECTED_SECONDS = 5.0
REJECTED = (
    "Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server"
    " node-passwd entry, try enabling a unique node name with the --with-node-id flag"
)


def run(config: Config) -> NoReturn:
    """Run until SIGTERM or SIGINT; then leave at once with status 0, pods running, as k3s does."""
    url = urlsplit(config.server)
    if url.scheme != "https" or not url.hostname:
        raise Failure(f"not the address of a server: {config.server}; expected https://NAME:6443 (--server)")
    server = (url.hostname, url.port or 443)
    certificates = join(config, server)
    in_background("agent", lambda: _work(config, server, certificates))
    until_stopped()
    leave()


def _work(config: Config, server: tuple[str, int], certificates: Certificates) -> None:
    start_kubelet(config)
    address = config.node_ip or own_address()
    context = _context(certificates.server_ca)
    context.load_cert_chain(certificates.client, key_of(certificates.client))
    # It has the methods of Store that a kubelet uses.
    store = cast(Store, RemoteStore(server, context, config.node_name))
    node = register_node(config, store, address, is_agent=True)
    listener = Kubelet("0.0.0.0", certificates, store, node.engine)
    start_pods(node, config, store)
    in_background("listener", listener.serve_forever)
    log.say(f"node {config.node_name} is registered with {address} at {config.server}")


def join(config: Config, server: tuple[str, int]) -> Certificates:
    """Fetch the certificates; waits for the server. Failure when it does not want this agent."""
    folder = config.data_dir / "agent"
    own = folder / "client-kubelet.crt"
    certificates = Certificates(
        server_ca=folder / "server-ca.crt", client_ca=folder / "client-ca.crt", server=own, client=own
    )
    headers = {
        "Authorization": "Basic " + base64.b64encode(f"node:{config.token}".encode()).decode(),
        "k3s-Node-Name": config.node_name,
        "k3s-Node-Password": credentials.ensure_node_password(config),
    }
    files.write(certificates.server_ca, _fetch(server, "/cacerts", _context(None), {}))
    context = _context(certificates.server_ca)
    files.write(certificates.client_ca, _fetch(server, f"{PREFIX}client-ca.crt", context, headers))
    both = _fetch(server, f"{PREFIX}{own.name}", context, headers)
    certificate, begin, key = both.partition("-----BEGIN PRIVATE")
    files.write(key_of(own), begin + key)
    files.write(own, certificate)
    credentials.write_kubelet_kubeconfig(config, own, ca=certificates.server_ca, server=credentials.url(*server))
    return certificates


def _context(ca: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    context.check_hostname = False  # agents reach the server by names that its certificate need not have
    if ca is None:
        context.verify_mode = ssl.CERT_NONE
    return context


def _fetch(server: tuple[str, int], path: str, context: ssl.SSLContext, headers: dict[str, str]) -> str:
    """Ask until the server answers and does not reject the node's name."""
    reported = ""
    while True:
        connection = http.client.HTTPSConnection(*server, timeout=10, context=context)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            if str(error) != reported:
                reported = str(error)
                log.say(f"failed to get {path} of {server[0]}: {error}", level="warning")
            time.sleep(RETRY_SECONDS)
            continue
        finally:
            connection.close()
        if answer.status == 200:
            return body
        if answer.status != 403:
            raise Failure(f"failed to get {path} of {server[0]}: {answer.status} {answer.reason}: {body}")
        # A node name that is taken; k3s asks again for ever (pkg/agent/config).
        log.say(f"Waiting to retrieve agent configuration; server is not ready: {REJECTED}")
        time.sleep(REJECTED_SECONDS)
