"""The HTTP client: one policy for redirects, retries, bounds, proxies and certificates.

Small answers come through `get`; files through download.py, which adds resuming, several URLs and the digest.
"""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

import httpcore
import httpx

from pipeline.core.errors import UpstreamError
from pipeline.core.names import ImageName
from pipeline.http import headers
from pipeline.http.folders import Folders

Sleep = Callable[[float], None]

PAUSES = (0.5, 1.5, 4.0)  # seconds before the second, third and fourth try, with some chance in them
LONGEST_PAUSE = 60.0  # seconds; no server is waited for longer, whatever its Retry-After says
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that may be others in a moment
REDIRECTS = 5  # in a row; GitHub and dl.k8s.io need one
_TEXT = 32 << 20  # bytes; listings, checksums and channels are below 1 MB

NEXT_STEP = (
    "see whether the network is up, or name another server in versions.yaml (docs/versions.md): `mirrors` for what is "
    "fetched, `upstream` for what is resolved; a rehearsal needs no vendor: nox -s rehearse"
)

_GREETING = 2.0  # seconds for a registry on loopback to answer

_READ = 256 << 10  # bytes at a time; httpcore's own 64 KiB take twice the processor time on loopback
_LONG = 1 << 20  # bytes from which on a body is worth a connection of its own
# Bytes at a time of such a body. Receiving, writing and hashing a piece let go of the interpreter and wait for it
# again; larger pieces do so less often (docs/fetch.md), and eight of them are 16 MiB of memory.
_PIECE = 2 << 20
httpcore.HTTP11Connection.READ_NUM_BYTES = _READ


def make_client(
    handler: httpx.BaseTransport | None = None, *, read: float = 30.0, verify: ssl.SSLContext | None = None
) -> httpx.Client:
    """The client that everything uses; `handler` stands in for the network in tests, `verify` for the usual CAs.

    `read`: seconds without a byte after which a server is given up. `identity` encoding: what is hashed is what the
    vendor published, not what a proxy made of it.
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
    """`https://host[:port]` of the registry that holds a repository.

    As docker has it, a registry on loopback may speak plain HTTP: whether it does is found by asking. Nothing is
    trusted here: the client that uses the address checks the certificate.
    """
    host = "registry-1.docker.io" if name.registry == "docker.io" else name.registry
    return f"{'http' if name.is_loopback and not _speaks_tls(host) else 'https'}://{host}"


def _speaks_tls(host: str) -> bool:
    """Whether what listens at `host[:port]` answers a TLS greeting."""
    url = urlsplit(f"//{host}")
    name = url.hostname or host
    asking = ssl.create_default_context()
    asking.check_hostname = False
    asking.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((name, url.port or 443), timeout=_GREETING) as plain,
            asking.wrap_socket(plain, server_hostname=name),
        ):
            return True
    except OSError:
        return False


def _check_redirect(response: httpx.Response) -> None:
    """Raise UnsupportedProtocol for a redirect from https to http, or to a file, which only versions.yaml may name."""
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
    """httpx's connection pools: one for each proxy of the environment, one without a proxy; made when first used.

    HTTP/1.1 only. Every request has a connection to itself in any case: threads that shared one of HTTP/2 would share
    its read timeout and its window. And h2 takes seven times the processor time of `pieces`.
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
        if self._verify is None:  # made once: reading the CAs takes longer than a small file
            self._verify = httpx.create_ssl_context()
        return httpx.HTTPTransport(verify=self._verify, proxy=proxy)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


def _proxy(url: httpx.URL) -> str | None:
    """The proxy of the environment for a URL; None for this machine, and where there is none."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(url.host) or url.host in ("127.0.0.1", "localhost", "::1"):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def pieces(response: httpx.Response) -> Iterator[bytes | memoryview]:
    """The body as it comes, for large files; a piece is only valid until the next one is asked for.

    Of a long HTTP/1.1 body httpcore parses the beginning; from there the socket holds Content-Length bytes and nothing
    else, which are read into one buffer: that takes half the processor time of reading them through h11. The
    connection ends with the body then. Raises httpx.TransportError as httpx does.
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
    """End a connection whose response another thread is reading: that thread's read fails at once."""
    if (raw := _socket(response)) is not None:
        with suppress(OSError):  # SSLSocket.shutdown would drop its state while the other thread uses it
            socket.socket.shutdown(raw, socket.SHUT_RDWR)


def _socket(response: httpx.Response) -> socket.socket | None:
    """What a response comes through; None for one that a test made."""
    stream = response.extensions.get("network_stream")
    raw = stream.get_extra_info("socket") if stream is not None else None
    return raw if isinstance(raw, socket.socket) else None


def shown(url: str) -> str:
    """A URL without credentials, and without the query, where vendors' CDNs carry signatures."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a URL that cannot be read"
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
    """Return the answer to a GET or HEAD; `what` names the thing in messages, `sent` are headers.

    Only an expected status is an answer, of 32 MB at most. Raises UpstreamError.
    """
    pauses = iter(PAUSES)
    while True:
        answer = None
        try:
            with client.stream(method, url, headers=dict(sent or {})) as streamed:
                answer = _whole(streamed, what)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.TooManyRedirects, httpx.UnsupportedProtocol) as error:
            # Refused, unknown host, TLS, filtered: trying again within seconds changes nothing, and a user waits.
            raise _unreachable(url, what, error) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = _unreachable(url, what, error)
        else:
            if answer.status_code in expected:
                return answer
            problem = UpstreamError(
                f"{what}: unexpected answer",
                expected=f"status {' or '.join(map(str, sorted(expected)))}",
                found=f"status {answer.status_code}",
                where=shown(url),
                next_step=NEXT_STEP,
            )
            if answer.status_code not in AGAIN:
                raise problem
        if (pause := next(pauses, None)) is None:
            raise problem
        time.sleep(pause_after(answer, pause))


def _whole(streamed: httpx.Response, what: str) -> httpx.Response:
    """The answer with its body, which is neither unpacked nor endless: a small file can unpack to more than memory."""
    packing = headers.packing(streamed)
    if packing and streamed.request.method != "HEAD":
        raise UpstreamError(
            f"{what}: the answer is packed",
            expected="Content-Encoding: identity, as asked for",
            found=packing,
            where=shown(str(streamed.url)),
            next_step=NEXT_STEP,
        )
    body = bytearray()
    for chunk in [streamed.content] if streamed.is_closed else streamed.iter_raw():
        body += chunk
        if len(body) > _TEXT:
            raise UpstreamError(
                f"{what}: the answer does not end",
                expected=f"{_TEXT} bytes at most",
                where=shown(str(streamed.url)),
                next_step=NEXT_STEP,
            )
    return httpx.Response(
        streamed.status_code,
        headers=streamed.headers,
        content=bytes(body),
        request=streamed.request,
        history=streamed.history,
        extensions={key: value for key, value in streamed.extensions.items() if key != "network_stream"},
    )


def _unreachable(url: str, what: str, error: Exception) -> UpstreamError:
    return UpstreamError(
        f"{what}: {urlsplit(url).hostname} cannot be reached",
        found=str(error) or type(error).__name__,
        where=shown(url),
        next_step=NEXT_STEP,
    )


def pause_after(response: httpx.Response | None, pause: float, longest: float = LONGEST_PAUSE) -> float:
    """Return the seconds to wait before the next try.

    What the server asks for, within bounds; else about `pause`: clients that failed together should not come back
    together.
    """
    if response is not None and (asked := headers.retry_after(response)) is not None:
        return min(asked, longest)
    return pause * random.uniform(0.75, 1.25)
