"""The HTTP client: one policy for redirects, retries, limits, proxies and certificates.

`get` is for small responses. download.py is for files: it adds resuming, several URLs and the digest.
"""

from __future__ import annotations

import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

import httpcore
import httpx

from pipeline.core.errors import UpstreamError
from pipeline.core.names import ImageName
from pipeline.http import headers
from pipeline.http.folders import Folders
from pipeline.http.retries import failed, reason, retrying

REDIRECTS = 5  # in a row; GitHub and dl.k8s.io need one
_TEXT = 32 << 20  # bytes; listings, checksums and channels are below 1 MB

NEXT_STEP = (
    "check the network, or name another server in versions.yaml (docs/versions.md): `mirrors` for fetch, `upstream` "
    "for resolve; a rehearsal needs no upstream: nox -s rehearse"
)

_HANDSHAKE = 2.0  # seconds for a registry on loopback

_READ = 256 << 10  # bytes at a time; httpcore's own 64 KiB take twice the processor time on loopback
_LONG = 1 << 20  # bytes; a longer body is read from its socket
# Bytes at a time of such a body. Receiving, writing and hashing a piece release the interpreter lock and wait for it
# again; larger pieces do so less often (docs/fetch.md), and eight of them are 16 MiB of memory.
_PIECE = 2 << 20
httpcore.HTTP11Connection.READ_NUM_BYTES = _READ


def make_client(
    handler: httpx.BaseTransport | None = None, *, read: float = 30.0, verify: ssl.SSLContext | None = None
) -> httpx.Client:
    """Return the client that everything uses; `handler` replaces the network in tests, `verify` the usual CAs.

    `read`: timeout in seconds between two bytes. `identity` encoding: the digest is of the published bytes, which a
    proxy could compress.
    """
    return httpx.Client(
        transport=handler or _Pools(verify),
        mounts={"file://": Folders()},
        event_hooks={"response": [_check_redirect]},
        follow_redirects=True,
        max_redirects=REDIRECTS,
        timeout=httpx.Timeout(read, connect=min(read, 5.0)),
        headers={"User-Agent": "dind-k3s-pipeline", "Accept-Encoding": "identity"},
    )


def registry_origin(name: ImageName) -> str:
    """Return `https://host[:port]` of a repository's registry; `http://` on loopback if it does not support TLS.

    Like docker, which also tries both. The client that uses the address checks the certificate.
    """
    host = "registry-1.docker.io" if name.registry == "docker.io" else name.registry
    return f"{'http' if name.is_loopback and not _speaks_tls(host) else 'https'}://{host}"


def _speaks_tls(host: str) -> bool:
    """Return whether a server at `host[:port]` completes a TLS handshake."""
    url = urlsplit(f"//{host}")
    name = url.hostname or host
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((name, url.port or 443), timeout=_HANDSHAKE) as plain,
            context.wrap_socket(plain, server_hostname=name),
        ):
            return True
    except OSError:
        return False


def _check_redirect(response: httpx.Response) -> None:
    """Raise UnsupportedProtocol for a redirect from https to http, or to a file, which only versions.yaml can name."""
    if not response.has_redirect_location:
        return
    try:
        target = httpx.URL(response.headers["Location"])  # read as httpx reads it when it follows
    except httpx.InvalidURL:
        return  # httpx refuses to follow it
    scheme = response.url.scheme
    if target.scheme not in ("", "https", scheme):
        raise httpx.UnsupportedProtocol(
            f"a redirect from {scheme} to {target.scheme}, {shown(str(target))}", request=response.request
        )


class _Pools(httpx.BaseTransport):
    """httpx's connection pools: one per proxy of the environment and one without, created when first used.

    HTTP/1.1 only: threads that share a connection of HTTP/2 share its read timeout and its window, and h2 takes seven
    times the processor time of `pieces`.
    """

    def __init__(self, verify: ssl.SSLContext | None) -> None:
        self._verify = verify
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, str | None], httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        key = (request.url.scheme, _proxy(request.url))
        with self._lock:
            if key not in self._pools:
                self._pools[key] = self._new(*key)
        return self._pools[key].handle_request(request)

    def _new(self, scheme: str, proxy: str | None) -> httpx.HTTPTransport:
        if scheme != "https":
            return httpx.HTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), proxy=proxy)
        if self._verify is None:  # once: reading the CAs takes longer than a small file
            self._verify = httpx.create_ssl_context()
        return httpx.HTTPTransport(verify=self._verify, proxy=proxy)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


