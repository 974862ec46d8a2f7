"""Resolve against the rehearsal's origin layout on a real HTTP server, without apt and a base image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from pipeline.core.errors import DigestMismatch, Incompatible, UpstreamError
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.http import transport
from pipeline.inputs import changes, lock
from pipeline.inputs.evidence import Evidence, Grade
from pipeline.inputs.lock import Base, Lock
from pipeline.inputs.versions import Intent
from pipeline.rehearsal import origin
from pipeline.resolve import resolve
from pipeline.resolve.origins import Origins
from tests.helpers.examples import INTENT, PUBLISHED, artifact, digest

CHANNELS = {"docker": "latest", "buildx": "latest", "compose": "2", "k3s": "stable", "kubectl": "k3s"}


class Upstream:
    """An origin on disk, and an intent for it."""

    def __init__(self, folder: Path, url: str, client: httpx.Client) -> None:
        self.folder = folder
        self.client = client
        self.intent = replace(
            INTENT,
            components=CHANNELS,
            upstream={key: f"{url}/{host}" for key, host in origin.HOSTS.items()},
        )
        self.docker("28.5.2")
        for name, version in (("buildx", "0.29.1"), ("compose", "2.40.3")):
            origin.publish(folder, name, version, {p: f"{name} {p}".encode() for p in Platform})
        self.k3s("v1.37.1+k3s1")
        origin.publish(folder, "kubectl", "v1.37.4", {p: f"kubectl {p}".encode() for p in Platform})

    def docker(self, version: str, text: str = "docker") -> None:
        origin.publish(self.folder, "docker", version, {p: f"{text} {version} {p}".encode() for p in Platform})

    def k3s(self, version: str, text: str = "k3s") -> None:
        origin.publish(self.folder, "k3s", version, {p: f"{text} {version} {p}".encode() for p in Platform})

    def path(self, key: str, below: str) -> Path:
        return self.folder / origin.HOSTS[key] / below

    def resolve(self, previous: Lock | None = None, intent: Intent | None = None) -> Lock:
        intent, log = intent or self.intent, Log(quiet=True)
        system = resolve.System(
            intent=intent, registry_for=lambda name: pytest.fail(str(name)), cache=self.folder, log=log
        )
        return resolve.run(Origins(intent, self.client, log), system, previous, self.folder)


@pytest.fixture
def vendors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    base = Base(image=INTENT.base, digest=digest("base"), evidence=PUBLISHED)
    monkeypatch.setattr(resolve.System, "base", lambda _: base)
    packages = (artifact("iptables", Platform.AMD64),), (artifact("busybox-static", Platform.AMD64),)
    monkeypatch.setattr(resolve.System, "packages", lambda *_: packages)
    port = _free_port()
    with origin.serve(tmp_path, port), transport.make_client() as client:
        yield Upstream(tmp_path, f"http://127.0.0.1:{port}", client)


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_channels_become_versions_and_equal_responses_give_equal_bytes(vendors: Upstream) -> None:
    first = vendors.resolve()
    assert dict(first.versions) == {
        "docker": "28.5.2",
        "buildx": "0.29.1",
        "compose": "2.40.3",
        "k3s": "v1.37.1+k3s1",
        "kubectl": "v1.37.4",
    }
    assert {file.grade for file in first.artifacts if file.component == "docker"} == {Grade.FIRST_USE}
    assert {file.grade for file in first.artifacts if file.component == "k3s"} == {Grade.PUBLISHED}
    again = vendors.resolve(lock.parse(lock.render(first), "x"))
    assert lock.render(again) == lock.render(first)


def test_an_unchanged_lock_keeps_its_date_and_a_changed_one_gets_today(vendors: Upstream) -> None:
    first = replace(vendors.resolve(), date="2020-01-01")
    assert vendors.resolve(first).date == "2020-01-01"
    vendors.docker("28.10.0")
    changed = vendors.resolve(first)
    assert changed.date == datetime.now(UTC).date().isoformat()
    assert changes.lines(first, changed)[0] == "docker 28.5.2 → 28.10.0"


def test_another_guest_leaves_the_date_and_is_logged(vendors: Upstream) -> None:
    made = vendors.resolve()
    gone = replace(artifact("linux-image-6.12", Platform.ARM64), version="6.12.117-1")
    first = replace(made, date="2020-01-01", guest=(replace(made.guest[0], version="0.9-1"), gone))
    changed = vendors.resolve(first)
    assert (changed.date, changed.digest, changed.guest) == ("2020-01-01", first.digest, made.guest)
    assert changes.lines(first, changed) == [
        "guest busybox-static (amd64): 0.9-1 → 1.0-1",
        "guest linux-image-6.12 (arm64): 6.12.117-1 → none",
    ]
    other = replace(changed, guest=(replace(changed.guest[0], digest=digest("rebuilt")),))
    assert changes.lines(changed, other) == ["busybox-static 1.0-1 (amd64): another digest"]


def test_a_version_that_one_platform_lacks_is_not_chosen(vendors: Upstream) -> None:
    vendors.docker("28.10.0")
    vendors.path("docker", "linux/static/stable/aarch64/docker-28.10.0.tgz").unlink()
    assert vendors.resolve().versions["docker"] == "28.5.2"


def test_a_release_without_a_platform_stops_the_run(vendors: Upstream) -> None:
    vendors.path("github", "k3s-io/k3s/releases/download/v1.37.1+k3s1/k3s-arm64").unlink()
    with pytest.raises(UpstreamError, match=r"k3s v1\.37\.1\+k3s1 for linux/arm64"):
        vendors.resolve()


def test_a_checksum_file_that_does_not_list_the_file_stops_the_run(vendors: Upstream) -> None:
    vendors.path("github", "docker/buildx/releases/download/v0.29.1/checksums.txt").write_text("")
    with pytest.raises(UpstreamError, match="does not list buildx"):
        vendors.resolve()


def test_a_digest_that_changed_under_the_same_version_is_refused(vendors: Upstream) -> None:
    first = vendors.resolve()
    vendors.k3s("v1.37.1+k3s1", "replaced")
    with pytest.raises(DigestMismatch, match="another digest than the lock"):
        vendors.resolve(first)


def test_digests_of_docker_are_kept_from_the_lock(vendors: Upstream) -> None:
    first = vendors.resolve()
    reason = Evidence(grade=Grade.CORROBORATED, source="five projects record it", observed="2026-01-01")
    known = tuple(replace(file, evidence=(reason,)) if file.component == "docker" else file for file in first.artifacts)
    again = vendors.resolve(replace(first, artifacts=known))
    assert {file.evidence for file in again.artifacts if file.component == "docker"} == {(reason,)}


def test_incompatible_versions_are_refused(vendors: Upstream) -> None:
    components = {**CHANNELS, "kubectl": "v1.30.0"}
    with pytest.raises(Incompatible):
        vendors.resolve(intent=replace(vendors.intent, components=components))


def test_an_unreachable_origin_is_reported(vendors: Upstream) -> None:
    upstream = {**vendors.intent.upstream, "kubernetes": f"http://127.0.0.1:{_free_port()}"}
    with pytest.raises(UpstreamError, match=r"channel 1\.37: 127\.0\.0\.1 cannot be reached"):
        vendors.resolve(intent=replace(vendors.intent, upstream=upstream))


def test_the_origins_port_is_taken(vendors: Upstream, tmp_path: Path) -> None:
    from pipeline.core.errors import EngineError

    port = int(vendors.intent.upstream["docker"].split(":")[2].split("/")[0])
    with pytest.raises(EngineError, match=f"127.0.0.1:{port}"), origin.serve(tmp_path, port):
        pass
