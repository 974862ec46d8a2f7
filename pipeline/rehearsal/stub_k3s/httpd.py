"""HTTP/1.1 over TLS: a listening socket with a thread for each connection, and the kinds of answers."""

from __future__ import annotations

import json
import select
import ssl
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .certs import Certificates, key_of
from .errors import ApiError, Failure, Object

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


class Exchange(BaseHTTPRequestHandler):
    """The requests of one connection."""

    connection: ssl.SSLSocket
    protocol_version = "HTTP/1.1"
    timeout = 600

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, as k3s."""

    def respond(self) -> None:
        """Answer one request. Raises ApiError."""
        raise NotImplementedError

    def answer(self) -> None:
        """Answer one request, an ApiError by a `Status`."""
        url = urlsplit(self.path)
        self.parts = [unquote(part) for part in url.path.split("/") if part]
        self.queries = parse_qs(url.query, keep_blank_values=True)
        self.query = {key: values[-1] for key, values in self.queries.items()}
        try:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.respond()
        except ApiError as error:
            self.send_json(error.code, error.to_object())
        except GONE:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def require_certificate(self) -> None:
        """Raise ApiError without a client certificate."""
        if not self.connection.getpeercert():
            raise ApiError(401, "Unauthorized")

    def document(self) -> Object:
        """Return the body as an object, empty without a body. Raises ApiError."""
        try:
            thing: Object = json.loads(self.body or b"{}")
        except ValueError as error:
            raise ApiError(415, f"the stub reads JSON only: {error}") from None
        return thing

    def client_is_there(self) -> bool:
        """Return whether the client is connected; all that it can send during a long answer is its end."""
        return not select.select([self.connection], [], [], 0)[0]

    def send_json(self, code: int, thing: Object) -> None:
        """Answer with one JSON document."""
        self.send_bytes(code, json.dumps(thing).encode(), "application/json")

    def send_bytes(self, code: int, body: bytes, media_type: str = "text/plain") -> None:
        """Answer with a body of known length."""
        self.send_response(code)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_stream(self, media_type: str, chunks: Iterator[bytes]) -> None:
        """Answer with chunks as they arrive, and close the connection after them."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in filter(None, chunks):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")
