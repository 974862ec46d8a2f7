"""`k3s agent`: joins a server with its token and runs the pods that the server gives to its node."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import signal
import ssl
import threading
import time
from pathlib import Path
from typing import cast

from . import credentials, files, log
from .about import PLATFORM, VERSION
from .admission import Admission
from .api import Server
from .certs import Certificates, key_of
from .config import Config
from .failure import Failure
from .forward import KUBELET_PORT
from .joining import PREFIX
from .node import own_address
from .remote import RemoteStore
from .rest import Rest
from .server import in_background, leave, register_node, start_kubelet, start_pods
from .store import Store

RETRY_SECONDS = 1.0
REJECTED_SECONDS = 5.0
REJECTED = (
    "Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server"
    " node-passwd entry, try enabling a unique node name with the --with-node-id flag"
)


class AgentCertificates(Certificates):
    """Where an agent keeps what it was given (data-dir/agent)."""

    @property
    def server(self) -> Path:
        """Of its own listener, from which the server fetches logs."""
        return self.folder / "serving-kubelet.crt"

    @property
    def kubelet(self) -> Path:
        """By which the server knows it."""
        return self.folder / "client-kubelet.crt"


def run(config: Config) -> int:
    """Run until SIGTERM or SIGINT; then leave at once with status 0, pods running, as k3s does."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log.say(f"this is a stand-in for rehearsals, not k3s: {VERSION} for {PLATFORM}, an agent of {config.server}")
    for warning in config.warnings:
        log.warn(warning)
    host, port = _address(config.server)
    address = config.node_ip or own_address()
    certificates = join(config, host, port, address)
    in_background("agent", lambda: _work(config, host, port, address, certificates))
    stop.wait()
    log.say("stopped by a signal; pods stay as they are")
    leave()


def join(config: Config, host: str, port: int, address: str) -> AgentCertificates:
    """Fetch the certificates; waits for the server. Failure when it does not want this agent."""
    folder = config.data_dir / "agent"
    folder.mkdir(parents=True, exist_ok=True)
    certificates = AgentCertificates(folder=folder)
    token = config.token or ""
    ca = _fetch(host, port, "/cacerts", _context(None), {})
    if config.token_hash and hashlib.sha256(ca).hexdigest() != config.token_hash:
        raise Failure("token CA hash does not match the Cluster CA certificate hash")
    files.write(certificates.server_ca, ca.decode())
    credentials.ensure_node_password(config)
    headers = {
        "Authorization": "Basic " + base64.b64encode(f"node:{token}".encode()).decode(),
        "k3s-Node-Name": config.node_name,
        "k3s-Node-Password": (config.etc_dir / "node/password").read_text(encoding="utf-8").strip(),
        "k3s-Node-IP": address,
    }
    context = _context(certificates.server_ca)
    files.write(certificates.client_ca, _fetch(host, port, f"{PREFIX}client-ca.crt", context, headers).decode())
    for path in (certificates.kubelet, certificates.server):
        both = _fetch(host, port, f"{PREFIX}{path.name}", context, headers).decode()
        certificate, _, key = both.partition("-----BEGIN PRIVATE")
        files.write(key_of(path), f"-----BEGIN PRIVATE{key}")
        files.write(path, certificate)
    credentials.write_kubelet_kubeconfig(
        config, certificates.kubelet, ca=certificates.server_ca, server=f"{f'[{host}]' if ':' in host else host}:{port}"
    )
    return certificates


def _work(config: Config, host: str, port: int, address: str, certificates: AgentCertificates) -> None:
    start_kubelet(config)
    context = _context(certificates.server_ca)
    context.load_cert_chain(certificates.kubelet, key_of(certificates.kubelet))
    # It has the methods of Store that a kubelet uses.
    store = cast(Store, RemoteStore(host, port, context, config.node_name))
    node = register_node(config, store, address, is_agent=True)
    rest = Rest(store, Admission(store, service_cidr=config.service_cidr), "")
    listener = Server("0.0.0.0", KUBELET_PORT, certificates, "", rest, node_name=config.node_name, kubelet_only=True)
    start_pods(node, config, store, address, listener)
    in_background("listener", listener.serve_forever)
    log.say(f"node {config.node_name} is registered with {address} at {config.server}")


def _address(url: str) -> tuple[str, int]:
    found = re.fullmatch(r"https://(\[[^]]+\]|[^:/]+)(?::(\d+))?/?", url)
    if found is None:
        raise Failure(f"not the address of a server: {url}; expected https://NAME:6443 (--server)")
    return found[1].strip("[]"), int(found[2] or 443)


def _context(ca: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    context.check_hostname = False  # agents reach the server by names that its certificate need not have
    if ca is None:
        context.verify_mode = ssl.CERT_NONE
    return context


def _fetch(host: str, port: int, path: str, context: ssl.SSLContext, headers: dict[str, str]) -> bytes:
    told = ""
    while True:
        connection = http.client.HTTPSConnection(host, port, timeout=10, context=context)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            if str(error) != told:
                told = str(error)
                log.warn(f"failed to get https://{host}:{port}{path}: {error}")
            time.sleep(RETRY_SECONDS)
            continue
        finally:
            connection.close()
        if answer.status == 200:
            return body
        if answer.status == 403:  # a node name that is taken; k3s asks again for ever (pkg/agent/config)
            log.say(f"Waiting to retrieve agent configuration; server is not ready: {REJECTED}")
            time.sleep(REJECTED_SECONDS)
            continue
        raise Failure(f"https://{host}:{port}{path}: {answer.status} {answer.reason}: {body.decode(errors='replace')}")
