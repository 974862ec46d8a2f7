"""Reading back, for real: what a registry can do to an image, and that it is noticed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.core.annotations import KEY
from pipeline.core.errors import IntentError, VerificationFailed
from pipeline.core.log import Log
from pipeline.core.names import INDEX, REFERENCE_TYPE, Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import Image, Release, Variant
from pipeline.http import transport
from pipeline.inputs.lock import Lock
from pipeline.oci.registry import Registry
from pipeline.publish import verify
from pipeline.publish.publication import Publication
from tests.helpers.examples import INTENT, LOCK
from tests.helpers.images import Change, Line, Place, make, publication, publish, running, spoil

LOG = Log(quiet=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running(tmp_path_factory.mktemp("registry")) as place:
        yield place


def reading(image: Image, dist: Path, lock: Lock = LOCK, log: Log = LOG) -> Publication:
    """What verify gets of an image; it asks no registry with credentials."""

    def no_registry(name: ImageName) -> Registry:
        raise AssertionError(f"{name} is read without credentials")

    return replace(publication(INTENT, lock, image, dist, no_registry), log=log)


class Published:
    """A published image and an anonymous client who reads it."""

    def __init__(self, place: Place, dist: Path, name: ImageName) -> None:
        self.place, self.dist, self.name = place, dist, name
        self.line = Line()

    def publish(self, seed: str = "", change: Change | None = None) -> Image:
        self.image = make(self.dist, f"{self.name} {seed}", change=change)
        intent = replace(INTENT, names=(self.name,))
        registry = self.place.registry(self.name, Line())
        publish(publication(intent, LOCK, self.image, self.dist, lambda name: registry))
        return self.image

    def verify(self, *references: str, log: Log = LOG, line: httpx.BaseTransport | None = None) -> list[float]:
        """Returns the pauses that were made."""
        pauses: list[float] = []
        client = self.place.client(line or self.line)
        verify.run(reading(self.image, self.dist, log=log), references, client, sleep=pauses.append)
        return pauses

    @property
    def release(self) -> Release:
        return Release.read(self.dist, self.image.digest)


@pytest.fixture
def published(place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> Published:
    test = "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower()).strip("-")
    while "--" in test:
        test = test.replace("--", "-")
    return Published(place, tmp_path, place.name(test))


def test_what_was_published_is_read_back(published: Published, capfd: pytest.CaptureFixture[str]) -> None:
    image = published.publish()
    assert published.verify(log=Log()) == []
    assert len(published.release.verified) == 4
    assert published.release.verified == published.release.tagged
    printed = capfd.readouterr().err
    for text in (f"{published.name}:latest is {image.digest}", "linux/arm64 sha256:", "slsa.dev/provenance"):
        assert text in printed


def test_a_variant_is_read_back_and_what_it_shares_is_read_once(published: Published) -> None:
    image = published.publish()
    airgap = make(published.dist / "airgap", f"{published.name} ", Variant.AIRGAP)
    intent, registry = replace(INTENT, names=(published.name,)), published.place.registry(published.name, Line())
    publish(publication(intent, LOCK, airgap, published.dist / "airgap", lambda _: registry, base=image))
    hashed: dict[ImageName, dict[str, int]] = {}
    blobs = []
    for one in (image, airgap):
        line = Line()
        folder = one.variant.below(published.dist)
        verify.run(reading(one, folder), (), published.place.client(line), hashed=hashed)
        assert len(Release.read(folder, one.digest).verified) == 4
        blobs += [request.url.path for request in line.requests if "/blobs/" in request.url.path]
    layers = [path for path in blobs if path.rpartition("/")[2] in {part.text for part in _layers(image)}]
    assert len(layers) == len(set(layers)) > 0
    with pytest.raises(VerificationFailed, match="is not what was released"):
        verify.run(reading(image, published.dist), (f"{published.name}:latest-airgap",), published.place.client())


def _layers(image: Image) -> set[Digest]:
    return {layer for built in image.platforms.values() for layer in built.layers}


def test_it_reads_as_a_stranger_and_every_byte_once(published: Published) -> None:
    published.publish()
    published.verify()
    assert {request.method for request in published.line.requests} == {"GET"}
    assert not any(request.headers.get("Authorization", "").startswith("Basic") for request in published.line.requests)
    read = [request.url.path.rpartition("/")[2] for request in published.line.requests]
    for blob in (published.dist / "image/blobs/sha256").iterdir():
        assert f"sha256:{blob.name}" in read or blob.name == published.image.digest.hex
    shared = [digest for digest in read if digest.startswith("sha256:") and read.count(digest) > 2]
    assert shared == []


def test_one_tag_alone(published: Published) -> None:
    published.publish()
    published.verify(f"{published.name}:latest")
    assert published.release.verified == (f"{published.name}:latest",)
    published.verify(f"{published.name}@{published.image.digest}")
    assert published.release.verified == (f"{published.name}:latest",)


def test_nothing_was_published(published: Published) -> None:
    published.image = make(published.dist, "never")
    with pytest.raises(IntentError, match="nox -s tag"):
        published.verify()
    with pytest.raises(IntentError, match=r"registry/repository\[:tag\]"):
        published.verify("UPPER CASE")


# What a registry can do to an image


def test_a_tag_that_moved(published: Published) -> None:
    first = published.publish("first")
    published.publish("second")
    published.image = first
    with pytest.raises(VerificationFailed, match="latest is not what was released") as failure:
        published.verify(f"{published.name}:latest")
    assert first.digest.text in str(failure.value)
    assert failure.value.exit_code == 10


def test_a_tag_that_is_gone(published: Published) -> None:
    published.publish()
    with pytest.raises(VerificationFailed, match="status 404"):
        published.verify(f"{published.name}:v0.0")


def test_a_platform_that_was_deleted(published: Published) -> None:
    image = published.publish()
    published.verify()
    published.place.forget_manifest(published.name, image.platforms[Platform.ARM64].digest)
    with pytest.raises(VerificationFailed, match=image.platforms[Platform.ARM64].digest.text):
        published.verify()
    assert published.release.verified == ()


def test_an_attestation_that_was_deleted(published: Published) -> None:
    image = published.publish()
    index = json.loads((published.dist / "image/blobs/sha256" / image.digest.hex).read_bytes())
    attestation = next(entry for entry in index["manifests"] if REFERENCE_TYPE in entry.get("annotations", {}))
    gone = [part.digest for part in _parts(published) if part.digest.text == attestation["digest"]]
    published.place.forget_manifest(published.name, gone[0])
    with pytest.raises(VerificationFailed, match=attestation["digest"]):
        published.verify()


@pytest.mark.parametrize("what", ["layer", "config", "provenance"])
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_spoiled_blob(what: str, how: str, published: Published) -> None:
    image = published.publish()
    parts = {
        "layer": next(part for part in _parts(published) if "layer" in part.media_type),
        "config": next(part for part in _parts(published) if part.digest == image.platforms[Platform.ARM64].config),
        "provenance": next(part for part in _parts(published) if "in-toto" in part.media_type),
    }
    path = published.place.blob(parts[what].digest)
    if how == "changed":
        path.write_bytes(b"!" + path.read_bytes()[1:])
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(VerificationFailed, match=parts[what].digest.text):
        published.verify()
    assert published.release.verified == ()


def _parts(published: Published) -> list[Any]:
    from pipeline.oci import layout

    return list(layout.read(published.dist / "image", published.image.digest))


# What a build can leave out


def _drop_arm64(kind: str, data: dict[str, Any]) -> None:
    if kind == "index":
        data["manifests"] = [entry for entry in data["manifests"] if entry["platform"]["architecture"] != "arm64"]


def _drop_attestations(kind: str, data: dict[str, Any]) -> None:
    if kind == "index":
        data["manifests"] = [entry for entry in data["manifests"] if "annotations" not in entry]


def _other_predicate(kind: str, data: dict[str, Any]) -> None:
    if kind == "attestation":
        data["layers"][0]["annotations"]["in-toto.io/predicate-type"] = "https://spdx.dev/Document"


def _windows(kind: str, data: dict[str, Any]) -> None:
    if kind == "config":
        data["os"] = "windows"


def _another_version(kind: str, data: dict[str, Any]) -> None:
    if kind == "index":
        data["annotations"][f"{KEY}.k3s"] = "v1.0.0+k3s1"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (spoil("index", ("annotations", f"{KEY}.seed")), f"{KEY}.seed on the index"),
        (spoil("index", ("annotations",)), "on the index"),
        (spoil("index", ("mediaType",)), "media type"),
        (spoil("manifest", ("annotations", f"{KEY}.seed")), f"{KEY}.seed on the manifest of linux/amd64"),
        (spoil("config", ("config", "Labels", f"{KEY}.seed")), f"{KEY}.seed on the config of linux/amd64"),
        (_drop_arm64, "list of platforms"),
        (_drop_attestations, "no provenance"),
        (_other_predicate, "the predicate type of the attestation"),
        (_windows, "windows/amd64"),
        (_another_version, "k3s"),
    ],
    ids=[
        "annotation of the index",
        "all annotations",
        "media type",
        "annotation of a manifest",
        "label",
        "platform",
        "attestations",
        "no provenance",
        "os",
        "version",
    ],
)
def test_what_was_left_out_is_noticed(change: Change, match: str, published: Published) -> None:
    published.publish(change=change)
    with pytest.raises(VerificationFailed, match=match):
        published.verify()
    assert published.release.verified == ()


def test_a_version_that_is_not_the_locks(published: Published) -> None:
    published.publish()
    lock = replace(LOCK, versions={**LOCK.versions, "docker": "29.7.3"})
    with pytest.raises(VerificationFailed, match="docker's version on the index"):
        verify.run(reading(published.image, published.dist, lock), (), published.place.client())


# What a network can do


class _Flaky(httpx.BaseTransport):
    """Every second request for content goes wrong: busy, cut in the middle, or not there yet."""

    def __init__(self) -> None:
        self._line = Line()
        self._count = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._line.handle_request(request)
        if answer.status_code != 200 or request.url.path == "/token":
            return answer
        self._count += 1
        kind = self._count % 8
        if kind in (1, 3, 5):
            answer.close()
            return httpx.Response({1: 503, 3: 404, 5: 429}[kind])
        if kind == 7:
            return httpx.Response(200, headers=answer.headers, stream=_Cut(answer.read()[:11]))
        return answer

    def close(self) -> None:
        self._line.close()


class _Cut(httpx.SyncByteStream):
    def __init__(self, beginning: bytes) -> None:
        self._beginning = beginning

    def __iter__(self) -> Iterator[bytes]:
        yield self._beginning
        raise httpx.ReadError("cut")


def test_a_passing_failure_is_tried_again(published: Published) -> None:
    published.publish()
    pauses = published.verify(line=_Flaky())
    assert pauses
    assert len(published.release.verified) == 4


def test_a_registry_that_stays_busy(published: Published) -> None:
    published.publish()
    busy = httpx.MockTransport(lambda request: httpx.Response(503))
    with pytest.raises(VerificationFailed, match="status 503") as failure:
        published.verify(line=busy)
    assert f"http://{published.name.registry}" in str(failure.value)


def test_a_private_repository_is_not_released(published: Published) -> None:
    published.publish()
    private = httpx.MockTransport(
        lambda request: httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="Registry"'})
    )
    with pytest.raises(VerificationFailed, match="is the repository public"):
        published.verify(line=private)


def test_another_media_type_is_noticed(published: Published) -> None:
    published.publish()
    raw = (published.dist / "image/blobs/sha256" / published.image.digest.hex).read_bytes()
    wrong = INDEX.replace("index", "manifest")
    answer = httpx.MockTransport(lambda request: httpx.Response(200, content=raw, headers={"Content-Type": wrong}))
    with pytest.raises(VerificationFailed, match="media type"):
        published.verify(line=answer)


def test_docker_hub_is_found_at_its_own_host(tmp_path: Path) -> None:
    image = make(tmp_path, "hub")
    asked: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(410)

    with transport.make_client(httpx.MockTransport(handle)) as client, pytest.raises(VerificationFailed):
        verify.run(reading(image, tmp_path), ("group/dind-k3s:latest",), client)
    assert asked == ["https://registry-1.docker.io/v2/group/dind-k3s/manifests/latest"]
