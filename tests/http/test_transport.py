"""HTTP against a real server that misbehaves: the right bytes or a clear error, and no leftovers."""

from __future__ import annotations

import errno
import http.server
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from pipeline.core.errors import DigestMismatch, EngineError, UpstreamError
from pipeline.core.log import Log, Transfer
from pipeline.core.names import Digest
from pipeline.http import headers, retries, transport
from pipeline.http.download import Downloader, File, Rules
from tests.helpers import hostile
from tests.helpers.servers import Server, running

DATA = b"some bytes " * 20_000
DIGEST = Digest.of(DATA)


class Bar(Transfer):
    """Counts the bytes of a progress bar."""

    def __init__(self) -> None:
        super().__init__(Log(quiet=True), None, "a file", total=None)
        self.done = 0
        self.whole = 0

    def advance(self, count: int) -> None:
        self.done += count

    def total(self, count: int) -> None:
        self.whole = count


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


def download(client: httpx.Client, folder: Path, *urls: str, size: int | None = len(DATA)) -> list[float]:
    """Download without sleeping; return the pauses."""
    pauses: list[float] = []
    file = File(name="a file", urls=urls, digest=DIGEST, size=size)
    Downloader(client=client, rules=Rules(sleep=pauses.append)).download(file, folder, Bar())
    return pauses


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download_is_verified_and_moved_into_place(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    server.gives("/file", DATA)
    assert download(client, tmp_path, f"{server.url}/file", size=None) == []
    assert (tmp_path / DIGEST.hex).read_bytes() == DATA
    assert only(tmp_path) == [DIGEST.hex]


def test_wrong_bytes_of_the_right_length_are_refused_and_quarantined(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    server.gives("/file", DATA[:-1] + b"?")
    with pytest.raises(DigestMismatch) as refused:
        download(client, tmp_path, f"{server.url}/file")
    text = str(refused.value)
    assert DIGEST.text in text
    assert Digest.of(DATA[:-1] + b"?").text in text
    assert f"{server.url}/file" in text
    assert "next step" in text
    (bad,) = only(tmp_path)
    assert bad.endswith(".bad")
    assert (tmp_path / bad).read_bytes() == DATA[:-1] + b"?"


def test_the_next_mirror_is_tried_after_wrong_bytes_and_after_a_404(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    server.gives("/wrong", b"other")
    server.gives("/right", DATA)
    download(client, tmp_path, *(f"{server.url}/{name}" for name in ("missing", "wrong", "right")))
    assert (tmp_path / DIGEST.hex).read_bytes() == DATA


def test_a_body_that_is_announced_too_long_is_not_received(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    server.gives("/file", DATA * 50)
    bar = Bar()
    file = File(name="a file", urls=(f"{server.url}/file",), digest=DIGEST, size=len(DATA))
    with pytest.raises(DigestMismatch, match=f"{len(DATA) * 50} bytes instead of {len(DATA)}"):
        Downloader(client=client).download(file, tmp_path, bar)
    assert bar.done == 0
    assert only(tmp_path) == []


def test_a_broken_body_is_resumed_where_it_broke(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    half = len(DATA) // 2

    def rest(handler: http.server.BaseHTTPRequestHandler) -> None:
        assert handler.headers["Range"].startswith("bytes=")
        start = int(handler.headers["Range"][6:].rstrip("-"))
        body = DATA[start:]
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    server.gives("/file", DATA, headers={"ETag": '"one"'}, cut=half)
    server.then("/file", server.answers["/file"], rest)
    pauses = download(client, tmp_path, f"{server.url}/file")
    assert (tmp_path / DIGEST.hex).read_bytes() == DATA
    assert len(pauses) == 1
    assert server.asked[1][2]["If-Range"] == '"one"'


def test_a_server_without_ranges_restarts_the_download(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    server.gives("/file", DATA, headers={"ETag": '"one"'}, cut=1000)
    broken = server.answers["/file"]
    server.gives("/file", DATA)
    server.then("/file", broken, server.answers["/file"])
    download(client, tmp_path, f"{server.url}/file")
    assert (tmp_path / DIGEST.hex).read_bytes() == DATA


def test_a_weak_etag_is_not_used_to_resume(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    server.gives("/file", DATA, headers={"ETag": 'W/"one"'}, cut=1000)
    broken = server.answers["/file"]
    server.gives("/file", DATA)
    server.then("/file", broken, server.answers["/file"])
    download(client, tmp_path, f"{server.url}/file")
    assert "Range" not in server.asked[1][2]


def test_retry_after_is_respected(server: Server, client: httpx.Client, tmp_path: Path) -> None:
    server.gives("/file", b"", status=429, headers={"Retry-After": "7"})
    busy = server.answers["/file"]
    server.gives("/file", DATA)
    server.then("/file", busy, server.answers["/file"])
    assert download(client, tmp_path, f"{server.url}/file") == [7.0]


def test_503_is_retried_with_growing_pauses_and_404_is_not(
    server: Server, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.gives("/broken", b"", status=503)
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(UpstreamError, match="503"):
        transport.get(client, f"{server.url}/broken", what="a thing")
    assert pauses == sorted(pauses)
    assert len(pauses) >= 3
    pauses.clear()
    with pytest.raises(UpstreamError, match="404"):
        transport.get(client, f"{server.url}/missing", what="a thing")
    assert pauses == []


def test_the_error_for_an_unreachable_host_has_next_steps(client: httpx.Client) -> None:
    with running() as gone:
        url = gone.url
    with pytest.raises(UpstreamError) as refused:
        transport.get(client, f"{url}/file", what="docker's list")
    assert "127.0.0.1" in str(refused.value)
    assert "mirror" in str(refused.value)
    assert "nox -s rehearse" in str(refused.value)


def test_a_full_disk_is_reported_and_leaves_nothing(
    server: Server, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.gives("/file", DATA)

    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(EngineError, match="DIND_K3S_CACHE"):
        download(client, tmp_path, f"{server.url}/file")
    assert only(tmp_path) == []


def test_credentials_and_signed_queries_are_never_shown() -> None:
    assert transport.shown("https://user:secret@host:8443/path?X-Amz-Signature=abc") == "https://host:8443/path"


def test_connections_are_reused_and_closing_a_response_early_is_harmless(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    bodies = {f"/{number}": bytes([number]) * 300_000 for number in range(6)}
    for path, body in bodies.items():
        server.gives(path, body)
    for _ in range(3):
        with client.stream("GET", f"{server.url}/1") as response:
            next(response.iter_raw())
    with ThreadPoolExecutor(max_workers=3) as pool:

        def get(path: str) -> None:
            digest, size = Digest.of(bodies[path]), len(bodies[path])
            file = File(name=path, urls=(server.url + path,), digest=digest, size=size)
            Downloader(client=client).download(file, tmp_path, Bar())

        list(pool.map(get, bodies))
    assert only(tmp_path) == sorted(Digest.of(body).hex for body in bodies.values())
    assert server.connections <= 3 + 3


def test_the_proxy_of_the_environment_is_used_but_not_for_this_machine(
    server: Server, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    server.answers["http://origin.invalid/file"] = hostile.whole(DATA)
    server.answers["/file"] = hostile.whole(b"direct")
    assert transport.get(client, "http://origin.invalid/file", what="a thing").content == DATA
    assert transport.get(client, f"{server.url}/file", what="a thing").content == b"direct"


@pytest.mark.parametrize("location", ["file://localhost{path}", "file://{path}", "FILE://localhost{path}"])
def test_a_redirect_to_a_local_file_is_refused(tmp_path: Path, location: str) -> None:
    secret = tmp_path / "token.json"
    secret.write_text('{"token": "secret"}')
    answer = httpx.Response(302, headers={"Location": location.format(path=secret)})
    with transport.make_client(httpx.MockTransport(lambda _request: answer)) as client:
        with pytest.raises(httpx.UnsupportedProtocol, match="a redirect from https to file"):
            client.get("https://registry.example/token")
        with pytest.raises(UpstreamError, match=r"cannot be reached|not reachable|unreachable"):
            transport.get(client, "https://vendor.example/list", what="a list")


@pytest.mark.parametrize("location", ["foo://h:99999/x", "http://127.0.0.1:99999/x", "file://[x", "http://[::bad"])
def test_an_invalid_redirect_is_an_error_message(
    server: Server, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    monkeypatch.setattr(retries, "PAUSES", ())
    server.answers["/f"] = hostile.redirect(location)
    with pytest.raises(UpstreamError):
        transport.get(client, f"{server.url}/f", what="a list")
    with pytest.raises(UpstreamError):
        download(client, tmp_path, f"{server.url}/f")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Tue, 04 Aug 2026 09:03:51 GMT", datetime(2026, 8, 4, 9, 3, 51, tzinfo=UTC)),
        ("Tue, 04 Aug 2026 09:03:51", datetime(2026, 8, 4, 9, 3, 51, tzinfo=UTC)),
        ("yesterday", None),
        ("", None),
        ("Tue, 99 Aug 99999 09:03:51 GMT", None),
    ],
)
def test_when_a_file_was_uploaded(header: str, expected: datetime | None) -> None:
    assert headers.modified(httpx.Response(200, headers={"Last-Modified": header})) == expected
