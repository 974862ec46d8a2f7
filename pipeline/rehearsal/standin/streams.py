"""`kubectl exec` and `attach`: kubernetes' channels over a WebSocket on one side, dockerd's stream on the other.

Channels (kubernetes: k8s.io/apimachinery/pkg/util/remotecommand): 0 stdin, 1 stdout, 2 stderr, 3 the final Status,
4 terminal size, and since v5 255, which closes the channel named in its payload. One thread serves both sides with
select, for two threads must not use one TLS connection at the same time.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
from typing import TYPE_CHECKING

from . import logs
from .engine import Engine, EngineGone, EngineRefused
from .status import ApiError, Object
from .websocket import WebSocket, accept_key

if TYPE_CHECKING:
    from .api import Handler

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
STDIN, STATUS, RESIZE, CLOSE = (bytes([number]) for number in (0, 3, 4, 255))


class Streams:
    """Answers requests for pods/exec and pods/attach."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def exec(self, handler: Handler, pod: Object, query: dict[str, list[str]]) -> None:
        """Run a command in a container."""
        command = query.get("command") or []
        if not command:
            raise ApiError(400, "a command is needed")
        target = self._running(pod, query)
        protocol = _protocol(handler)
        stdin, tty = _yes(query, "stdin"), _yes(query, "tty")
        body = {"Cmd": command, "AttachStdin": stdin, "AttachStdout": True, "AttachStderr": not tty, "Tty": tty}
        try:
            made = self._engine.call("POST", f"/containers/{target['Id']}/exec", body)
            path = f"/exec/{made['Id']}"
            stream, rest = self._engine.hijack(f"{path}/start", {"Detach": False, "Tty": tty})
        except (EngineGone, EngineRefused) as error:
            raise ApiError(500, f"dockerd: {error}") from None
        with stream:
            web = _upgrade(handler, protocol)
            self._serve(web, stream, rest, tty=tty, resize=f"{path}/resize")
            code = self._engine.call("GET", f"{path}/json")["ExitCode"]
            _finish(web, code)

    def attach(self, handler: Handler, pod: Object, query: dict[str, list[str]]) -> None:
        """Join the input and output of a container's own process."""
        target = self._running(pod, query)
        protocol = _protocol(handler)
        path = f"/containers/{target['Id']}"
        tty = bool(target["Config"].get("Tty"))
        try:
            stream, rest = self._engine.hijack(
                f"{path}/attach", stream=True, stdout=True, stderr=True, stdin=_yes(query, "stdin")
            )
        except (EngineGone, EngineRefused) as error:
            raise ApiError(500, f"dockerd: {error}") from None
        with stream:
            web = _upgrade(handler, protocol)
            self._serve(web, stream, rest, tty=tty, resize=f"{path}/resize")
            _finish(web, 0)

    def _running(self, pod: Object, query: dict[str, list[str]]) -> Object:
        name = logs.container_name(pod, (query.get("container") or [""])[-1])
        target = logs.find(self._engine, pod, name)
        if not target["State"]["Running"]:
            raise ApiError(400, f'container "{name}" of pod "{pod["metadata"]["name"]}" does not run')
        return target

    def _serve(self, web: WebSocket, stream: socket.socket, rest: bytes, *, tty: bool, resize: str) -> None:
        """Carry bytes both ways until the process, or the client, is gone.

        Input waits here until dockerd takes it: a process that does not read, or that must first get rid of its
        output, would otherwise block both directions for ever.
        """
        rest = _forward(web, rest, tty=tty)
        stdin = _Stdin(stream)
        while web.open:
            readers = [stream.fileno()] + ([web.fileno()] if stdin.wants_more else [])
            readable, writable, _ = select.select(readers, [stream.fileno()] if stdin.waiting else [], [])
            if web.fileno() in readable:
                for message in web.receive():
                    self._from_client(message, stdin, resize)
            if writable:
                stdin.flush()
            if stream.fileno() in readable:
                try:
                    piece = stream.recv(65536)
                except OSError:
                    return
                if not piece:
                    return
                rest = _forward(web, rest + piece, tty=tty)

    def _from_client(self, message: bytes, stdin: _Stdin, resize: str) -> None:
        channel, payload = message[:1], message[1:]
        if channel == STDIN:
            stdin.add(payload)
        elif channel == CLOSE and payload[:1] == STDIN:
            stdin.end()
        elif channel == RESIZE:
            with contextlib.suppress(EngineRefused, EngineGone, ValueError, KeyError):  # it has no terminal any more
                size = json.loads(payload)
                self._engine.call("POST", resize, h=size["Height"], w=size["Width"])


