"""An origin on loopback for measuring and for killing: one folder over HTTP/1.1 with strong ETags, ranges, a speed.

It writes down what each request asked for and how much went out, so that a test can prove what was not asked twice.
It is no part of a release; the rehearsal's origin (pipeline/rehearsal/origin.py) has the vendors' layout.
"""

from __future__ import annotations

import http.server
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PIECE = 32 << 10  # bytes between two looks at the clock when the speed is limited


@dataclass
class Asked:
    """One request and its answer."""

    path: str
    start: int  # first byte that was asked for
    status: int
    sent: int = 0  # bytes of the body that went into the socket


class Line:
    """A line of a given speed that all connections share."""

    def __init__(self, rate: float) -> None:
        self.rate = rate  # bytes a second; 0: no limit
        self._lock = threading.Lock()
        self._free = 0.0  # when the line has carried all that was promised so far

    def wait(self, count: int) -> None:
        """Return when `count` more bytes have had their time on the line."""
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - 0.01) + count / self.rate
            left = self._free - now
        if left > 0:
            time.sleep(left)


class Origin:
    """A running origin: its address, and its log in the order of the answers."""

    def __init__(self, folder: Path, rate: float) -> None:
        self.folder = folder
        self.line = Line(rate)
        self.asked: list[Asked] = []
        self.url = ""


@contextmanager
def serve(folder: Path, *, rate: float = 0.0, port: int = 0) -> Iterator[Origin]:
    """Serve `folder` on 127.0.0.1 with `rate` bytes a second for all connections together (0: as fast as it can)."""
    origin = Origin(folder, rate)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            _answer(self, origin)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Listening(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """Killed clients are what this is for."""

    listening = Listening(("127.0.0.1", port), Handler)
    origin.url = f"http://127.0.0.1:{listening.server_address[1]}"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield origin
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def _answer(handler: http.server.BaseHTTPRequestHandler, origin: Origin) -> None:
    path = origin.folder / handler.path.lstrip("/")
    try:
        file = path.open("rb")
    except OSError:
        origin.asked.append(Asked(handler.path, 0, 404))
        handler.send_error(404)
        return
    with file:
        status = os.fstat(file.fileno())
        tag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        start, end, code = 0, status.st_size, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        if asked and handler.headers.get("If-Range", tag) == tag:
            start, code = int(asked[1]), 206
            end = min(int(asked[2]) + 1, end) if asked[2] else end
            if start >= status.st_size:
                code = 416
        entry = Asked(handler.path, start, code)
        origin.asked.append(entry)
        handler.send_response(code)
        handler.send_header("ETag", tag)
        handler.send_header("Accept-Ranges", "bytes")
        if code == 416:
            handler.send_header("Content-Range", f"bytes */{status.st_size}")
            start = end = 0
        if code == 206:
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{status.st_size}")
        handler.send_header("Content-Length", str(end - start))
        handler.end_headers()
        if handler.command != "HEAD":
            with suppress(ConnectionError):
                _send(handler.connection, file.fileno(), start, end, origin.line, entry)


def _send(to: socket.socket, file: int, start: int, end: int, line: Line, entry: Asked) -> None:
    """The bytes from `start` to `end`, by sendfile(2): an origin must not be what is measured."""
    while start < end:
        count = end - start if not line.rate else min(_PIECE, end - start)
        if line.rate:
            line.wait(count)
        went = os.sendfile(to.fileno(), file, start, min(count, 1 << 20))
        if went == 0:
            return
        start += went
        entry.sent += went
