"""The benchmarks' origin with strong ETags and ranges, which records the requested range and the bytes sent.

So a test of killed downloads can show what was not asked twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.bench import origin


@dataclass
class Asked:
    """One request and its response."""

    path: str
    start: int  # first byte of the requested range
    status: int
    sent: int = 0  # bytes of the body


@dataclass
class Recorded:
    """A running origin, and its requests in the order of the responses."""

    server: origin.Origin
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.url


@contextmanager
def serve(folder: Path, *, rate: float = 0.0) -> Iterator[Recorded]:
    """Serve `folder` on 127.0.0.1 with `rate` bytes a second for all connections together (0: no limit)."""
    asked: list[Asked] = []

    class Handler(origin.Handler):
        def do_GET(self) -> None:
            try:
                file = (folder / self.path.lstrip("/")).open("rb")
            except OSError:
                asked.append(Asked(self.path, 0, 404))
                self.send_error(404)
                return
            with file:
                status = os.fstat(file.fileno())
                size, tag = status.st_size, f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
                start, end, code = 0, size, 200
                match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                if match and self.headers.get("If-Range", tag) == tag:
                    start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
                    code = 206 if start < size else 416
                entry = Asked(self.path, start, code)
                asked.append(entry)
                self.send_response(code)
                self.send_header("ETag", tag)
                self.send_header("Accept-Ranges", "bytes")
                if code == 416:
                    self.send_header("Content-Range", f"bytes */{size}")
                    start = end = 0
                if code == 206:
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
                self.send_header("Content-Length", str(end - start))
                self.end_headers()
                if self.command != "HEAD":
                    with suppress(ConnectionError):
                        self._send(file.fileno(), start, end, entry)

        do_HEAD = do_GET

        def _send(self, file: int, start: int, end: int, entry: Asked) -> None:
            while start < end:
                count = self.server.sendfile(self.connection, file, start, end)
                start += count
                entry.sent += count

    with origin.serve(folder, rate=rate, handler=Handler) as served:
        yield Recorded(served, asked)
