"""dockerd's API at its socket, as far as the image's own programs ask for it."""

from __future__ import annotations

import json
import socket

from dind_k3s.http_api import Connection

SOCKET = "/run/docker.sock"
PATIENCE = 5.0  # seconds; a dockerd that takes longer over a ping hangs
# Only its own events, of which there are next to none: the stream is there to end with dockerd.
EVENTS = "/events?filters=%7B%22type%22%3A%5B%22daemon%22%5D%7D"


class Docker:
    """dockerd, at its socket."""

    def connect(self) -> Connection:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(SOCKET)
        except OSError:
            sock.close()
            raise
        return Connection(sock, "docker")

    def ask(self, method: str, path: str, *, timeout: float | None = PATIENCE) -> tuple[int, bytes]:
        """Status and body of one answer. Raises OSError."""
        with self.connect() as connection:
            connection.wait(timeout)
            answer = connection.ask(method, path)
            return answer.status, answer.read()

    def problem(self) -> str:
        """Why it is not ready; empty when it is."""
        try:
            status, _ = self.ask("GET", "/_ping")
        except OSError as error:
            return f"dockerd does not answer ({error.strerror or error})"
        return "" if status == 200 else f"dockerd answers {status}"

    def has_containerd(self) -> bool:
        """Whether it reaches its containerd. It runs runc and docker-init for this answer: not to be asked for ever."""
        try:
            status, body = self.ask("GET", "/version")
        except OSError:
            return False
        parts = json.loads(body).get("Components") or [] if status == 200 else []
        return any(part.get("Name") == "containerd" for part in parts)

    def until_it_ends(self) -> str:
        """Wait until dockerd ends, and say how that showed."""
        try:
            with self.connect() as connection:
                answer = connection.ask("GET", EVENTS)
                connection.wait(None)
                for _ in answer.pieces():
                    pass
        except OSError as error:
            return f"dockerd does not answer ({error.strerror or error})"
        return "dockerd ended"
