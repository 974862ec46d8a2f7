"""HTTP servers on 127.0.0.1, for the length of a block."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer

from pipeline.core.errors import EngineError


@contextmanager
def serve(
    name: str, port: int, handler: Callable[..., BaseHTTPRequestHandler], context: ssl.SSLContext | None = None
) -> Iterator[None]:
    """Serve on a port, with TLS if there is a context. Raises EngineError if the port is in use."""
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise port_taken(name, port, error) from None
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with running(server):
        yield


@contextmanager
def running(server: BaseServer) -> Iterator[None]:
    """Run a server in a thread for the length of the block, then close it."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def port_taken(name: str, port: int, error: OSError) -> EngineError:
    """Return the error for a server that cannot listen."""
    return EngineError(
        f"{name} cannot listen on 127.0.0.1:{port}",
        found=str(error.strerror),
        next_step=f"stop the process that listens there: ss -ltnp 'sport = {port}'",
    )