def _proxy(url: httpx.URL) -> str | None:
    """Return the proxy of the environment for a URL; None without one, and for this machine."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(url.host) or url.host in ("127.0.0.1", "localhost", "::1"):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def pieces(response: httpx.Response) -> Iterator[bytes | memoryview]:
    """Yield the body as it arrives, for large files; a piece is only valid until the next one.

    httpcore parses the beginning of a long HTTP/1.1 body; the rest is read from the socket into one buffer, which takes
    half the processor time of reading it through h11. The connection is not used again. Raises httpx.TransportError.
    """
    body, raw, length = response.iter_raw(), _socket(response), headers.length(response)
    if response.http_version != "HTTP/1.1" or raw is None or length is None or length < _LONG:
        yield from body
        return
    first = next(body, b"")
    yield first
    left, buffer = length - len(first), memoryview(bytearray(min(_PIECE, length)))
    while left:
        try:
            count = raw.recv_into(buffer[:left])
        except TimeoutError as error:
            raise httpx.ReadTimeout(str(error)) from None
        except OSError as error:
            raise httpx.ReadError(str(error)) from None
        if not count:
            raise httpx.RemoteProtocolError(f"the connection ended {left} bytes before the body")
        left -= count
        yield buffer[:count]


def hang_up(response: httpx.Response) -> None:
    """Close a connection whose response another thread is reading: that thread's read fails at once."""
    if (raw := _socket(response)) is not None:
        with suppress(OSError):  # SSLSocket.shutdown would drop its state while the other thread uses it
            socket.socket.shutdown(raw, socket.SHUT_RDWR)


def _socket(response: httpx.Response) -> socket.socket | None:
    """Return the socket of a response; None for one that a test made."""
    stream = response.extensions.get("network_stream")
    raw = stream.get_extra_info("socket") if stream is not None else None
    return raw if isinstance(raw, socket.socket) else None


def shown(url: str) -> str:
    """Return a URL without credentials, and without the query, where vendors' CDNs carry signatures."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an invalid URL"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def get(
    client: httpx.Client,
    url: str,
    *,
    what: str,
    method: str = "GET",
    expected: frozenset[int] = frozenset({200}),
    sent: Mapping[str, str] | None = None,
) -> httpx.Response:
    """Return the response to a GET or HEAD, of an expected status and 32 MB at most.

    `what` names the thing in messages, `sent` are headers. Raises UpstreamError.
    """

    def attempt() -> httpx.Response:
        try:
            with client.stream(method, url, headers=dict(sent or {})) as streamed:
                response = _whole(streamed, what)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise failed(
                _error(f"{what}: {urlsplit(url).hostname} cannot be reached", url, reason(error)), error
            ) from None
        if response.status_code in expected:
            return response
        statuses = f"status {' or '.join(map(str, sorted(expected)))}"
        raise failed(
            _error(f"{what}: unexpected answer", url, f"status {response.status_code}", expected=statuses), response
        )

    return retrying(attempt)


def _whole(streamed: httpx.Response, what: str) -> httpx.Response:
    """Return the response with its body. A compressed or endless one could fill the memory: raises UpstreamError."""
    compression = headers.compression(streamed)
    if compression and streamed.request.method != "HEAD":
        expected = "Content-Encoding: identity, as requested"
        raise _error(f"{what}: the response is compressed", str(streamed.url), compression, expected=expected)
    body = bytearray()
    for chunk in [streamed.content] if streamed.is_closed else streamed.iter_raw():
        body += chunk
        if len(body) > _TEXT:
            raise _error(f"{what}: the response does not end", str(streamed.url), expected=f"{_TEXT} bytes at most")
    return httpx.Response(
        streamed.status_code,
        headers=streamed.headers,
        content=bytes(body),
        request=streamed.request,
        history=streamed.history,
        extensions={key: value for key, value in streamed.extensions.items() if key != "network_stream"},
    )


def _error(summary: str, url: str, found: str | None = None, expected: str | None = None) -> UpstreamError:
    return UpstreamError(summary, expected=expected, found=found, where=shown(url), next_step=NEXT_STEP)
