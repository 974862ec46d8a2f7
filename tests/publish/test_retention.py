"""Retention and rollback, for real against a registry."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.core.errors import IntentError, RegistryError
from pipeline.core.log import Log
from pipeline.core.names import INDEX, MANIFEST, Digest, ImageName
from pipeline.core.records import Image, Variant
from pipeline.oci.github_packages import Packages
from pipeline.oci.registry import Registry
from pipeline.publish import retention, rollback
from pipeline.publish.retention import Rule
from tests.helpers.examples import INTENT, LOCK
from tests.helpers.examples import digest as made_up
from tests.helpers.images import Line, Place, make, publication, publish, running

LOG = Log(quiet=True)
NOW = datetime(2026, 11, 1, tzinfo=UTC)
OLD = timedelta(days=400)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running(tmp_path_factory.mktemp("registry")) as place:
        yield place


class Shelf:
    """Repositories of the test, filled release by release."""

    def __init__(self, place: Place, dist: Path, test: str) -> None:
        self.place, self.dist = place, dist
        self.names = (place.name(f"{test}/a"), place.name(f"{test}/b"))
        self.line = Line()

    def registry(self, name: ImageName, line: Line | None = None) -> Registry:
        return self.place.registry(name, line or self.line)

    def release(
        self, k3s: str, *, age: timedelta = OLD, seed: str = "", names: int = 2, on: Image | None = None
    ) -> Image:
        """Publish an image of that k3s, made so long ago; or the variant that is made on it."""
        lock = replace(LOCK, versions={**LOCK.versions, "k3s": k3s})

        def dated(kind: str, data: dict[str, Any]) -> None:
            if kind in ("index", "manifest"):
                data["annotations"]["org.opencontainers.image.created"] = (NOW - age).isoformat()

        variant = Variant.AIRGAP if on else Variant.IMAGE
        dist = variant.below(self.dist)
        image = make(dist, f"{self.names[0]} {k3s} {seed}", variant, lock=lock, change=dated)
        intent = replace(INTENT, names=self.names[:names], policy={})
        publish(publication(intent, lock, image, dist, self.registry, base=on))
        return image

    def sign(self, about: Digest) -> Digest:
        """Attach something to a manifest, as cosign does where there is no referrers API."""
        registry = self.registry(self.names[0])
        raw = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "about": about.text}).encode()
        registry.tag(f"sha256-{about.hex}", raw, INDEX)
        return Digest.of(raw)

    def plan(self, newest: int, younger: int = 30) -> retention.Plan:
        return retention.plan(self.registry(self.names[0]), Rule(newest=newest, younger=timedelta(days=younger)), NOW)

    def tags(self, name: int = 0) -> dict[str, Digest]:
        registry = self.place.anonymous(self.names[name])
        return {tag: found.digest for tag in registry.tags() if (found := registry.manifest(tag)) is not None}


@pytest.fixture
def shelf(place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> Shelf:
    return Shelf(place, tmp_path, request.node.name.replace("_", "-").partition("[")[0])


def fixed(k3s: str, count: int = 1) -> str:
    return f"k3s-{k3s.replace('+', '-')}-docker-29.7.2-r{count}"


# Retention


def test_the_newest_of_each_line_the_young_and_what_a_moving_tag_names_are_kept(shelf: Shelf) -> None:
    for k3s in ("v1.36.1+k3s1", "v1.36.2+k3s1", "v1.37.1+k3s1", "v1.37.2+k3s1"):
        shelf.release(k3s)
    shelf.release("v1.37.3+k3s1", age=timedelta(days=3))
    shelf.release("v1.37.4+k3s1")
    plan = shelf.plan(newest=1)
    assert plan.tags == (fixed("v1.36.1+k3s1"), fixed("v1.37.1+k3s1"), fixed("v1.37.2+k3s1"))
    assert plan.kept[fixed("v1.37.3+k3s1")] == "it is younger than 30 days"
    assert plan.kept["latest"] == "it moves, or is not one of ours"
    assert shelf.plan(newest=2).tags == (fixed("v1.37.1+k3s1"), fixed("v1.37.2+k3s1"))


def test_what_goes_is_gone_with_all_its_parts_and_what_stays_is_whole(shelf: Shelf) -> None:
    gone = shelf.release("v1.37.1+k3s1")
    signature = shelf.sign(gone.digest)
    stays = shelf.release("v1.37.2+k3s1")
    kept_signature = shelf.sign(stays.digest)
    registry = shelf.registry(shelf.names[0])
    plan = retention.run(registry, Rule(newest=1, younger=timedelta(days=30)), LOG, registry.delete)
    assert plan.digests[:2] == (signature, gone.digest)  # what can still be pulled is whole at every moment
    for digest in (gone.digest, signature, *(built.digest for built in gone.platforms.values())):
        assert registry.manifest(digest.text) is None
    for digest in (stays.digest, kept_signature, *(built.digest for built in stays.platforms.values())):
        assert registry.manifest(digest.text) is not None
    assert fixed("v1.37.1+k3s1") not in shelf.tags()
    assert shelf.tags()["latest"] == stays.digest
    assert shelf.plan(newest=1).digests == ()


def test_a_part_that_a_kept_release_shares_is_not_deleted(shelf: Shelf) -> None:
    first = shelf.release("v1.37.1+k3s1")
    shelf.release("v1.37.2+k3s1")
    registry = shelf.registry(shelf.names[0])
    shared = next(iter(first.platforms.values())).digest
    part = registry.manifest(shared.text)
    assert part is not None
    entry = {"mediaType": MANIFEST, "digest": shared.text, "size": len(part.raw)}
    entry |= {"platform": {"os": "linux", "architecture": "amd64"}}
    raw = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    registry.tag("mine", raw, INDEX)
    plan = shelf.plan(newest=1)
    assert plan.tags == (fixed("v1.37.1+k3s1"),)
    assert first.digest in plan.digests
    assert shared not in plan.digests


def test_nothing_is_deleted_unless_asked_and_a_broken_index_stops_it(shelf: Shelf) -> None:
    broken = shelf.release("v1.37.1+k3s1")
    shelf.release("v1.37.2+k3s1")
    shelf.line.requests.clear()
    retention.run(shelf.registry(shelf.names[0]), Rule(newest=1, younger=timedelta()), LOG, None)
    assert shelf.line.written == []
    shelf.place.forget_manifest(shelf.names[0], next(iter(broken.platforms.values())).digest)
    registry = shelf.registry(shelf.names[0])
    with pytest.raises(RegistryError, match="lacks one of its manifests, so nothing is removed"):
        retention.run(registry, Rule(newest=1, younger=timedelta()), LOG, registry.delete)
    assert shelf.line.written == []


class Meeting(Line):
    """Lets no manifest through before a second one is asked for at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self._barrier = threading.Barrier(2, timeout=30)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET" and "/manifests/" in request.url.path:
            self._barrier.wait()
        return super().handle_request(request)


