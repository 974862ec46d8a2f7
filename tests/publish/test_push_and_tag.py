"""Pushing and tagging, for real against a registry with token authentication."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.annotations import REHEARSAL
from pipeline.core.errors import (
    BuildFailed,
    DigestMismatch,
    IntentError,
    LockStale,
    RegistryError,
    SmokeFailed,
    VerificationFailed,
)
from pipeline.core.log import Log
from pipeline.core.names import Digest, ImageName
from pipeline.core.records import Image, Release, Variant
from pipeline.inputs.evidence import Grade
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent
from pipeline.oci.credentials import Credentials
from pipeline.oci.registry import Registry
from pipeline.publish import push, tag
from pipeline.publish.publication import Publication
from tests.helpers.examples import INTENT, LOCK, digest
from tests.helpers.images import Line, Place, make, publish, running, scanned, smoked

LOG = Log(quiet=True)
FIXED = "k3s-v1.37.1-k3s1-docker-29.7.2-r"
MOVING = ("v1.37-docker29", "v1.37", "latest")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running(tmp_path_factory.mktemp("registry")) as place:
        yield place


class Publisher:
    """One machine that publishes to repositories named after the test."""

    def __init__(self, place: Place, dist: Path, test: str) -> None:
        self.place, self.dist = place, dist
        self.names: tuple[ImageName, ...] = (place.name(f"{test}/a"),)
        self.lock = LOCK
        self.line = Line()
        self.credentials: Credentials | None = None
        self.policy: dict[str, Grade] = {}

    def build(self, seed: str, *, variant: Variant = Variant.IMAGE, rehearsed: bool = False) -> Image:
        """Another image of the same lock. Seeds are unlike every other test's."""
        folder = variant.below(self.dist)
        self.image = make(folder, f"{self.names[0]} {seed}", variant, lock=self.lock, rehearsed=rehearsed)
        return self.image

    @property
    def intent(self) -> Intent:
        return replace(INTENT, names=self.names, policy=self.policy)

    def publication(self, **changes: Any) -> Publication:
        given: dict[str, Any] = {
            "intent": self.intent,
            "lock": self.lock,
            "image": self.image,
            "dist": self.image.variant.below(self.dist),
            "registry_for": self._registry,
        }
        return Publication(**given | changes, log=LOG)

    def publish(self, *, on: Image | None = None) -> Release:
        return publish(self.publication(base=on))

    def _registry(self, name: ImageName) -> Registry:
        return self.place.registry(name, self.line, self.credentials)

    def tags(self, name: ImageName | None = None) -> dict[str, Digest]:
        """What an anonymous client sees."""
        registry = self.place.anonymous(name or self.names[0])
        found = {tag: registry.manifest(tag) for tag in registry.tags()}
        return {tag: manifest.digest for tag, manifest in found.items() if manifest is not None}


