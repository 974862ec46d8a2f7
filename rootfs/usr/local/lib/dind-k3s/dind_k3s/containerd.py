"""The containerd that dockerd starts as its child, and without which it starts no container.

dockerd's ping does not ask it, and dockerd takes ten seconds to start another when it was killed: three health checks
of 3 s and the pauses between them, all constants (moby: libcontainerd/supervisor/remote_daemon.go). Then it connects
again when gRPC's own growing pause is over, some five seconds later. A connection to containerd ends with it, and costs
nothing while it lives.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

PID = Path("/run/docker/containerd/containerd.pid")
# Of its two sockets the one whose server waits for a client's first word for ever; the other gives it two minutes.
SOCKET = "/run/docker/containerd/containerd.sock.ttrpc"


def connect() -> socket.socket:
    """A connection, on which nothing is to be said. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(SOCKET)
    except OSError:
        sock.close()
        raise
    return sock


def until_it_ends(connection: socket.socket) -> None:
    """Wait until it closes the connection."""
    with contextlib.suppress(OSError):
        while connection.recv(64):
            pass
