"""Logs, exec and attach of a pod on another node: the request goes on to that node, bytes go both ways."""

from __future__ import annotations

import select
import socket
import ssl
from typing import TYPE_CHECKING

from .certs import key_of
from .status import ApiError, Object

if TYPE_CHECKING:
    from .api import Handler

KUBELET_PORT = 10250
PATIENCE = 10.0


def to_node(handler: Handler, pod: Object, body: bytes) -> None:
    """Let the pod's node answer."""
    server = handler.server
    node = server.rest.store.get("nodes", "", pod["spec"]["nodeName"])
    found = (entry["address"] for entry in node["status"]["addresses"] if entry["type"] == "InternalIP")
    context = ssl.create_default_context(cafile=str(server.certificates.server_ca))
    context.check_hostname = False  # the certificate is for the address that the node had when it joined
    context.load_cert_chain(server.certificates.admin, key_of(server.certificates.admin))
    try:
        plain = socket.create_connection((next(found), KUBELET_PORT), timeout=PATIENCE)
        with plain, context.wrap_socket(plain) as there:
            handler.close_connection = True
            there.sendall(_request(handler) + body)
            there.settimeout(None)
            _splice(handler.connection, there)
    except OSError as error:
        raise ApiError(502, f"node {pod['spec']['nodeName']} does not answer: {error}") from None


def _request(handler: Handler) -> bytes:
    """The same request, as the last one of its connection unless it wants to be more than a request."""
    lines = [f"{handler.command} {handler.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in handler.headers.items() if name.lower() != "connection"]
    lines.append(f"Connection: {'Upgrade' if handler.headers.get('Upgrade') else 'close'}")
    return "\r\n".join([*lines, "", ""]).encode()


def _splice(one: ssl.SSLSocket, other: ssl.SSLSocket) -> None:
    """Until either side hangs up."""
    while True:
        ready = [side for side in (one, other) if side.pending()] or select.select([one, other], [], [])[0]
        for side in ready:
            piece = side.recv(65536)
            if not piece:
                return
            (other if side is one else one).sendall(piece)
