"""HTTP/1.1 server on loopback for measurements: one folder, at a given speed for all connections together."""

from __future__ import annotations

import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from pipeline.rehearsal import loopback

_PIECE = 32 << 10  # bytes of one sendfile(2) when the speed is limited
_AT_MOST = 1 << 20  # … and when it is not


class Origin(http.server.ThreadingHTTPServer):
    """A running server."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, rate: float, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        self.rate = rate  # bytes a second, of all connections together; 0: no limit
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._lock = threading.Lock()
        self._free = 0.0  # when all bytes so far will have been sent

    def sendfile(self, connection: socket.socket, file: int, start: int, end: int) -> int:
        """Send a piece of a file, not before its bytes fit the rate; return how many bytes were sent."""
        rate = self.rate
        if not rate:
            return os.sendfile(connection.fileno(), file, start, min(_AT_MOST, end - start))
        count = min(_PIECE, end - start)
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - 0.01) + count / rate
            left = self._free - now
        if left > 0:
            time.sleep(left)
        return os.sendfile(connection.fileno(), file, start, count)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors: clients may end early."""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Sends files by sendfile(2), which costs little: the server is not what is measured."""

    server: Origin
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def copyfile(self, source: IO[bytes], _output: object) -> None:  # type: ignore[override]
        """Send a whole file."""
        start, end = 0, os.fstat(source.fileno()).st_size
        while start < end:
            start += self.server.sendfile(self.connection, source.fileno(), start, end)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def serve(folder: Path, *, rate: float = 0.0, handler: type[Handler] = Handler) -> Iterator[Origin]:
    """Serve `folder` on 127.0.0.1 with `rate` bytes a second (0: no limit)."""
    origin = Origin(folder, rate, handler)
    with loopback.running(origin):
        yield origin
