"""The connection from the server to an agent's dockerd: TLS on the kubelet's port, then the bytes of Docker's API.

k3s has a kubelet there. The stub's server does a kubelet's work for all nodes, so an agent only has to forward.
"""

from __future__ import annotations

import select
import socket
import ssl
from pathlib import Path
from socketserver import BaseRequestHandler

from .certs import Certificates, key_of
from .listener import Listener

PORT = 10250


class Tunnel(Listener):
    """The listener of a node. Only holders of a certificate of the cluster get through."""

    def __init__(self, address: str, certificates: Certificates, docker_socket: Path) -> None:
        super().__init__(address, PORT, certificates, _Connection)
        self.docker_socket = docker_socket


class _Connection(BaseRequestHandler):
    server: Tunnel

    def handle(self) -> None:
        """Forward bytes in both directions until either side closes."""
        tls: ssl.SSLSocket = self.request
        if not tls.getpeercert():
            return
        tls.settimeout(None)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as engine:
            try:
                engine.connect(str(self.server.docker_socket))
            except OSError:
                return
            while True:
                for side in [tls] if tls.pending() else select.select([tls, engine], [], [])[0]:
                    piece = side.recv(65536)
                    if not piece:
                        return
                    (engine if side is tls else tls).sendall(piece)


def connect(node: str, address: str, certificates: Certificates, timeout: float | None) -> ssl.SSLSocket:
    """Connect the server to the dockerd of a node. Raises OSError, also when another node has that address."""
    context = ssl.create_default_context(cafile=str(certificates.client_ca))
    context.load_cert_chain(certificates.client, key_of(certificates.client))
    connection = socket.create_connection((address, PORT), timeout=timeout or 10)
    try:
        tls = context.wrap_socket(connection, server_hostname=node)
    except (OSError, ValueError):
        connection.close()
        raise
    tls.settimeout(timeout)
    return tls
