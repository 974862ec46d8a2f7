"""Listeners with TLS, and the connection from the server to an agent's dockerd: Docker's API on the kubelet's port.

k3s has a kubelet there. The stub's server does a kubelet's work for all nodes, so an agent only has to forward.
"""

from __future__ import annotations

import select
import socket
import ssl
import sys
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler
from typing import Any

from .certs import Certificates, key_of
from .errors import Failure

PORT = 10250
GONE = (ConnectionError, ssl.SSLError, TimeoutError)


class Listener(ThreadingHTTPServer):
    """One listening socket. A client certificate is optional; one that is given must be valid."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str, port: int, certificates: Certificates, handler: type[BaseRequestHandler]) -> None:
        try:
            super().__init__((address, port), handler)
        except OSError as error:
            raise Failure(f"cannot listen on {address} port {port}: {error.strerror or error}") from None
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificates.server, key_of(certificates.server))
        self._tls.load_verify_locations(certificates.client_ca)
        self._tls.verify_mode = ssl.CERT_OPTIONAL
        self._tls.set_alpn_protocols(["http/1.1"])

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Do the TLS handshake in the connection's own thread, so that a slow client delays no other."""
        request.settimeout(15)
        try:
            tls = self._tls.wrap_socket(request, server_side=True)
        except (OSError, ValueError):
            return
        with tls:
            super().finish_request(tls, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of anything but a client that disconnects."""
        if not isinstance(sys.exception(), GONE):
            super().handle_error(request, client_address)


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
