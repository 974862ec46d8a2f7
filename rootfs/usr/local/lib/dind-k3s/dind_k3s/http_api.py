"""As much of an HTTP client as our programs need, over a socket that is open already.

The standard library's imports a mail parser; the watcher runs for ever, and its memory is the user's.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import BinaryIO, cast


class BadAnswer(OSError):
    """What came is no HTTP."""


class Answer:
    """A status, and a body that is read as it comes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        words = stream.readline(65536).split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise BadAnswer("it hung up" if not words else "it does not speak HTTP")
        self.status = int(words[1])
        self._length: int | None = 0 if self.status in (204, 304) else None  # these have no body, and say so by it
        self._chunked = self._closes = False
        while line := stream.readline(65536).strip():
            name, _, value = line.partition(b":")
            match name.lower(), value.strip().lower():
                case b"content-length", text:
                    self._length = int(text)
                case b"transfer-encoding", b"chunked":
                    self._chunked = True
                case b"connection", b"close":
                    self._closes = True

    def pieces(self) -> Iterator[bytes]:
        """The body, piece by piece."""
        if self._chunked:
            while size := self._size():
                yield self._exactly(size)
                self._line()
            self._line()
        elif self._length is not None:
            if self._length:
                yield self._exactly(self._length)
        else:
            while piece := self._stream.read(65536):
                yield piece

    def lines(self) -> Iterator[bytes]:
        """The body, line by line, each as soon as it is whole."""
        rest = b""
        for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n")
            yield from (line for line in whole if line.strip())
        if rest.strip():
            yield rest

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self.pieces())

    @property
    def reusable(self) -> bool:
        """Whether another request may follow once the body is read."""
        return (self._chunked or self._length is not None) and not self._closes

    def _size(self) -> int:
        try:
            return int(self._line().partition(b";")[0], 16)
        except ValueError:
            raise BadAnswer("it does not speak HTTP") from None

    def _line(self) -> bytes:
        line = self._stream.readline(65536)
        if not line:
            raise BadAnswer("it hung up")
        return line.strip()

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise BadAnswer("it hung up")
        return data


class Connection:
    """One socket and the requests on it, one after the other."""

    def __init__(self, sock: socket.socket, host: str, headers: str = "") -> None:
        self._socket = sock
        self._stream = cast(BinaryIO, sock.makefile("rb"))
        self._head = f"Host: {host}\r\n{headers}"

    def ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Send a request. The body of its answer must be read before the next one."""
        length = "" if method == "GET" else f"Content-Length: {len(body)}\r\n"
        self._socket.sendall(f"{method} {path} HTTP/1.1\r\n{self._head}{length}\r\n".encode() + body)
        return Answer(self._stream)

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def wait(self, seconds: float | None) -> None:
        """How long from now on the other side may say nothing."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
