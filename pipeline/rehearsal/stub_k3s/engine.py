"""dockerd over its HTTP API on a unix socket (docs.docker.com/reference/api/engine)."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from .status import Object


class EngineGone(Exception):
    """dockerd does not answer."""


class EngineRefused(Exception):
    """dockerd answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("docker", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Engine:
    """A client without state. What it asks for is the same in all versions of the API that docker 20.10 to 29 have."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def answers(self) -> bool:
        """Whether dockerd answers within a few seconds."""
        try:
            b"".join(self._read("GET", "/_ping", None, 4))
        except (EngineGone, EngineRefused):
            return False
        return True

    def call(self, method: str, path: str, body: Any = None, *, timeout: float | None = 60, **query: Any) -> Any:
        """One question and its JSON answer."""
        answer = b"".join(self._read(method, _url(path, query), body, timeout))
        return json.loads(answer) if answer.strip() else None

    def stream(self, method: str, path: str, body: Any = None, **query: Any) -> Iterator[bytes]:
        """An answer without an end, in the pieces in which it comes."""
        yield from self._read(method, _url(path, query), body, None)

    def events(self, method: str, path: str, **query: Any) -> Iterator[Object]:
        """An answer of JSON documents, one on each line."""
        rest = b""
        for piece in self.stream(method, path, **query):
            *lines, rest = (rest + piece).split(b"\n")
            yield from (json.loads(line) for line in lines if line.strip())

    def _read(self, method: str, url: str, body: Any, timeout: float | None) -> Iterator[bytes]:
        connection = _Connection(self.path, timeout)
        content = None if body is None else json.dumps(body)
        try:
            connection.request(method, url, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status >= 400:
                raise EngineRefused(response.status, json.loads(response.read())["message"])
            while piece := response.read1(65536):
                yield piece
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise EngineGone(f"{self.path}: {error!r}") from None
        finally:
            connection.close()


def frames(pieces: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Take apart the frames in which dockerd mixes stdout (1) and stderr (2) of a container without a terminal."""
    rest = b""
    for piece in pieces:
        rest += piece
        while len(rest) >= 8 and len(rest) >= 8 + (size := int.from_bytes(rest[4:8], "big")):
            yield rest[0], rest[8 : 8 + size]
            rest = rest[8 + size :]


def _url(path: str, query: dict[str, Any]) -> str:
    words = {key: json.dumps(value) if isinstance(value, dict | bool) else value for key, value in query.items()}
    return quote(path) + (f"?{urlencode(words)}" if words else "")
