"""dockerd's API at its socket, as far as the image's own programs ask for it."""

from __future__ import annotations

import http.client
import socket

SOCKET = "/run/docker.sock"


class Docker:
    """dockerd, at its socket."""

    def problem(self) -> str:
        connection = http.client.HTTPConnection("localhost", timeout=3)
        try:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(3)
            connection.sock.connect(SOCKET)
            connection.request("GET", "/_ping")
            status = connection.getresponse().status
            return "" if status == 200 else f"dockerd answers {status}"
        except OSError as error:
            return f"dockerd does not answer ({error.strerror or error})"
        finally:
            connection.close()
