"""A real HTTP server for tests, with a response per path."""

from __future__ import annotations

import http.server
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.rehearsal import loopback

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@dataclass
class Server:
    """A running server: `answers` by path, and the requests."""

    url: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers
    connections: int = 0  # opened so far

    def gives(
        self,
        path: str,
        body: bytes,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        """Answer a path with a body; `cut`: close the connection after that many bytes of it."""

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            given = {"Content-Length": str(len(body)), **(headers or {})}
            for name, value in given.items():
                handler.send_header(name, value)
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(body if cut is None else body[:cut])
            if cut is not None:
                handler.close_connection = True

        self.answers[path] = answer

    def then(self, path: str, *answers: Answer) -> None:
        """Answer a path with these in turn; the last one repeatedly."""
        queue = list(answers)

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            (queue.pop(0) if len(queue) > 1 else queue[0])(handler)

        self.answers[path] = answer


@contextmanager
def running(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Run a server on a free port of loopback, with TLS if a context is given."""
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            server.connections += 1
            super().setup()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            server.asked.append((self.command, self.path, dict(self.headers)))
            if path in server.answers:
                server.answers[path](self)
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Listening(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignore clients that disconnect; print other errors."""
            if not isinstance(sys.exception(), OSError):
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    listening = Listening(("127.0.0.1", 0), Handler)
    if tls is not None:  # the handshake is for the handler's thread, not for the one that accepts
        listening.socket = tls.wrap_socket(listening.socket, server_side=True, do_handshake_on_connect=False)
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{listening.server_address[1]}"
    with loopback.running(listening):
        yield server
