"""HTTP/1.1 server on loopback for measurements: one folder, at a given speed for all connections together."""

from __future__ import annotations

import http.server
import os
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


class Line:
    """Limits the speed of all connections together."""

    def __init__(self, rate: float) -> None:
        self.rate = rate  # bytes a second; 0: no limit
        self._lock = threading.Lock()
        self._free = 0.0  # when all bytes so far will have been sent

    def wait(self, count: int) -> None:
        """Sleep as long as `count` more bytes take."""
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - 0.01) + count / self.rate
            left = self._free - now
        if left > 0:
            time.sleep(left)


class Origin(http.server.ThreadingHTTPServer):
    """A running server."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, rate: float, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), partial(handler, directory=str(folder)))
        self.line = Line(rate)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors: clients may end early."""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Sends files by sendfile(2), which costs little: the server is not what is measured."""

    server: Origin
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def copyfile(self, source: IO[bytes], _output: object) -> None:  # type: ignore[override]
        """Send a whole file."""
        start, end, line = 0, os.fstat(source.fileno()).st_size, self.server.line
        while start < end:
            if line.rate:
                line.wait(min(_PIECE, end - start))
            start += os.sendfile(self.connection.fileno(), source.fileno(), start, _PIECE if line.rate else _AT_MOST)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def serve(folder: Path, *, rate: float = 0.0, handler: type[Handler] = Handler) -> Iterator[Origin]:
    """Serve `folder` on 127.0.0.1 with `rate` bytes a second (0: no limit)."""
    origin = Origin(folder, rate, handler)
    with loopback.running(origin):
        yield origin
