"""The table of origins and mirrors, measured on real servers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.core.errors import UpstreamError
from pipeline.core.log import Log
from pipeline.core.names import INDEX, MANIFEST, Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.fetch import mirrors
from pipeline.fetch.mirrors import Measured
from pipeline.http import transport
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent
from pipeline.oci.registry import Registry
from tests.helpers import hostile, images
from tests.helpers.examples import INTENT, LOCK, artifact
from tests.helpers.images import Line
from tests.helpers.servers import Answer, Server, running

DATA = bytes(300_000)


class Debian:
    """A base image of two platforms, for a registry and as an OCI layout."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.manifests: dict[Digest, bytes] = {}
        entries = []
        for platform in Platform:
            manifest = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self._put(self.blobs, f"config of {platform}".encode()),
                "layers": [self._put(self.blobs, platform.value.encode() * 20_000)],
            }
            entry = self._put(self.manifests, json.dumps(manifest).encode())
            entries.append({**entry, "platform": {"os": "linux", "architecture": platform.architecture}})
        top = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        self.index = Digest(self._put(self.manifests, json.dumps(top).encode())["digest"])

    @staticmethod
    def _put(where: dict[Digest, bytes], data: bytes) -> dict[str, Any]:
        where[Digest.of(data)] = data
        return {"digest": Digest.of(data).text, "size": len(data)}

    def registry(self, server: Server) -> None:
        """Serve it as the repository library/debian."""
        server.gives("/v2/", b"{}", status=401)
        for kind, files in (("manifests", self.manifests), ("blobs", self.blobs)):
            for digest, data in files.items():
                server.gives(f"/v2/library/debian/{kind}/{digest}", data, headers={"Content-Type": MANIFEST})

    def layout(self, server: Server) -> None:
        """Serve it as an OCI layout."""
        for digest, data in (self.manifests | self.blobs).items():
            server.answers[f"/base/blobs/sha256/{digest.hex}"] = hostile.honest(data)

    def lock(self, server: Server, *names: str) -> Lock:
        """Return a lock with this base image and files of these components."""
        image = f"{server.url.removeprefix('http://')}/library/debian:trixie-slim"
        return replace(lock_at(server, *names), base=replace(LOCK.base, image=image, digest=self.index))


def run(
    intent: Intent, lock: Lock, client: httpx.Client, log: Log | None = None, *, seconds: float = 5.0
) -> list[Measured]:
    """Run the stage without pauses."""

    def registry_for(name: ImageName) -> Registry:
        return Registry(client, name, sleep=lambda seconds: None)

    return mirrors.run(intent, lock, client, registry_for, log or Log(quiet=True), seconds=seconds)


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with transport.make_client(read=0.5) as client:
        yield client


def lock_at(upstream: Server, *names: str) -> Lock:
    files = [artifact(name, Platform.AMD64, DATA) for name in names]
    return replace(
        LOCK,
        artifacts=tuple(replace(file, url=f"{upstream.url}/{file.path}") for file in files),
        packages=(),
        guest=(),
    )


