"""dockerd's API at its socket, as far as the image's own programs ask for it."""

from __future__ import annotations

import http.client
import socket

SOCKET = "/run/docker.sock"


class Docker:
    """dockerd, at its socket."""

    def ask(self, method: str, path: str, *, timeout: float | None) -> tuple[int, bytes]:
        """Status and body of one answer. Raises OSError."""
        connection = http.client.HTTPConnection("localhost")
        try:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(timeout)
            connection.sock.connect(SOCKET)
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"{type(error).__name__} {error}") from None
        finally:
            connection.close()

    def problem(self) -> str:
        try:
            status, _ = self.ask("GET", "/_ping", timeout=3)
        except OSError as error:
            return f"dockerd does not answer ({error.strerror or error})"
        return "" if status == 200 else f"dockerd answers {status}"
