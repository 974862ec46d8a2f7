"""WebSocket (RFC 6455) as far as kubectl's exec and attach need it: one handshake, whole messages, no extensions."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ssl
import struct
import time
from collections.abc import Iterator

CLOSE, PING, PONG, BINARY = 0x8, 0x9, 0xA, 0x2
_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accept_key(key: str) -> str:
    """The server's answer to the client's key."""
    return base64.b64encode(hashlib.sha1(f"{key}{_MAGIC}".encode()).digest()).decode("ascii")


class WebSocket:
    """The server's end of an open connection, used by one thread."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection
        self._bytes = b""
        self._message = b""
        self.open = True

    def fileno(self) -> int:
        """For select; look at `receive` again as long as it gives something."""
        return self._connection.fileno()

    def send(self, payload: bytes, opcode: int = BINARY) -> None:
        """Send one message in one frame."""
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, size)
        elif size < 65536:
            head = struct.pack("!BBH", 0x80 | opcode, 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 127, size)
        self._connection.sendall(head + payload)

    def close(self) -> None:
        """Say goodbye with the code for a normal end."""
        if self.open:
            self.open = False
            self.send(struct.pack("!H", 1000), CLOSE)

    def drain(self, seconds: float) -> None:
        """Take what the client still sends, to the end or for so long.

        Closing a connection with unread bytes resets it, and the client would lose what was sent last.
        """
        until = time.monotonic() + seconds
        with contextlib.suppress(OSError):  # a time-out and a reset are ends, too
            while (left := until - time.monotonic()) > 0:
                self._connection.settimeout(left)
                if not self._connection.recv(65536):
                    return

    def receive(self) -> Iterator[bytes]:
        """Read what has come and give the messages that are complete."""
        piece = self._connection.recv(65536)
        while self._connection.pending():  # decrypted already, so select would not tell of it
            piece += self._connection.recv(65536)
        if not piece:
            self.open = False
        self._bytes += piece
        while frame := self._frame():
            final, opcode, payload = frame
            if opcode == CLOSE:
                self.close()
                return
            if opcode == PING:
                self.send(payload, PONG)
            elif opcode != PONG:
                self._message += payload
                if final:
                    message, self._message = self._message, b""
                    yield message

    def _frame(self) -> tuple[bool, int, bytes] | None:
        """Take one frame off the bytes that came, if it is there to its end."""
        data = self._bytes
        if len(data) < 2:
            return None
        size, at = data[1] & 0x7F, 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
        masked = bool(data[1] & 0x80)
        start = at + (4 if masked else 0)
        if len(data) < start + size:
            return None
        payload = data[start : start + size]
        if masked and size:
            mask = (data[at:start] * (size // 4 + 1))[:size]
            payload = (int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")).to_bytes(size, "big")
        self._bytes = data[start + size :]
        return bool(data[0] & 0x80), data[0] & 0x0F, payload
