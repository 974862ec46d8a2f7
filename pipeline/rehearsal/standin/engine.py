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

# What we speak when the engine does: Docker 25's, the oldest that Docker 29 still answers; older engines get theirs.
PREFERRED = (1, 44)


class EngineGone(Exception):
    """dockerd does not answer."""


class EngineRefused(Exception):
    """dockerd answers, and says no."""

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
    """A client without state but for the API version, which is agreed on at the first question."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._prefix = ""

    def version(self) -> Object:
        """What the engine says of itself; agrees on the API version anew."""
        answer: Object = json.loads(self._ask("GET", "/version", None, timeout=5))
        self._prefix = f"/v{choose_version(answer['MinAPIVersion'], answer['ApiVersion'])}"
        return answer

    def ping(self) -> bool:
        """Whether dockerd answers within a few seconds."""
        try:
            self._ask("GET", "/_ping", None, timeout=4)
        except (EngineGone, EngineRefused):
            return False
        return True

    def call(self, method: str, path: str, body: Any = None, *, timeout: float | None = 60, **query: Any) -> Any:
        """One question and its JSON answer."""
        answer = self._ask(method, self._url(path, query), body, timeout=timeout)
        return json.loads(answer) if answer.strip() else None

    def stream(self, method: str, path: str, *, timeout: float | None = None, **query: Any) -> Iterator[bytes]:
        """An answer that goes on, in the pieces in which it comes."""
        connection, response = self._open(method, self._url(path, query), None, {}, timeout)
        try:
            while piece := response.read1(65536):
                yield piece
        except (OSError, http.client.HTTPException) as error:
            raise EngineGone(f"it hung up ({type(error).__name__})") from None
        finally:
            response.close()
            connection.close()

    def events(self, method: str, path: str, **query: Any) -> Iterator[Object]:
        """An answer of JSON documents, one after the other."""
        decoder, rest = json.JSONDecoder(), ""
        for piece in self.stream(method, path, **query):
            rest += piece.decode("utf-8", "replace")
            while rest := rest.lstrip():
                try:
                    document, end = decoder.raw_decode(rest)
                except ValueError:
                    break
                yield document
                rest = rest[end:]

    def hijack(self, path: str, body: Any = None, **query: Any) -> tuple[socket.socket, bytes]:
        """Turn a request into a raw two-way stream, as exec and attach do; the bytes are its beginning.

        Done by hand, for http.client would keep those first bytes in a buffer of its own.
        """
        content = json.dumps(body).encode() if body is not None else b""
        head = [f"POST {self._url(path, query)} HTTP/1.1", "Host: docker", "Connection: Upgrade", "Upgrade: tcp"]
        head += ["Content-Type: application/json", f"Content-Length: {len(content)}", "", ""]
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.settimeout(60)
            stream.connect(str(self.path))
            stream.sendall("\r\n".join(head).encode() + content)
            answer = b""
            while b"\r\n\r\n" not in answer:
                piece = stream.recv(65536)
                if not piece:
                    raise EngineGone("dockerd hung up")
                answer += piece
            header, _, rest = answer.partition(b"\r\n\r\n")
            status = int(header.split()[1])
            if status >= 400:
                raise EngineRefused(status, _message(rest))
            stream.settimeout(None)
        except BaseException as error:
            stream.close()
            if isinstance(error, OSError):
                raise EngineGone(str(error)) from None
            raise
        return stream, rest

    def _url(self, path: str, query: dict[str, Any]) -> str:
        if not self._prefix:
            self.version()
        words = {key: json.dumps(value) if isinstance(value, dict | list) else value for key, value in query.items()}
        words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in words.items()}
        return f"{self._prefix}{quote(path)}" + (f"?{urlencode(words)}" if words else "")

    def _ask(self, method: str, url: str, body: Any, timeout: float | None) -> bytes:
        connection, response = self._open(method, url, body, {}, timeout)
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise EngineGone(str(error)) from None
        finally:
            connection.close()

    def _open(
        self, method: str, url: str, body: Any, headers: dict[str, str], timeout: float | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = _Connection(self.path, timeout)
        content = None if body is None else json.dumps(body)
        try:
            connection.request(method, url, content, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            if response.status >= 400:
                raise EngineRefused(response.status, _message(response.read()))
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise EngineGone(f"{self.path}: {error}") from None
        except EngineRefused:
            connection.close()
            raise
        return connection, response


def choose_version(oldest: str, newest: str) -> str:
    """The API version to speak with an engine that knows those from `oldest` to `newest`."""
    low, high = (tuple(int(part) for part in text.split(".")) for text in (oldest, newest))
    return ".".join(str(part) for part in max(low, min(high, PREFERRED)))


def frames(pieces: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Take apart the frames in which dockerd mixes stdout (1) and stderr (2) of a container without a terminal."""
    rest = b""
    for piece in pieces:
        rest += piece
        while len(rest) >= 8 and len(rest) >= 8 + (size := int.from_bytes(rest[4:8], "big")):
            yield rest[0], rest[8 : 8 + size]
            rest = rest[8 + size :]


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace").strip()