def test_manifests_are_asked_for_at_the_same_time_and_each_reference_once(shelf: Shelf) -> None:
    releases = [shelf.release(f"v1.37.{patch}+k3s1", names=1) for patch in (1, 2, 3)]
    tags = len(shelf.tags())
    parts = len(releases) * 4  # two platforms and their attestations
    assert (tags % 2, parts % 2) == (0, 0), "in pairs"
    line = Meeting()
    registry = shelf.registry(shelf.names[0], line)
    registry.tags()  # asks for the token that all requests share
    plan = retention.plan(registry, Rule(newest=2, younger=timedelta()), NOW)
    assert plan.tags == (fixed("v1.37.1+k3s1"),)
    asked = [str(request.url) for request in line.requests if "/manifests/" in request.url.path]
    assert len(asked) == len(set(asked)) == tags + parts


def test_what_a_registry_lists_as_attached_goes_too(shelf: Shelf) -> None:
    """The registry of the tests keeps no such list, so its answers are completed on their way."""
    gone = shelf.release("v1.37.1+k3s1", names=1)
    stays = shelf.release("v1.37.2+k3s1", names=1)
    registry = shelf.registry(shelf.names[0])
    signatures = {}
    for image in (gone, stays):
        raw = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "about": image.digest.text}).encode()
        signatures[image.digest] = Digest.of(raw)
        registry.tag(Digest.of(raw).text, raw, INDEX)

    def listed(subject: Digest) -> list[dict[str, Any]]:
        return [{"digest": signatures[subject].text}] if subject in signatures else []

    registry.referrers = listed  # type: ignore[method-assign]
    plan = retention.run(registry, Rule(newest=1, younger=timedelta()), LOG, registry.delete)
    assert plan.digests[:2] == (signatures[gone.digest], gone.digest)
    assert registry.manifest(signatures[gone.digest].text) is None
    assert registry.manifest(signatures[stays.digest].text) is not None


# GitHub's packages


class GitHub:
    """The part of its API that removes versions of a package, as documented, two a page."""

    def __init__(self, *digests: Digest, kind: str = "users") -> None:
        self.path = f"/{kind}/somebody/packages/container/tools%2Fdind-k3s"
        self.versions = dict(enumerate(digests, 1))
        self.refused = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, _, query = request.url.raw_path.decode().partition("?")
        if self.refused or request.headers.get("Authorization") != "Bearer secret":
            return httpx.Response(401)
        if path == self.path:
            return httpx.Response(200, json={"name": "tools/dind-k3s"})
        if path == f"{self.path}/versions":
            first = int(httpx.QueryParams(query).get("after", "0"))
            page = [{"id": number, "name": one.text} for number, one in self.versions.items() if number > first][:2]
            more = len(page) == 2
            link = f'<https://api.github.com{path}?per_page=100&after={page[-1]["id"]}>; rel="next"' if more else ""
            return httpx.Response(200, json=page, headers={"Link": link} if link else {})
        number = int(path.rpartition("/")[2]) if path.startswith(f"{self.path}/versions/") else 0
        if request.method == "DELETE" and number in self.versions:
            del self.versions[number]
            return httpx.Response(204)
        return httpx.Response(404)


