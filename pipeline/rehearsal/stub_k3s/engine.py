"""dockerd over its HTTP API (docs.docker.com/reference/api/engine): this machine's, or an agent's through a tunnel."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from .errors import Object, Waiting

RETRY_SECONDS = 0.25

Dial = Callable[[float | None], socket.socket]  # timeout → a connection; raises OSError


class EngineGone(Exception):
    """dockerd does not answer."""


class EngineRefused(Exception):
    """dockerd answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Connection(http.client.HTTPConnection):
    def __init__(self, dial: Dial, timeout: float | None) -> None:
        super().__init__("docker", timeout=timeout)
        self._dial = dial

    def connect(self) -> None:
        self.sock = self._dial(self.timeout)


class Engine:
    """A client without state. Its requests are the same in the APIs of docker 20.10 to 29."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial

    @classmethod
    def local(cls, path: Path) -> Engine:
        """Return the client of the dockerd that listens on a unix socket."""

        def dial(timeout: float | None) -> socket.socket:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(timeout)
            connection.connect(str(path))
            return connection

        return cls(dial)

    def answers(self, *, within: float = 0) -> bool:
        """Return whether dockerd answers, now or within so many seconds."""
        until = time.monotonic() + within
        while True:
            try:
                b"".join(self._read("GET", "/_ping", None, 4))
            except (EngineGone, EngineRefused):
                if time.monotonic() >= until:
                    return False
                time.sleep(RETRY_SECONDS)
            else:
                return True

    def call(self, method: str, path: str, body: Any = None, *, timeout: float | None = 60, **query: Any) -> Any:
        """Return the JSON answer to one request; None if it is empty."""
        answer = b"".join(self._read(method, _url(path, query), body, timeout))
        return json.loads(answer) if answer.strip() else None

    def stream(self, method: str, path: str, body: Any = None, **query: Any) -> Iterator[bytes]:
        """Yield an answer of any length in the pieces in which it arrives."""
        yield from self._read(method, _url(path, query), body, None)

    def events(self, method: str, path: str, **query: Any) -> Iterator[Object]:
        """Yield the JSON documents of an answer with one on each line."""
        rest = b""
        for piece in self.stream(method, path, **query):
            *lines, rest = (rest + piece).split(b"\n")
            yield from (json.loads(line) for line in lines if line.strip())

    def ensure_image(self, spec: Object) -> None:
        """Pull a container's image if its policy asks for it. Raises Waiting if that fails."""
        image, policy = spec["image"], spec["imagePullPolicy"]
        if policy != "Always" and self.call("GET", "/images/json", filters={"reference": [image]}):
            return
        if policy == "Never":
            raise Waiting("ErrImageNeverPull", f'Container image "{image}" is not present with pull policy of Never')
        has_tag = "@" in image or ":" in image.rpartition("/")[2]
        try:
            for report in self.events("POST", "/images/create", fromImage=image if has_tag else f"{image}:latest"):
                if problem := report.get("error"):
                    raise Waiting("ErrImagePull", str(problem))
        except EngineRefused as refused:
            raise Waiting("ErrImagePull", str(refused)) from None

    def _read(self, method: str, url: str, body: Any, timeout: float | None) -> Iterator[bytes]:
        connection = _Connection(self._dial, timeout)
        content = None if body is None else json.dumps(body)
        try:
            connection.request(method, url, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status >= 400:
                raise EngineRefused(response.status, json.loads(response.read())["message"])
            while piece := response.read1(65536):
                yield piece
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise EngineGone(repr(error)) from None
        finally:
            connection.close()


def frames(pieces: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Split the frames in which dockerd mixes stdout (1) and stderr (2) of a container without a terminal."""
    rest = b""
    for piece in pieces:
        rest += piece
        while len(rest) >= 8 and len(rest) >= 8 + (size := int.from_bytes(rest[4:8], "big")):
            yield rest[0], rest[8 : 8 + size]
            rest = rest[8 + size :]


def _url(path: str, query: dict[str, Any]) -> str:
    words = {key: json.dumps(value) if isinstance(value, dict | bool) else value for key, value in query.items()}
    return quote(path) + (f"?{urlencode(words)}" if words else "")
