"""Responses of hostile or broken origins: handlers for the real HTTP server of `tests.helpers.servers`.

A handler that must wait does so on `over`, an event that the test's end sets, so that nothing outlives a test.
"""

from __future__ import annotations

import gzip
import http.server
import re
import socket
import ssl
import struct
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.helpers.servers import Answer

Handler = http.server.BaseHTTPRequestHandler


def _head(handler: Handler, status: int, **headers: object) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def _start(handler: Handler) -> int:
    """Return the first byte of the requested range."""
    match = re.fullmatch(r"bytes=(\d+)-\d*", handler.headers.get("Range", "bytes=0-"))
    assert match, handler.headers["Range"]
    return int(match[1])


def honest(body: bytes, etag: str = '"one"') -> Answer:
    """A correct server, with ranges and If-Range."""

    def answer(handler: Handler) -> None:
        start = _start(handler)
        if not start or handler.headers.get("If-Range") not in (None, etag):
            _head(handler, 200, ETag=etag, Content_Length=len(body))
            start = 0
        elif start >= len(body):
            _head(handler, 416, Content_Range=f"bytes */{len(body)}", Content_Length=0)
        else:
            content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
            _head(handler, 206, ETag=etag, Content_Range=content_range, Content_Length=len(body) - start)
        if handler.command != "HEAD":
            handler.wfile.write(body[start:])

    return answer


def truncated(body: bytes, at: int, etag: str = '"one"') -> Answer:
    """The full Content-Length, and the end of the connection after `at` bytes."""

    def answer(handler: Handler) -> None:
        _head(handler, 200, ETag=etag, Content_Length=len(body))
        handler.wfile.write(body[:at])
        handler.close_connection = True

    return answer


def unannounced(body: bytes, at: int) -> Answer:
    """No Content-Length, so the end of the connection after `at` bytes looks like the end of the body."""

    def answer(handler: Handler) -> None:
        _head(handler, 200, ETag='"one"', Connection="close")
        handler.wfile.write(body[:at])
        handler.close_connection = True

    return answer


def reset(body: bytes, at: int) -> Answer:
    """A reset connection (RST) after `at` bytes."""

    def answer(handler: Handler) -> None:
        _head(handler, 200, ETag='"one"', Content_Length=len(body))
        handler.wfile.write(body[:at])
        handler.wfile.flush()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
        handler.close_connection = True

    return answer


def stalled(body: bytes, at: int, over: threading.Event) -> Answer:
    """An open connection without data after `at` bytes."""

    def answer(handler: Handler) -> None:
        _head(handler, 200, ETag='"one"', Content_Length=len(body))
        handler.wfile.write(body[:at])
        handler.wfile.flush()
        over.wait(60)
        handler.close_connection = True

    return answer


def silent(over: threading.Event) -> Answer:
    """No response."""

    def answer(handler: Handler) -> None:
        over.wait(60)
        handler.close_connection = True

    return answer


def trickle(body: bytes, over: threading.Event, pace: float = 0.01) -> Answer:
    """Single bytes: no read ever times out."""

    def answer(handler: Handler) -> None:
        start = _start(handler)
        if start:
            content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
            _head(handler, 206, ETag='"one"', Content_Range=content_range, Content_Length=len(body) - start)
        else:
            _head(handler, 200, ETag='"one"', Content_Length=len(body))
        for byte in body[start:]:
            if over.wait(pace):
                break
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
        handler.close_connection = True

    return answer


def slow(body: bytes, over: threading.Event, piece: int = 5000, pace: float = 0.02) -> Answer:
    """A correct server on a slow line, with ranges."""

    def answer(handler: Handler) -> None:
        start = _start(handler)
        content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
        headers = {"ETag": '"one"', "Content_Length": len(body) - start}
        _head(handler, 206 if start else 200, **headers, **({"Content_Range": content_range} if start else {}))
        for at in range(start, len(body), piece):
            handler.wfile.write(body[at : at + piece])
            if over.wait(pace):
                break

    return answer


def whole(body: bytes, etag: str = '"one"') -> Answer:
    """200 and the whole body for any range."""

    def answer(handler: Handler) -> None:
        _head(handler, 200, ETag=etag, Content_Length=len(body))
        handler.wfile.write(body)

    return answer


def other_range(body: bytes) -> Answer:
    """206 with another range than requested."""

    def answer(handler: Handler) -> None:
        start = _start(handler)
        if not start:
            return truncated(body, len(body) // 2)(handler)
        start //= 2
        content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
        _head(handler, 206, ETag='"one"', Content_Range=content_range, Content_Length=len(body) - start)
        handler.wfile.write(body[start:])
        return None

    return answer


def spliced(body: bytes) -> Answer:
    """The right range and ETag, but wrong bytes; without a range the right bytes."""

    def answer(handler: Handler) -> None:
        start = _start(handler)
        if not start:
            return whole(body)(handler)
        content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
        _head(handler, 206, ETag='"one"', Content_Range=content_range, Content_Length=len(body) - start)
        handler.wfile.write(bytes(len(body) - start))
        return None

    return answer


def redirect(to: str, status: int = 302) -> Answer:
    """A redirect."""
    return lambda handler: _head(handler, status, Location=to, Content_Length=0)


def busy(status: int = 429, **headers: object) -> Answer:
    """An error status."""
    return lambda handler: _head(handler, status, Content_Length=0, **headers)


def bomb(unpacked: int = 512 << 20) -> Answer:
    """A small gzip body that decompresses to more than the memory should hold."""
    zeros = bytes(1 << 20)
    packed = gzip.compress(zeros) * (unpacked >> 20)  # consecutive members are one stream

    def answer(handler: Handler) -> None:
        _head(handler, 200, Content_Encoding="gzip", Content_Length=len(packed))
        handler.wfile.write(packed)

    return answer


def endless(over: threading.Event) -> Answer:
    """Chunks without an end."""

    def answer(handler: Handler) -> None:
        _head(handler, 200, ETag='"one"', Transfer_Encoding="chunked")
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        while not over.is_set():
            handler.wfile.write(chunk)

    return answer


def in_turn(*answers: Answer) -> Answer:
    """These in turn; the last one repeatedly."""
    queue = list(answers)

    def answer(handler: Handler) -> None:
        (queue.pop(0) if len(queue) > 1 else queue[0])(handler)

    return answer


def certificate() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return contexts of a server on 127.0.0.1 with a self-signed certificate, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    public = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pem"
        path.write_bytes(secret + public)
        server.load_cert_chain(path)
    return server, ssl.create_default_context(cadata=public.decode())