@pytest.mark.parametrize("kind", ["orgs", "users"])
def test_versions_of_a_package_are_removed_by_their_digest(kind: str) -> None:
    digests = [made_up(f"version {number}") for number in range(5)]
    github = GitHub(*digests, kind=kind)
    name = ImageName(registry="ghcr.io", repository="somebody/tools/dind-k3s")
    with httpx.Client(transport=httpx.MockTransport(github)) as client:
        packages = Packages(client, name, "secret")
        packages.delete(digests[4])
        packages.delete(digests[0])
        packages.delete(made_up("never there"))
        assert [*github.versions.values()] == digests[1:4]
        github.refused = True
        with pytest.raises(RegistryError, match="GitHub refuses DELETE") as failure:
            packages.delete(digests[1])
        assert "secret" not in str(failure.value)
        with pytest.raises(RegistryError, match="GitHub refuses GET"):
            Packages(client, name, None).delete(digests[1])


# Rollback


def test_moving_tags_go_back_everywhere_and_fixed_ones_stay(shelf: Shelf) -> None:
    older = shelf.release("v1.37.1+k3s1")
    newer = shelf.release("v1.37.2+k3s1")
    moves = rollback.run(shelf.names, fixed("v1.37.1+k3s1"), shelf.registry, LOG, dry_run=True)
    assert len(moves) == 6
    assert shelf.tags()["latest"] == newer.digest
    rollback.run(shelf.names, older.digest.text, shelf.registry, LOG, dry_run=False)
    for name in (0, 1):
        tags = shelf.tags(name)
        assert {tags[tag] for tag in ("latest", "v1.37", "v1.37-docker29")} == {older.digest}
        assert tags[fixed("v1.37.2+k3s1")] == newer.digest
    assert rollback.run(shelf.names, fixed("v1.37.1+k3s1"), shelf.registry, LOG, dry_run=False) == ()
    newest = shelf.release("v1.37.3+k3s1")
    assert shelf.tags()["latest"] == newest.digest


def test_a_variant_goes_back_by_its_own_name_and_takes_nothing_else_along(shelf: Shelf) -> None:
    older = [shelf.release("v1.37.1+k3s1")]
    older.append(shelf.release("v1.37.1+k3s1", on=older[0]))
    newer = shelf.release("v1.37.2+k3s1")
    shelf.release("v1.37.2+k3s1", on=newer)
    rollback.run(shelf.names, f"{fixed('v1.37.1+k3s1')}-airgap", shelf.registry, LOG, dry_run=False)
    assert shelf.tags()["latest"] == newer.digest
    assert shelf.tags()["latest-airgap"] == older[1].digest
    rollback.run(shelf.names, fixed("v1.37.1+k3s1"), shelf.registry, LOG, dry_run=False)
    assert [shelf.tags()[f"v1.37{suffix}"] for suffix in ("", "-airgap")] == [image.digest for image in older]


def test_another_lines_tags_are_left_alone(shelf: Shelf) -> None:
    older = shelf.release("v1.36.1+k3s1")
    newer = shelf.release("v1.37.1+k3s1")
    rollback.run(shelf.names, fixed("v1.36.1+k3s1"), shelf.registry, LOG, dry_run=False)
    assert shelf.tags()["latest"] == older.digest
    assert shelf.tags()["v1.37"] == newer.digest


def test_a_target_that_is_missing_somewhere_moves_nothing(shelf: Shelf) -> None:
    shelf.release("v1.37.1+k3s1", names=1)
    shelf.release("v1.37.2+k3s1")
    shelf.line.requests.clear()
    with pytest.raises(RegistryError, match=r"/b has no k3s-v1\.37\.1") as refused:
        rollback.run(shelf.names, fixed("v1.37.1+k3s1"), shelf.registry, LOG, dry_run=False)
    assert fixed("v1.37.2+k3s1") in str(refused.value)
    assert shelf.line.written == []


def test_a_repository_whose_tags_cannot_be_read_moves_nothing_anywhere(shelf: Shelf) -> None:
    class Broken(Line):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/b/manifests/latest"):
                raise httpx.ConnectError("Connection refused", request=request)
            return super().handle_request(request)

    shelf.release("v1.37.1+k3s1")
    newer = shelf.release("v1.37.2+k3s1")
    line = Broken()
    with pytest.raises(RegistryError, match="is not available"):
        rollback.run(shelf.names, fixed("v1.37.1+k3s1"), lambda name: shelf.registry(name, line), LOG, dry_run=False)
    assert line.written == []
    assert shelf.tags()["latest"] == newer.digest


def test_a_platforms_manifest_is_no_release(shelf: Shelf) -> None:
    image = shelf.release("v1.37.2+k3s1")
    part = next(iter(image.platforms.values())).digest
    with pytest.raises(IntentError, match="is not a release of this project"):
        rollback.run(shelf.names, part.text, shelf.registry, LOG, dry_run=False)