@pytest.fixture
def publisher(place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> Publisher:
    return Publisher(place, tmp_path, request.node.name.replace("_", "-").partition("[")[0])


def _lock(**versions: str) -> Lock:
    return replace(LOCK, versions={**LOCK.versions, **versions})


def test_digests_that_the_policy_does_not_believe_are_not_published(publisher: Publisher) -> None:
    publisher.build("weak")
    publisher.policy = {"default": Grade.PUBLISHED, "k3s": Grade.SIGNED}
    sentence = r"k3s v1\.37\.1\+k3s1 for linux/amd64 is published, and the policy asks for signed or better"
    with pytest.raises(VerificationFailed, match=sentence):
        publisher.publish()
    assert publisher.tags() == {}
    publisher.policy = {"default": Grade.PUBLISHED}
    assert publisher.publish().digest == publisher.image.digest


# Names


@pytest.mark.parametrize(
    ("k3s", "docker", "fixed", "moving"),
    [
        ("v1.37.1+k3s1", "29.7.2", FIXED, MOVING),
        ("v1.35.12+k3s2", "28.5.2", "k3s-v1.35.12-k3s2-docker-28.5.2-r", ("v1.35-docker28", "v1.35", "latest")),
        ("v1.37.1+standin", "28.5.2+x", "k3s-v1.37.1-standin-docker-28.5.2-x-r", ("v1.37-docker28", "v1.37", "latest")),
    ],
)
def test_the_tags_of_a_lock(k3s: str, docker: str, fixed: str, moving: tuple[str, ...]) -> None:
    lock = _lock(k3s=k3s, docker=docker)
    assert tag.fixed_prefix(lock) == fixed
    assert tag.moving(lock) == moving
    assert len(fixed) < 120  # a registry takes 128


# Variants


def test_a_variant_has_the_tags_of_its_image_with_its_name_behind(publisher: Publisher) -> None:
    publisher.build("earlier")
    publisher.publish()
    image = publisher.build("1")
    publisher.publish()
    sent = len(publisher.line.written)
    airgap = publisher.build("1", variant=Variant.AIRGAP)
    release = publisher.publish(on=image)
    # the number is the image's, although there was no first one of the variant
    theirs = [f"{FIXED}2-airgap", *(f"{tag}-airgap" for tag in MOVING)]
    ours = {f"{FIXED}2": image.digest, **dict.fromkeys(MOVING, image.digest)}
    assert publisher.tags().items() >= {**ours, **dict.fromkeys(theirs, airgap.digest)}.items()
    assert len(publisher.tags()) == 1 + 2 * len(theirs)
    assert release.tagged == tuple(f"{publisher.names[0]}:{tag}" for tag in theirs)
    assert Release.read(publisher.dist / "airgap", airgap.digest) == release
    blobs = [request for request in publisher.line.written[sent:] if request.method == "POST"]
    assert len(blobs) == 4  # a layer and a config for each platform; what the image has is there
    publisher.line = Line()
    assert publisher.publish(on=image) == release
    assert publisher.line.written == []


def test_a_variant_of_another_image_is_refused(publisher: Publisher) -> None:
    image = publisher.build("1")
    publisher.build("2", variant=Variant.AIRGAP)
    with pytest.raises(BuildFailed, match="is not the image and one layer more"):
        publisher.publish(on=image)
    assert publisher.line.requests == []


# Publishing


def test_an_image_is_pushed_and_tagged(publisher: Publisher) -> None:
    image = publisher.build("1")
    release = publisher.publish()
    assert publisher.tags() == dict.fromkeys([f"{FIXED}1", *MOVING], image.digest)
    name = publisher.names[0]
    assert release == Release(
        digest=image.digest,
        smoked=(
            *(f"linux/amd64 {tier}: passed" for tier in ("files", "commands", "boot")),
            *(f"linux/arm64 {tier}" for tier in ("files: passed", "commands: not run", "boot: passed")),
        ),
        scanned=("linux/amd64: grype 0.104.0", "linux/arm64: grype 0.104.0"),
        pushed=(str(name),),
        signed=(str(name),),
        tagged=tuple(f"{name}:{tag}" for tag in (f"{FIXED}1", *MOVING)),
    )
    assert Release.read(publisher.dist, image.digest) == release


def test_the_same_twice_does_nothing(publisher: Publisher) -> None:
    publisher.build("1")
    first = publisher.publish()
    publisher.line = Line()
    assert publisher.publish() == first
    assert publisher.line.written == []


def test_the_same_twice_does_nothing_without_its_memory(publisher: Publisher) -> None:
    publisher.build("1")
    first = publisher.publish()
    (publisher.dist / "release.json").unlink()
    publisher.line = Line()
    assert publisher.publish() == first
    assert publisher.line.written == []


def test_another_image_of_the_same_versions_gets_the_next_number(publisher: Publisher) -> None:
    first = publisher.build("1")
    publisher.publish()
    second = publisher.build("2")
    publisher.publish()
    assert publisher.tags() == {
        f"{FIXED}1": first.digest,
        f"{FIXED}2": second.digest,
        **dict.fromkeys(MOVING, second.digest),
    }


def test_all_repositories_get_the_same_name_for_it(publisher: Publisher) -> None:
    one, other = publisher.names[0], publisher.place.name(f"{publisher.names[0].repository}-other")
    publisher.build("1")
    publisher.publish()
    publisher.names = (other, one)
    second = publisher.build("2")
    publisher.publish()
    assert publisher.tags(one)[f"{FIXED}2"] == second.digest
    assert publisher.tags(other) == dict.fromkeys([f"{FIXED}2", *MOVING], second.digest)


def test_a_tag_that_never_moves_is_never_overwritten(publisher: Publisher) -> None:
    one, other = publisher.names[0], publisher.place.name(f"{publisher.names[0].repository}-other")
    publisher.names = (other,)
    theirs = publisher.build("theirs")
    publisher.publish()
    publisher.names = (one,)
    ours = publisher.build("ours")
    publisher.publish()
    publisher.names, publisher.line = (one, other), Line()
    with pytest.raises(RegistryError, match="never moves") as failure:
        publisher.publish()
    assert theirs.digest.text in str(failure.value)
    assert ours.digest.text in str(failure.value)
    assert f"{other}:{FIXED}1" in str(failure.value)
    assert publisher.tags(other)[f"{FIXED}1"] == theirs.digest
    paths = [request.url.path for request in publisher.line.written if "/manifests/" in request.url.path]
    assert [path for path in paths if "/manifests/sha256:" not in path] == []  # no tag was written anywhere


def test_a_tag_taken_in_the_last_moment_is_not_overwritten(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two releases at once: the other one's tag is not in the list yet when we choose our number."""
    theirs = publisher.build("theirs")
    publisher.publish()
    publisher.build("ours")
    monkeypatch.setattr(Registry, "tags", lambda self: ())
    with pytest.raises(RegistryError, match="never moves"):
        publisher.publish()
    monkeypatch.undo()
    assert publisher.tags()[f"{FIXED}1"] == theirs.digest


@pytest.mark.parametrize(
    ("later", "stay"),
    [
        ({"k3s": "v1.36.9+k3s1"}, ["latest"]),
        ({"k3s": "v1.37.0+k3s1"}, sorted(MOVING)),
        ({"docker": "29.7.1"}, sorted(MOVING)),
        ({"docker": "28.9.9"}, ["latest", "v1.37"]),
        ({"k3s": "v1.37.1+k3s2"}, []),
        ({"k3s": "v1.37.10+k3s1"}, []),
        ({"k3s": "v1.38.0+k3s1", "docker": "29.0.0"}, []),
    ],
    ids=str,
)
def test_a_tag_moves_forward_only(later: dict[str, str], stay: list[str], publisher: Publisher) -> None:
    publisher.names = (publisher.place.name(f"forward-{Digest.of(str(later).encode()).hex[:8]}"),)
    first = publisher.build("first")
    publisher.publish()
    publisher.lock = _lock(**later)
    second = publisher.build("second")
    release = publisher.publish()
    found = publisher.tags()
    for one in tag.moving(publisher.lock):
        assert found[one] == (first.digest if one in stay else second.digest)
        assert (f"{publisher.names[0]}:{one}" in release.tagged) == (one not in stay)


def test_a_revision_of_k3s_counts(publisher: Publisher) -> None:
    publisher.lock = _lock(k3s="v1.37.1+k3s10")
    first = publisher.build("first")
    publisher.publish()
    publisher.lock = _lock(k3s="v1.37.1+k3s9")
    publisher.build("second")
    publisher.publish()
    assert publisher.tags()["latest"] == first.digest


def test_a_tag_of_somebody_else_is_taken_over(publisher: Publisher) -> None:
    unknown = make(publisher.dist, "unknown", change=lambda kind, data: kind == "index" and data.pop("annotations"))
    registry = publisher.place.registry(publisher.names[0], Line())
    registry.push_layout(publisher.dist / "image", unknown.digest, LOG)
    found = registry.manifest(unknown.digest.text)
    assert found is not None
    registry.tag("latest", found.raw, found.media_type)
    image = publisher.build("ours")
    publisher.publish()
    assert publisher.tags()["latest"] == image.digest


@pytest.mark.parametrize("dies_after", [3, 12, 30, 38])
def test_an_interrupted_release_goes_on(dies_after: int, publisher: Publisher) -> None:
    publisher.names = (publisher.place.name(f"goes-on-{dies_after}"),)
    image = publisher.build("1")
    publisher.line = Line(dies_after)
    with pytest.raises(RegistryError, match="Connection refused"):
        publisher.publish()
    assert set(publisher.tags()) < {f"{FIXED}1", *MOVING}
    publisher.line = Line()
    release = publisher.publish()
    assert publisher.tags() == dict.fromkeys([f"{FIXED}1", *MOVING], image.digest)
    assert len(release.tagged) == 4


def test_what_is_left_is_told_and_nothing_is_written(publisher: Publisher) -> None:
    image = publisher.build("1")

    def anonymous(name: ImageName) -> Registry:
        return publisher.place.anonymous(name)

    def left() -> tuple[list[str], list[str]]:
        publication = publisher.publication(registry_for=anonymous)
        return push.left(publication), tag.left(publication)

    name = publisher.names[0]
    pushing = [f"push {image.digest} to {name}"]
    assert left() == (pushing, [f"{name}:{tag}: create it" for tag in (f"{FIXED}1", *MOVING)])
    assert not (publisher.dist / "release.json").exists()
    assert publisher.tags() == {}
    publisher.publish()
    assert left() == ([], [])
    # what is recorded is not believed when it is gone
    publisher.place.forget_manifest(name, image.digest)
    assert left()[0] == pushing


def test_a_newer_release_keeps_its_tags(publisher: Publisher) -> None:
    publisher.lock = _lock(k3s="v1.37.9+k3s1")
    publisher.build("newer")
    publisher.publish()
    publisher.lock = LOCK
    publisher.build("older")
    assert tag.left(publisher.publication()) == [f"{publisher.names[0]}:{FIXED}1: create it"]


def test_a_tag_that_somebody_moved_comes_back(publisher: Publisher) -> None:
    older = _lock(k3s="v1.37.0+k3s1")
    publisher.lock = older
    theirs = publisher.build("theirs")
    publisher.publish()
    publisher.lock = LOCK
    image = publisher.build("ours")
    publisher.publish()
    registry = publisher._registry(publisher.names[0])
    found = registry.manifest(theirs.digest.text)
    assert found is not None
    registry.tag("latest", found.raw, found.media_type)
    assert tag.left(publisher.publication()) == [f"{publisher.names[0]}:latest: move it from {theirs.digest}"]
    publisher.publish()
    assert publisher.tags()["latest"] == image.digest


# Refusing; none of these may write to a registry


def _refused(publisher: Publisher, kind: type[Exception], match: str, **changes: Any) -> None:
    image = publisher.image
    given: dict[str, Any] = {"smoked": smoked(image), "scanned": scanned(image), **changes}
    intent = replace(INTENT, names=given.get("names", publisher.names))
    publication = publisher.publication(intent=intent, lock=given.get("lock", publisher.lock))
    with pytest.raises(kind, match=match):
        push.run(publication, given["smoked"], given["scanned"])
    assert publisher.line.requests == []


def test_an_unsmoked_image_is_refused(publisher: Publisher) -> None:
    reports = smoked(publisher.build("smoked"))
    publisher.build("not smoked")
    _refused(publisher, SmokeFailed, "was not smoked", smoked=reports)
    _refused(publisher, SmokeFailed, "was not smoked", smoked=[])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"index": digest("another index")}, "was not scanned for vulnerabilities"),
        ({"digest": digest("another manifest")}, "was not scanned for vulnerabilities"),
        ({"refused": ("CVE-2026-1 (high) in x 1, fixed in 2: …",)}, "CVE-2026-1"),
        ({"database": datetime.now(UTC) - timedelta(days=6)}, "too old by now"),
    ],
)
def test_an_image_that_was_not_scanned_is_refused(publisher: Publisher, changes: Any, sentence: str) -> None:
    image = publisher.build("scanned")
    _refused(publisher, VerificationFailed, sentence, scanned=scanned(image, **changes))
    _refused(publisher, VerificationFailed, "was not scanned for vulnerabilities", scanned=scanned(image)[:1])


