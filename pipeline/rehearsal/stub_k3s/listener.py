"""A listening socket with TLS, and a thread for each connection."""

from __future__ import annotations

import ssl
import sys
from http.server import ThreadingHTTPServer
from socketserver import BaseRequestHandler
from typing import Any

from .certs import Certificates, key_of
from .errors import Failure

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
