"""A server of the tests that speaks HTTP/2 over TLS and nothing else; each path has a body."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamReset, WindowUpdated


@dataclass
class Http2:
    """A running server: `asked` has the path and the first byte of each request, `connections` their number."""

    url: str = ""
    asked: list[tuple[str, int]] = field(default_factory=list)
    connections: int = 0


@contextmanager
def running(
    tls: ssl.SSLContext, bodies: Mapping[str, bytes], *, cut: int | None = None, last: bytes = b""
) -> Iterator[Http2]:
    """On a free port of loopback; `cut`: the first answer ends its connection after that many bytes, with `last`."""
    tls.set_alpn_protocols(["h2"])
    server = Http2()
    listening = socket.create_server(("127.0.0.1", 0))
    server.url = f"https://127.0.0.1:{listening.getsockname()[1]}"
    cuts = [cut]

    def accept() -> None:
        with suppress(OSError):  # the listening socket was closed: the test is over
            while True:
                raw, _ = listening.accept()
                threading.Thread(target=serve, args=(raw,), daemon=True).start()

    def serve(raw: socket.socket) -> None:
        with suppress(OSError), tls.wrap_socket(raw, server_side=True) as stream:
            server.connections += 1
            assert stream.selected_alpn_protocol() == "h2"
            _Conversation(stream, server, bodies, cuts, last).run()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


class _Conversation:
    def __init__(
        self, stream: ssl.SSLSocket, server: Http2, bodies: Mapping[str, bytes], cuts: list[int | None], last: bytes
    ) -> None:
        self.last = last
        self.stream = stream
        self.server = server
        self.bodies = bodies
        self.cuts = cuts
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.left: dict[int, memoryview] = {}

    def run(self) -> None:
        self.h2.initiate_connection()
        self.stream.sendall(self.h2.data_to_send())
        while data := self.stream.recv(65536):
            for event in self.h2.receive_data(data):
                match event:
                    case RequestReceived():
                        assert event.stream_id is not None
                        self._answer(event.stream_id, dict(event.headers or ()))  # type: ignore[arg-type]
                    case StreamReset():
                        self.left.pop(event.stream_id, None)
                    case WindowUpdated() | DataReceived():
                        pass
            for number in list(self.left):
                if not self._send(number):
                    return
            self.stream.sendall(self.h2.data_to_send())

    def _answer(self, number: int, headers: dict[str, str]) -> None:
        body = self.bodies[headers[":path"]]
        found = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        start = int(found[1]) if found else 0
        self.server.asked.append((headers[":path"], start))
        answer = [(":status", "206" if start else "200"), ("etag", '"one"'), ("content-length", str(len(body) - start))]
        if start:
            answer.append(("content-range", f"bytes {start}-{len(body) - 1}/{len(body)}"))
        self.h2.send_headers(number, answer)
        self.left[number] = memoryview(body)[start:]

    def _send(self, number: int) -> bool:
        """As much as the windows allow; False: the connection ends here."""
        left = self.left[number]
        while left:
            count = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size, len(left))
            if count <= 0:
                break
            self.h2.send_data(number, bytes(left[:count]))
            left = left[count:]
            if self.cuts[0] is not None and len(self.bodies["/cut"]) - len(left) >= self.cuts[0]:
                self.cuts[0] = None
                self.stream.sendall(self.h2.data_to_send() + self.last)
                return False
        self.left[number] = left
        if not left:
            del self.left[number]
            self.h2.end_stream(number)
        return True