class _Stdin:
    """What the client sent and dockerd has not taken yet."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._bytes = b""
        self._ended = self._shut = False

    @property
    def waiting(self) -> bool:
        """Whether there is something to send, the end included."""
        return not self._shut and (self._bytes != b"" or self._ended)

    @property
    def wants_more(self) -> bool:
        """Whether the client should be read on; its goodbye waits, too, while the process takes nothing."""
        return len(self._bytes) < 1024 * 1024

    def add(self, payload: bytes) -> None:
        self._bytes += payload

    def end(self) -> None:
        self._ended = True

    def flush(self) -> None:
        """Send what dockerd takes now; a process that is gone takes nothing any more."""
        try:
            sent = self._stream.send(self._bytes, socket.MSG_DONTWAIT) if self._bytes else 0
            self._bytes = self._bytes[sent:]
            if self._ended and not self._bytes:
                self._stream.shutdown(socket.SHUT_WR)
                self._shut = True
        except BlockingIOError:
            return
        except OSError:
            self._bytes, self._shut = b"", True


def _forward(web: WebSocket, data: bytes, *, tty: bool) -> bytes:
    """Send what dockerd said on its channel; give back the beginning of a frame that is not complete."""
    if tty:
        if data:
            web.send(b"\x01" + data)
        return b""
    while len(data) >= 8 and len(data) >= 8 + (size := int.from_bytes(data[4:8], "big")):
        web.send(bytes([max(data[0], 1)]) + data[8 : 8 + size])
        data = data[8 + size :]
    return data


def _protocol(handler: Handler) -> str:
    """The subprotocol to speak; refuses a client that asks for none of ours before anything has been started."""
    offered = [word.strip() for word in (handler.headers.get("Sec-WebSocket-Protocol") or "").split(",")]
    protocol = next((name for name in PROTOCOLS if name in offered), None)
    if (handler.headers.get("Upgrade") or "").lower() != "websocket" or protocol is None:
        raise ApiError(501, f"the stand-in has exec and attach over WebSocket only, with {' or '.join(PROTOCOLS)}")
    return protocol


def _upgrade(handler: Handler, protocol: str) -> WebSocket:
    handler.close_connection = True
    handler.send_response(101)
    handler.send_header("Upgrade", "websocket")
    handler.send_header("Connection", "Upgrade")
    handler.send_header("Sec-WebSocket-Accept", accept_key(handler.headers.get("Sec-WebSocket-Key") or ""))
    handler.send_header("Sec-WebSocket-Protocol", protocol)
    handler.end_headers()
    handler.connection.settimeout(None)
    return WebSocket(handler.connection)


def _finish(web: WebSocket, code: int | None) -> None:
    if not web.open:
        return
    status: Object = {"metadata": {}, "status": "Success"}
    if code:
        causes = [{"reason": "ExitCode", "message": str(code)}]
        message = f"command terminated with non-zero exit code: {code}"
        status = {"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": message}
        status["details"] = {"causes": causes}
    web.send(STATUS + json.dumps(status).encode())
    web.close()
    web.drain(5)


def _yes(query: dict[str, list[str]], name: str) -> bool:
    return (query.get(name) or ["false"])[-1] in ("true", "1")