def test_what_is_not_signed_everywhere_gets_no_tag(publisher: Publisher) -> None:
    one, other = publisher.names[0], publisher.place.name(f"{publisher.names[0].repository}-other")
    publisher.names = (one, other)
    image = publisher.build("1")
    publication = publisher.publication()
    with pytest.raises(IntentError, match=f"is not signed in {one}"):
        tag.run(publication)
    release = push.run(publication, smoked(image), scanned(image))
    release.having(signed=str(one)).write(publisher.dist)
    with pytest.raises(IntentError, match=f"is not signed in {other}") as failure:
        tag.run(publication)
    assert "nox -s sign" in str(failure.value)
    assert publisher.tags() == {}


def test_an_image_of_another_lock_is_refused(publisher: Publisher) -> None:
    publisher.build("1")
    _refused(publisher, LockStale, "another lock", lock=_lock(k3s="v1.37.2+k3s1"))


@pytest.mark.parametrize("registry", ["ghcr.io", "10.0.0.1:5000", "127.0.0.1.example:5000"])
@pytest.mark.parametrize("says_so", ["in image.json", "on the index"])
def test_a_rehearsed_image_stays_on_this_machine(registry: str, says_so: str, publisher: Publisher) -> None:
    name = ImageName(registry=registry, repository="dind-k3s")
    publisher.build("1", rehearsed=True)
    if says_so == "on the index":
        publisher.image = make(
            publisher.dist,
            "1",
            change=lambda kind, data: kind == "index" and data["annotations"].update({REHEARSAL: "x"}),
        )
    _refused(publisher, RegistryError, "never leaves this machine", names=(*publisher.names, name))


def test_a_rehearsed_image_may_go_to_loopback(publisher: Publisher) -> None:
    image = publisher.build("1", rehearsed=True)
    publisher.publish()
    assert publisher.tags()["latest"] == image.digest


def test_changed_bytes_are_refused(publisher: Publisher) -> None:
    publisher.build("1")
    blobs = publisher.dist / "image" / "blobs" / "sha256"
    largest = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"!")
    _refused(publisher, DigestMismatch, largest.name)


def test_wrong_credentials_are_refused(publisher: Publisher) -> None:
    publisher.build("1")
    publisher.credentials = Credentials(username="rehearsal", password="not-the-password")
    with pytest.raises(RegistryError, match="docker login 127") as failure:
        publisher.publish()
    assert "not-the-password" not in str(failure.value)
    assert publisher.tags() == {}


def test_a_dead_registry_is_named(publisher: Publisher, tmp_path: Path) -> None:
    publisher.build("1")
    publisher.line = Line(dies_after=0)
    with pytest.raises(RegistryError, match=publisher.names[0].registry):
        publisher.publish()
    assert Release.read(tmp_path, digest("x")).pushed == ()
