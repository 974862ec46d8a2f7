"""`kubectl logs` and `kubectl exec`: a container's output, from dockerd.

exec uses kubernetes' channels over a WebSocket (RFC 6455; k8s.io/apimachinery/pkg/util/remotecommand): 1 is stdout, 2
stderr, 3 the final Status. There is no input, so everything from the client but its end is ignored.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import ssl
import struct
from typing import TYPE_CHECKING

from . import containers
from .engine import Engine, EngineGone, EngineRefused, frames
from .errors import ApiError, Object

if TYPE_CHECKING:
    from .api import Api

PROTOCOL = "v5.channel.k8s.io"
BINARY, CLOSE = 0x82, 0x88  # first bytes of frames that are whole messages
STATUS = 3
NORMAL_END = struct.pack("!H", 1000)
_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

Query = dict[str, list[str]]


def answer(exchange: Api, engine: Engine, pod: Object, what: str, query: Query) -> None:
    """Answer a request for pods/log or pods/exec."""
    name = (query.get("container") or [pod["spec"]["containers"][0]["name"]])[-1]
    labels = [f"{containers.POD_UID}={pod['metadata']['uid']}", f"{containers.CONTAINER_NAME}={name}"]
    try:
        entries = engine.call("GET", "/containers/json", all=True, filters={"label": labels})
        if not entries:
            raise ApiError(400, f'container "{name}" in pod "{pod["metadata"]["name"]}" is waiting to start')
        if what == "log":
            output = engine.stream("GET", f"/containers/{entries[0]['Id']}/logs", stdout=True, stderr=True)
            exchange.send_stream("text/plain", (text for _, text in frames(output)))
        else:
            _exec(exchange, engine, entries[0]["Id"], query)
    except (EngineGone, EngineRefused) as error:
        raise ApiError(503, f"dockerd: {error}") from None


def _exec(exchange: Api, engine: Engine, container: str, query: Query) -> None:
    if PROTOCOL not in (exchange.headers.get("Sec-WebSocket-Protocol") or ""):
        raise ApiError(501, f"the stub has exec over WebSocket only, with {PROTOCOL}")
    if "true" in query.get("stdin", []) or "true" in query.get("tty", []):
        raise ApiError(501, "the stub has exec without input and terminal only")
    body = {"Cmd": query.get("command") or [], "AttachStdout": True, "AttachStderr": True}
    made = engine.call("POST", f"/containers/{container}/exec", body)["Id"]
    output = engine.stream("POST", f"/exec/{made}/start", {"Detach": False, "Tty": False})
    exchange.close_connection = True
    exchange.send_response(101)
    exchange.send_header("Upgrade", "websocket")
    exchange.send_header("Connection", "Upgrade")
    exchange.send_header("Sec-WebSocket-Accept", accept_key(exchange.headers.get("Sec-WebSocket-Key") or ""))
    exchange.send_header("Sec-WebSocket-Protocol", PROTOCOL)
    exchange.end_headers()
    connection = exchange.connection
    for channel, text in frames(output):
        _send(connection, BINARY, bytes([channel]) + text)
    code = engine.call("GET", f"/exec/{made}/json")["ExitCode"]
    _send(connection, BINARY, bytes([STATUS]) + json.dumps(final_status(code)).encode())
    _send(connection, CLOSE, NORMAL_END)
    # Closing a connection with unread bytes resets it, and the client would lose the last frames.
    connection.settimeout(5)
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass


def accept_key(key: str) -> str:
    """Return the server's answer to the client's key."""
    return base64.b64encode(hashlib.sha1(f"{key}{_MAGIC}".encode()).digest()).decode("ascii")


def final_status(code: int) -> Object:
    """Return the Status for the exit code of a command."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    details = {"causes": [{"reason": "ExitCode", "message": str(code)}]}
    return {"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "details": details}


def _send(connection: ssl.SSLSocket, opcode: int, payload: bytes) -> None:
    """Send one message in one frame."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", opcode, size)
    elif size < 65536:
        head = struct.pack("!BBH", opcode, 126, size)
    else:
        head = struct.pack("!BBQ", opcode, 127, size)
    connection.sendall(head + payload)
