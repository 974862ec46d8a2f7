"""`k3s agent`: joins a server with its token; the server then runs pods on this machine's dockerd, through a tunnel."""

from __future__ import annotations

import http.client
import ssl
import time
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from . import credentials, log
from .certs import Certificates, key_of
from .config import Config
from .errors import Failure
from .joining import PREFIX, basic
from .nodes import own_address, start_kubelet
from .process import in_background, leave, until_stopped
from .tunnel import Tunnel

RETRY_SECONDS = 1.0
REJECTED_SECONDS = 5.0
REJECTED = (
    "Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server"
    " node-passwd entry, try enabling a unique node name with the --with-node-id flag"
)


def run(config: Config) -> NoReturn:
    """Run until SIGTERM or SIGINT; then end at once with status 0, pods running, as k3s does."""
    url = urlsplit(config.server)
    if url.scheme != "https" or not url.hostname:
        raise Failure(f"invalid address of a server: {config.server}; expected https://NAME:6443 (--server)")
    certificates = join(config, (url.hostname, url.port or 443))
    in_background("agent", lambda: _serve(config, certificates))
    until_stopped()
    leave()


def _serve(config: Config, certificates: Certificates) -> None:
    start_kubelet(config)
    Tunnel("0.0.0.0", certificates, config.docker_socket).serve_forever()


def join(config: Config, server: tuple[str, int]) -> Certificates:
    """Download the certificates, once the server answers. Raises Failure if it refuses this agent."""
    folder = config.data_dir / "agent"
    own = folder / "client-kubelet.crt"
    certificates = Certificates(
        server_ca=folder / "server-ca.crt", client_ca=folder / "client-ca.crt", server=own, client=own
    )
    headers = {
        "Authorization": basic(config.token),
        "k3s-Node-Name": config.node_name,
        "k3s-Node-Password": credentials.ensure_node_password(config),
        "k3s-Node-IP": config.node_ip or own_address(),
    }
    credentials.write(certificates.server_ca, _download(server, "/cacerts", None, {}))
    authority = certificates.server_ca
    credentials.write(certificates.client_ca, _download(server, f"{PREFIX}client-ca.crt", authority, headers))
    both = _download(server, f"{PREFIX}{own.name}", authority, headers)
    certificate, begin, key = both.partition("-----BEGIN PRIVATE")
    credentials.write(key_of(own), begin + key)
    credentials.write(own, certificate)
    credentials.write_kubelet_kubeconfig(config, own, ca=authority, server=credentials.url(*server))
    log.say(f"node {config.node_name} has joined {config.server}")
    return certificates


def _download(server: tuple[str, int], path: str, ca: Path | None, headers: dict[str, str]) -> str:
    """Retry until the server answers and accepts the node's name. `ca`: None without a check of the server."""
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    context.check_hostname = False  # agents may use a name of the server that its certificate does not have
    if ca is None:
        context.verify_mode = ssl.CERT_NONE
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
        # The node name is taken. k3s retries without an end (pkg/agent/config).
        log.say(f"Waiting to retrieve agent configuration; server is not ready: {REJECTED}")
        time.sleep(REJECTED_SECONDS)
