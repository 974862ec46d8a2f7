"""Logs and exec of a pod on another node: the request goes on to that node, bytes go both ways."""

from __future__ import annotations

import select
import socket
import ssl

from .certs import Certificates, key_of
from .httpd import Exchange
from .status import ApiError, Object
from .store import Store

PATIENCE = 10.0


def to_node(exchange: Exchange, store: Store, certificates: Certificates, pod: Object, port: int) -> None:
    """Let the kubelet of the pod's node answer."""
    name = pod["spec"].get("nodeName", "")
    addresses = store.get("nodes", "", name)["status"]["addresses"]
    address = next(entry["address"] for entry in addresses if entry["type"] == "InternalIP")
    context = ssl.create_default_context(cafile=str(certificates.client_ca))
    context.check_hostname = False  # a kubelet's certificate has the name of its node alone
    context.load_cert_chain(certificates.client, key_of(certificates.client))
    try:
        plain = socket.create_connection((address, port), timeout=PATIENCE)
        with plain, context.wrap_socket(plain) as there:
            exchange.close_connection = True
            there.sendall(_request(exchange))
            there.settimeout(None)
            _splice(exchange.connection, there)
    except OSError as error:
        raise ApiError(502, f"node {name} does not answer: {error}") from None


def _request(exchange: Exchange) -> bytes:
    """The same request, as the last one of its connection unless it wants to be more than a request."""
    lines = [f"{exchange.command} {exchange.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in exchange.headers.items() if name.lower() != "connection"]
    lines.append(f"Connection: {'Upgrade' if exchange.headers.get('Upgrade') else 'close'}")
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
