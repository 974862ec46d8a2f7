"""The registry's client, against a real registry, and a scripted one for rare responses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from pipeline.core.errors import RegistryError
from pipeline.core.log import Log
from pipeline.core.names import INDEX, Digest, ImageName
from pipeline.core.records import Image
from pipeline.http import transport
from pipeline.http.retries import PAUSES
from pipeline.oci.credentials import Credentials
from pipeline.oci.registry import Registry
from tests.helpers.images import Line, Place, make, running

LOG = Log(quiet=True)
NAME = ImageName(registry="registry.example", repository="group/dind-k3s")
SECRET = "the-password"
ME = Credentials(username="me", password=SECRET)
Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running(tmp_path_factory.mktemp("registry")) as place:
        yield place


class Scripted:
    """A Registry whose network is `handler`; records pauses instead of sleeping."""

    def __init__(self, handler: Handler, credentials: Credentials | None = None, name: ImageName = NAME) -> None:
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

        def handle(request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            request.read()
            return handler(request)

        client = transport.make_client(httpx.MockTransport(handle))
        self.registry = Registry(client, name, credentials, sleep=self.pauses.append)


class _Body(httpx.SyncByteStream):
    """A body of small chunks, which can end in a broken connection."""

    def __init__(self, data: bytes, *, breaks: bool = False) -> None:
        self._data, self._breaks = data, breaks

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._data), 300):
            yield self._data[start : start + 300]
        if self._breaks:
            raise httpx.ReadError("connection reset")


def _answers(*answers: httpx.Response | Exception) -> Handler:
    """Return one response after the other; the last one repeatedly."""
    left = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handle


def jittered(pause: float) -> object:
    return pytest.approx(pause, rel=0.25)


def _index(raw: bytes = b"{}", stated: str | None = None) -> httpx.Response:
    headers = {"Content-Type": f"{INDEX}; charset=utf-8", **({"Docker-Content-Digest": stated} if stated else {})}
    return httpx.Response(200, content=raw, headers=headers)


# Reading


def test_a_manifest_has_its_raw_bytes() -> None:
    scripted = Scripted(_answers(_index(b'{ "odd":  1 }\n')))
    manifest = scripted.registry.manifest("latest")
    assert manifest is not None
    assert (manifest.raw, manifest.media_type) == (b'{ "odd":  1 }\n', INDEX)
    assert manifest.digest == Digest.of(b'{ "odd":  1 }\n')
    assert str(scripted.requests[0].url) == "https://registry.example/v2/group/dind-k3s/manifests/latest"
    assert INDEX in scripted.requests[0].headers["Accept"]


def test_a_missing_manifest_is_none() -> None:
    assert Scripted(_answers(httpx.Response(404))).registry.manifest("latest") is None


@pytest.mark.parametrize("registry", ["127.0.0.1:5000", "localhost:5000"])
def test_loopback_uses_plain_http(registry: str) -> None:
    scripted = Scripted(_answers(_index()), name=ImageName(registry=registry, repository="a"))
    scripted.registry.manifest("latest")
    assert str(scripted.requests[0].url) == f"http://{registry}/v2/a/manifests/latest"


def test_docker_hub_has_another_host() -> None:
    scripted = Scripted(_answers(_index()), name=ImageName(registry="docker.io", repository="library/debian"))
    scripted.registry.manifest("trixie")
    assert scripted.requests[0].url.host == "registry-1.docker.io"


def test_a_registry_that_contradicts_itself_is_refused() -> None:
    other = Digest.of(b"other").text
    with pytest.raises(RegistryError, match=other):
        Scripted(_answers(_index(stated=other))).registry.manifest("latest")
    with pytest.raises(RegistryError, match=other):
        Scripted(_answers(_index())).registry.manifest(other)


def test_a_blob_is_hashed_while_it_streams() -> None:
    data = b"layer" * 1000
    with Scripted(_answers(httpx.Response(200, stream=_Body(data)))).registry.blob(Digest.of(data)) as chunks:
        assert b"".join(chunks) == data
    wrong = Scripted(_answers(httpx.Response(200, stream=_Body(b"other"))))
    with pytest.raises(RegistryError, match="blob with another digest"), wrong.registry.blob(Digest.of(data)) as chunks:
        list(chunks)


@pytest.mark.parametrize("knows_range", [True, False])
def test_a_broken_download_is_resumed(knows_range: bool) -> None:
    data = bytes(range(256)) * 10
    rest = httpx.Response(206, stream=_Body(data[1000:])) if knows_range else httpx.Response(200, stream=_Body(data))
    scripted = Scripted(_answers(httpx.Response(200, stream=_Body(data[:1000], breaks=True)), rest))
    with scripted.registry.blob(Digest.of(data)) as chunks:
        assert b"".join(chunks) == data
    assert scripted.requests[1].headers["Range"] == "bytes=1000-"
    assert scripted.pauses == [jittered(PAUSES[0])]


def test_a_download_that_always_breaks_fails() -> None:
    scripted = Scripted(lambda request: httpx.Response(200, stream=_Body(b"", breaks=True)))
    with pytest.raises(RegistryError, match="connection reset"), scripted.registry.blob(Digest.of(b"x")) as chunks:
        list(chunks)
    assert scripted.pauses == [jittered(pause) for pause in PAUSES]


def test_tags_are_read_page_by_page() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if "last" in request.url.params:
            return httpx.Response(200, json={"name": "x", "tags": ["a"]})
        link = '</v2/group/dind-k3s/tags/list?last=b&n=1000>; rel="next"'
        return httpx.Response(200, json={"name": "x", "tags": ["b"]}, headers={"Link": link})

    assert Scripted(handle).registry.tags() == ("a", "b")
    assert Scripted(_answers(httpx.Response(404))).registry.tags() == ()
    assert Scripted(_answers(httpx.Response(200, json={"name": "x", "tags": None}))).registry.tags() == ()


def test_referrers_are_read_page_by_page() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if "next" in request.url.params:
            return httpx.Response(200, json={"manifests": [{"digest": "b"}]})
        assert request.url.path.endswith(f"/referrers/{Digest.of(b'x')}")
        link = f'<{request.url.path}?next=1>; rel="next"'
        return httpx.Response(200, json={"manifests": [{"digest": "a"}]}, headers={"Link": link})

    assert Scripted(handle).registry.referrers(Digest.of(b"x")) == [{"digest": "a"}, {"digest": "b"}]


@pytest.mark.parametrize("status", [400, 404, 405, 406])
def test_a_registry_without_a_referrers_api(status: int) -> None:
    assert Scripted(_answers(httpx.Response(status))).registry.referrers(Digest.of(b"x")) is None


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"manifests": 1}', b'{"manifests": [{}]}'])
def test_an_invalid_list_of_referrers(body: bytes) -> None:
    with pytest.raises(RegistryError, match="cannot be read"):
        Scripted(_answers(httpx.Response(200, content=body))).registry.referrers(Digest.of(b"x"))


# Retries


@pytest.mark.parametrize(
    "failure",
    [
        httpx.Response(503),
        httpx.Response(522),
        httpx.Response(429),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
    ],
    ids=str,
)
def test_a_temporary_failure_of_a_registry_is_retried(failure: httpx.Response | Exception) -> None:
    scripted = Scripted(_answers(failure, failure, _index()))
    assert scripted.registry.manifest("latest") is not None
    assert scripted.pauses == [jittered(pause) for pause in PAUSES[:2]]


def test_retries_are_limited() -> None:
    scripted = Scripted(_answers(httpx.Response(500)))
    with pytest.raises(RegistryError, match=r"registry\.example is not available") as failure:
        scripted.registry.manifest("latest")
    assert "status 500" in str(failure.value)
    assert len(scripted.requests) == 5
    assert 10 <= sum(scripted.pauses) <= 60


@pytest.mark.parametrize(("asked", "pause"), [("7", 7.0), ("86400", 60.0), ("soon", jittered(PAUSES[0]))])
def test_a_registry_can_request_a_pause(asked: str, pause: object) -> None:
    scripted = Scripted(_answers(httpx.Response(429, headers={"Retry-After": asked}), _index()))
    scripted.registry.manifest("latest")
    assert scripted.pauses == [pause]


def test_a_rate_limit_for_anonymous_clients_is_reported() -> None:
    with pytest.raises(RegistryError, match=r"docker login registry\.example"):
        Scripted(_answers(httpx.Response(429))).registry.manifest("latest")


def test_a_missing_host_is_not_retried() -> None:
    scripted = Scripted(_answers(httpx.ConnectError("Connection refused")))
    with pytest.raises(RegistryError, match=r"registry\.example") as failure:
        scripted.registry.manifest("latest")
    assert "Connection refused" in str(failure.value)
    assert scripted.pauses == []


def test_an_unexpected_response_is_not_retried() -> None:
    errors = {"errors": [{"code": "TAG_INVALID", "message": "manifest tag did not match"}]}
    scripted = Scripted(_answers(httpx.Response(400, json=errors)))
    with pytest.raises(RegistryError, match="TAG_INVALID manifest tag did not match"):
        scripted.registry.tag("x", b"{}", INDEX)
    assert scripted.pauses == []


# Authorization


class Guarded:
    """A registry that requires tokens, and its token server; a token is valid for `uses` requests."""

    def __init__(self, *, uses: int = 1000, realm: str = "https://auth.example/token?tenant=1") -> None:
        self._uses, self._realm = uses, realm
        self.given = 0
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.host == "auth.example":
            self.asked.append(request)
            self.given += 1
            self._left = self._uses
            return httpx.Response(200, json={"access_token": f"token-{self.given}"})
        if request.headers.get("Authorization") != f"Bearer token-{self.given}" or not self._left:
            challenge = f'Bearer realm="{self._realm}",service="registry",scope="whatever"'
            return httpx.Response(401, headers={"WWW-Authenticate": challenge})
        self._left -= 1
        return _index()


def test_a_token_is_requested_once_and_kept() -> None:
    guarded = Guarded()
    registry = Scripted(guarded, ME).registry
    registry.manifest("a")
    registry.manifest("b")
    assert len(guarded.asked) == 1
    request = guarded.asked[0]
    assert dict(request.url.params) == {
        "tenant": "1",
        "service": "registry",
        "scope": "repository:group/dind-k3s:pull",
    }
    assert request.headers["Authorization"] == ME.basic


def test_an_anonymous_client_requests_a_token_without_credentials() -> None:
    guarded = Guarded()
    Scripted(guarded).registry.manifest("a")
    assert "Authorization" not in guarded.asked[0].headers


def test_an_expired_token_is_renewed() -> None:
    guarded = Guarded(uses=1)
    scripted = Scripted(guarded, ME)
    for _ in range(3):
        assert scripted.registry.manifest("a") is not None
    assert guarded.given == 3
    assert scripted.pauses == []


def test_a_registry_that_never_accepts_its_tokens_fails() -> None:
    scripted = Scripted(Guarded(uses=0), ME)
    with pytest.raises(RegistryError, match=r"docker login registry\.example") as failure:
        scripted.registry.manifest("a")
    assert failure.value.exit_code == 9
    assert len(scripted.requests) == 3
    assert "token-1" not in str(failure.value)


def test_no_password_is_sent_over_plain_http() -> None:
    scripted = Scripted(Guarded(realm="http://auth.example/token"), ME)
    with pytest.raises(RegistryError, match="over plain HTTP"):
        scripted.registry.manifest("a")
    assert [request.url.host for request in scripted.requests] == ["registry.example"]


def test_plain_basic_authentication() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.headers.get("Authorization") == ME.basic:
            return _index()
        return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="Registry"'})

    assert Scripted(handle, ME).registry.manifest("a") is not None
    for credentials in (None, Credentials(username="me", password="wrong-password")):
        with pytest.raises(RegistryError, match="docker login") as failure:
            Scripted(handle, credentials).registry.manifest("a")
        assert "wrong-password" not in str(failure.value)


@pytest.mark.parametrize("answer", [httpx.Response(200, text="no"), httpx.Response(200, json={}), httpx.Response(403)])
def test_a_token_server_without_a_token(answer: httpx.Response) -> None:
    guarded = Guarded()

    def handle(request: httpx.Request) -> httpx.Response:
        return answer if request.url.host == "auth.example" else guarded(request)

    with pytest.raises(RegistryError) as failure:
        Scripted(handle, ME).registry.manifest("a")
    assert SECRET not in str(failure.value)


def test_another_host_for_storage_gets_no_token(tmp_path: Path) -> None:
    image = make(tmp_path, "elsewhere")

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.host == "storage.example":
            assert "Authorization" not in request.headers
            return httpx.Response(201) if request.method == "PUT" else httpx.Response(200, stream=_Body(b"x"))
        if request.headers.get("Authorization") != ME.basic:
            return httpx.Response(401, headers={"WWW-Authenticate": "Basic"})
        if request.method == "POST":
            return httpx.Response(202, headers={"Location": "https://storage.example/upload?signature=1"})
        if request.method == "GET":
            return httpx.Response(307, headers={"Location": "https://storage.example/blob?signature=1"})
        return httpx.Response(404 if request.method == "HEAD" else 201)

    scripted = Scripted(handle, ME)
    scripted.registry.push_layout(tmp_path / "image", image.digest, LOG)
    with scripted.registry.blob(Digest.of(b"x")) as chunks:
        assert b"".join(chunks) == b"x"
    uploads = [request for request in scripted.requests if request.url.path == "/upload"]
    assert uploads
    assert all(request.url.params["signature"] == "1" for request in uploads)


# Pushing


def test_a_registry_that_stores_something_else_is_refused() -> None:
    other = Digest.of(b"other").text
    with pytest.raises(RegistryError, match=other):
        Scripted(_answers(httpx.Response(201, headers={"Docker-Content-Digest": other}))).registry.tag(
            "x", b"{}", INDEX
        )


def test_a_failed_upload_is_started_again(tmp_path: Path) -> None:
    image = make(tmp_path, "failed upload")
    failed: list[httpx.URL] = []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, headers={"Location": f"/upload/{len(scripted.requests)}"})
        if request.url.path.startswith("/upload/") and not failed:
            failed.append(request.url)
            return httpx.Response(502)
        return httpx.Response(404 if request.method == "HEAD" else 201)

    scripted = Scripted(handle)
    pushed = scripted.registry.push_layout(tmp_path / "image", image.digest, LOG)
    assert len(pushed) == len(list((tmp_path / "image/blobs/sha256").iterdir()))
    again = [
        request.url
        for request in scripted.requests
        if request.method == "PUT" and request.url.params.get("digest") == failed[0].params["digest"]
    ]
    assert len(again) == 2
    assert again[0].path != again[1].path


def test_the_first_failure_stops_a_push_and_nothing_is_tagged(tmp_path: Path) -> None:
    image = make(tmp_path, "first failure")

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "HEAD":
            return httpx.Response(404)
        return httpx.Response(403)

    scripted = Scripted(handle, ME)
    with pytest.raises(RegistryError, match="denied push access"):
        scripted.registry.push_layout(tmp_path / "image", image.digest, LOG)
    assert not any("/manifests/" in request.url.path for request in scripted.requests)


def test_at_most_three_blobs_at_once(tmp_path: Path) -> None:
    image = make(tmp_path, "three")
    # Uploads wait for a fourth simultaneous one, which must not exist.
    lock, fourth = threading.Lock(), threading.Barrier(4, timeout=0.3)
    at_once, most, uploads = 0, 0, 0

    def handle(request: httpx.Request) -> httpx.Response:
        nonlocal at_once, most, uploads
        if request.method == "POST":
            return httpx.Response(202, headers={"Location": "/upload"})
        if request.url.path == "/upload":
            with lock:
                uploads, at_once = uploads + 1, at_once + 1
                most = max(most, at_once)
            with suppress(threading.BrokenBarrierError):
                fourth.wait()
            with lock:
                at_once -= 1
        return httpx.Response(404 if request.method == "HEAD" else 201)

    Scripted(handle).registry.push_layout(tmp_path / "image", image.digest, LOG)
    assert most == 3
    assert uploads > 3


def _image(tmp_path: Path, request: pytest.FixtureRequest) -> Image:
    return make(tmp_path, request.node.name)


def test_a_push_is_read_back_byte_for_byte(place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    image, line = _image(tmp_path, request), Line()
    registry = place.registry(place.name("byte-for-byte"), line)
    pushed = registry.push_layout(tmp_path / "image", image.digest, LOG)
    files = list((tmp_path / "image/blobs/sha256").iterdir())
    assert len(pushed) == len(files)
    assert sum(part.size for part in pushed) == sum(path.stat().st_size for path in files)
    assert registry.tags() == ()
    # Three threads are refused at once; one token is requested for all.
    assert [sent.url.params["scope"] for sent in line.requests if sent.url.path == "/token"].count(
        f"repository:{registry.name.repository}:pull,push"
    ) == 1
    # Children before the index.
    manifests = [sent.url.path.rpartition("/")[2] for sent in line.written if "/manifests/" in sent.url.path]
    assert manifests[-1] == image.digest.text
    assert len(manifests) == 5
    anonymous = place.anonymous(registry.name)
    manifest = anonymous.manifest(image.digest.text)
    assert manifest is not None
    assert manifest.raw == (tmp_path / "image/blobs/sha256" / image.digest.hex).read_bytes()
    assert manifest.media_type == INDEX
    for built in image.platforms.values():
        with anonymous.blob(built.config) as chunks:
            assert b"".join(chunks) == (tmp_path / "image/blobs/sha256" / built.config.hex).read_bytes()
    registry.tag("latest", manifest.raw, INDEX)
    assert anonymous.tags() == ("latest",)


def test_existing_blobs_are_not_sent_again(place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    image, line = _image(tmp_path, request), Line()
    name = place.name("again")
    place.registry(name, Line()).push_layout(tmp_path / "image", image.digest, LOG)
    pushed = place.registry(name, line).push_layout(tmp_path / "image", image.digest, LOG)
    assert pushed == []
    assert line.written == []


@pytest.mark.parametrize("dies_after", [1, 4, 9, 25])
def test_an_interrupted_push_is_completed(
    dies_after: int, place: Place, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    image, line = _image(tmp_path, request), Line()
    name = place.name(f"interrupted-{dies_after}")
    with pytest.raises(RegistryError, match="Connection refused"):
        place.registry(name, Line(dies_after)).push_layout(tmp_path / "image", image.digest, LOG)
    assert place.anonymous(name).manifest(image.digest.text) is None
    place.registry(name, line).push_layout(tmp_path / "image", image.digest, LOG)
    manifest = place.anonymous(name).manifest(image.digest.text)
    assert manifest is not None
    if dies_after == 25:
        assert len(line.written) < 20


@pytest.mark.parametrize("credentials", [None, Credentials(username="rehearsal", password=SECRET)])
def test_a_push_needs_the_right_credentials(
    credentials: Credentials | None, place: Place, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    image = make(tmp_path, "credentials")
    registry = Registry(place.client(), place.name("refused"), credentials)
    with pytest.raises(RegistryError, match=f"docker login {place.served.host}") as failure:
        registry.push_layout(tmp_path / "image", image.digest, LOG)
    assert failure.value.exit_code == 9
    assert SECRET not in str(failure.value)