def test_latency_speed_and_freshness_of_each(client: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    debian = Debian()
    with running() as upstream, running() as stale, running() as gone, running() as witness:
        debian.registry(upstream)
        lock = debian.lock(upstream, "docker", "k3s")
        for name in ("docker", "k3s"):
            upstream.answers[f"/{name}/amd64"] = hostile.honest(DATA)
        stale.answers["/docker/amd64"] = hostile.honest(DATA[:-1])
        stale.answers["/k3s/amd64"] = hostile.honest(DATA)
        witness.answers["/docker/amd64"] = hostile.honest(DATA)
        gone_url = gone.url
        intent = replace(
            INTENT, mirrors={"docker": (stale.url, gone_url)}, witnesses={"docker": (f"{witness.url}/docker-ce",)}
        )
        gone.answers["/docker/amd64"] = gone.answers["/k3s/amd64"] = hostile.reset(DATA, 0)
        base, *results = run(intent, lock, client, Log())
    assert (base.base, base.kind, base.has, base.of) == (f"{upstream.url}/v2/library/debian", "registry", 4, 4)
    assert [(m.base, m.kind, m.has, m.of) for m in results] == [
        (stale.url, "mirror", 1, 2),
        (gone_url, "mirror", 0, 2),
        (upstream.url, "upstream", 2, 2),
        (f"{witness.url}/docker-ce", "witness", 0, 2),
    ]
    assert "299999 bytes instead of 300000" in results[0].problem
    assert results[1].problem
    assert results[1].latency is None
    assert results[2].latency is not None
    assert 0 < results[2].latency < 0.5
    assert results[2].speed is not None
    assert results[2].speed > 100_000
    table = capsys.readouterr().err
    for text in (stale.url, gone_url, upstream.url, "mirror", "upstream", "registry", "2 of 2", "B/s"):
        assert text in table


def test_the_speed_of_an_endless_or_slow_file_is_measured_in_bounded_time(client: httpx.Client) -> None:
    over, debian = threading.Event(), Debian()

    def slow(data: bytes) -> Answer:
        def answer(handler: hostile.Handler) -> None:
            (hostile.honest(data) if handler.command == "HEAD" else hostile.trickle(data, over))(handler)

        return answer

    with running() as upstream:
        debian.registry(upstream)
        upstream.answers["/k3s/amd64"] = slow(DATA)
        for digest, data in debian.blobs.items():
            upstream.answers[f"/v2/library/debian/blobs/{digest}"] = slow(data)
        results = run(INTENT, debian.lock(upstream, "k3s"), client, seconds=0.2)
        over.set()
    assert [m.kind for m in results] == ["registry", "upstream"]
    for measured in results:
        assert measured.speed is not None
        assert measured.speed < 10_000


def test_an_origin_without_a_complete_server_is_exit_code_3(client: httpx.Client) -> None:
    debian = Debian()
    with running() as upstream:
        debian.registry(upstream)
        with pytest.raises(UpstreamError, match="every file of docker") as refused:
            run(INTENT, debian.lock(upstream, "k3s"), client)
    assert refused.value.exit_code == 3
    assert refused.value.found is not None
    assert "status 404" in refused.value.found


def test_a_witness_does_not_count_as_a_server(client: httpx.Client) -> None:
    debian = Debian()
    with running() as upstream, running() as witness:
        debian.registry(upstream)
        witness.answers["/k3s/amd64"] = hostile.honest(DATA)
        intent = replace(INTENT, witnesses={"docker": (witness.url,)})
        with pytest.raises(UpstreamError, match="every file of docker"):
            run(intent, debian.lock(upstream, "k3s"), client)


def test_the_base_image_from_mirrors_alone(client: httpx.Client) -> None:
    """One is complete, one lacks a layer, one has another index; the registry is down."""
    debian = Debian()
    layer = max(debian.blobs, key=lambda digest: len(debian.blobs[digest]))
    with running() as upstream, running() as good, running() as old, running() as wrong:
        for name in ("docker", "k3s"):
            upstream.answers[f"/{name}/amd64"] = hostile.honest(DATA)
        for server in (good, old, wrong):
            debian.layout(server)
        del old.answers[f"/base/blobs/sha256/{layer.hex}"]
        wrong.answers[f"/base/blobs/sha256/{debian.index.hex}"] = hostile.honest(b"other bytes")
        intent = replace(INTENT, mirrors={"base": tuple(f"{server.url}/base" for server in (old, wrong, good))})
        nowhere = replace(debian.lock(upstream, "docker", "k3s").base, image="127.0.0.1:9/library/debian:trixie-slim")
        lock = replace(debian.lock(upstream, "docker", "k3s"), base=nowhere)
        results = [m for m in run(intent, lock, client) if m.origin == "base"]
    assert [(m.kind, m.has, m.of) for m in results] == [
        ("mirror", 3, 4),
        ("mirror", 0, 1),
        ("mirror", 4, 4),
        ("registry", 0, 1),
    ]
    assert results[0].problem == f"blob {layer.short}…: status 404"
    assert "other bytes as the manifest" in results[1].problem
    assert results[2].problem == ""
    assert results[2].speed is not None
    assert "127.0.0.1:9 is not available" in results[3].problem


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        (b"<html>", "is not an index"),
        (b"[]", "is not an index"),
        (b'{"manifests": [{"platform": {"os": "linux", "architecture": "s390x"}}]}', "has no linux/amd64"),
        (b'{"manifests": [{"platform": {"os": "linux", "architecture": "amd64"}, "digest": "x"}]}', "is not an index"),
    ],
)
def test_an_invalid_index(client: httpx.Client, index: bytes, problem: str) -> None:
    debian = Debian()
    debian.manifests = {Digest.of(index): index}
    debian.index = Digest.of(index)
    with running() as upstream:
        debian.registry(upstream)
        upstream.answers["/k3s/amd64"] = hostile.honest(DATA)
        with pytest.raises(UpstreamError, match="every file of base") as refused:
            run(INTENT, debian.lock(upstream, "k3s"), client)
    assert refused.value.found is not None
    assert problem in refused.value.found


def test_a_real_registry_with_tokens(tmp_path: Path, client: httpx.Client) -> None:
    """Debian's docker-registry with a token server, read anonymously like Docker Hub."""
    with images.running(tmp_path) as place, running() as upstream:
        upstream.answers["/k3s/amd64"] = hostile.honest(DATA)
        image = images.make(tmp_path / "dist", "mirrors")
        name = place.name("library/debian")
        place.registry(name, Line()).push_layout(tmp_path / "dist/image", image.digest, Log(quiet=True))
        lock = replace(
            lock_at(upstream, "k3s"), base=replace(LOCK.base, image=f"{name}:trixie-slim", digest=image.digest)
        )
        base, _ = run(INTENT, lock, client)
    assert (base.kind, base.has, base.of, base.problem) == ("registry", 7, 7, "")
    assert base.base == f"http://{name.registry}/v2/library/debian"
    assert base.latency is not None
    assert base.speed is not None
