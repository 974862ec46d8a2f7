"""Publishing, for real against a registry with token authentication."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import publish
from pipeline.bake import REHEARSAL
from pipeline.credentials import Credentials
from pipeline.errors import BuildFailed, DigestMismatch, LockStale, RegistryError, SmokeFailed, VerificationFailed
from pipeline.evidence import Grade
from pipeline.lock import Lock
from pipeline.log import Log
from pipeline.oci import Digest, ImageName
from pipeline.registry import Registry
from pipeline.release import Image, Release, Variant
from tests.examples import INTENT, LOCK, digest
from tests.images import Line, Place, make, running, smoked

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

    def publish(self, *, on: Image | None = None, dry_run: bool = False) -> Release:
        intent = replace(INTENT, names=self.names, policy=self.policy)
        reports, folder = smoked(self.image), self.image.variant.below(self.dist)
        return publish.run(intent, self.lock, self.image, reports, folder, self._registry, LOG, on=on, dry_run=dry_run)

    def _registry(self, name: ImageName) -> Registry:
        return self.place.registry(name, self.line, self.credentials)

    def tags(self, name: ImageName | None = None) -> dict[str, Digest]:
        """What a stranger sees."""
        registry = self.place.stranger(name or self.names[0])
        found = {tag: registry.manifest(tag) for tag in registry.tags()}
        return {tag: manifest.digest for tag, manifest in found.items() if manifest is not None}


@pytest.fixture
def publisher(place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> Publisher:
    return Publisher(place, tmp_path, request.node.name.replace("_", "-").partition("[")[0])


def _lock(**versions: str) -> Lock:
    return replace(LOCK, versions={**LOCK.versions, **versions})


@pytest.mark.parametrize("dry_run", [True, False])
def test_digests_that_the_policy_does_not_believe_are_not_published(publisher: Publisher, *, dry_run: bool) -> None:
    publisher.build("weak")
    publisher.policy = {"default": Grade.PUBLISHED, "k3s": Grade.SIGNED}
    sentence = r"k3s v1\.37\.1\+k3s1 for linux/amd64 is published, and the policy asks for signed or better"
    with pytest.raises(VerificationFailed, match=sentence):
        publisher.publish(dry_run=dry_run)
    assert publisher.tags() == {}
    publisher.policy = {"default": Grade.PUBLISHED}
    assert publisher.publish(dry_run=dry_run).digest == publisher.image.digest


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
    assert publish.fixed_prefix(lock) == fixed
    assert publish.moving(lock) == moving
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
        pushed=(str(name),),
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
    assert publisher.line.written == []


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
        ({"k3s": "v1.36.9+k3s1"}, {"latest"}),
        ({"k3s": "v1.37.0+k3s1"}, set(MOVING)),
        ({"docker": "29.7.1"}, set(MOVING)),
        ({"docker": "28.9.9"}, {"v1.37", "latest"}),
        ({"k3s": "v1.37.1+k3s2"}, set()),
        ({"k3s": "v1.37.10+k3s1"}, set()),
        ({"k3s": "v1.38.0+k3s1", "docker": "29.0.0"}, set()),
    ],
    ids=str,
)
def test_a_tag_moves_forward_only(later: dict[str, str], stay: set[str], publisher: Publisher) -> None:
    publisher.names = (publisher.place.name(f"forward-{Digest.of(str(later).encode()).hex[:8]}"),)
    first = publisher.build("first")
    publisher.publish()
    publisher.lock = _lock(**later)
    second = publisher.build("second")
    release = publisher.publish()
    found = publisher.tags()
    for tag in publish.moving(publisher.lock):
        assert found[tag] == (first.digest if tag in stay else second.digest)
        assert (f"{publisher.names[0]}:{tag}" in release.tagged) == (tag not in stay)


def test_a_revision_of_k3s_counts(publisher: Publisher) -> None:
    publisher.lock = _lock(k3s="v1.37.1+k3s10")
    first = publisher.build("first")
    publisher.publish()
    publisher.lock = _lock(k3s="v1.37.1+k3s9")
    publisher.build("second")
    publisher.publish()
    assert publisher.tags()["latest"] == first.digest


def test_a_tag_of_somebody_else_is_taken_over(publisher: Publisher) -> None:
    foreign = make(publisher.dist, "foreign", change=lambda kind, data: kind == "index" and data.pop("annotations"))
    registry = publisher.place.registry(publisher.names[0], Line())
    registry.push_layout(publisher.dist / "image", foreign.digest, LOG)
    found = registry.manifest(foreign.digest.text)
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


def test_a_dry_run_writes_nothing(publisher: Publisher, capfd: pytest.CaptureFixture[str]) -> None:
    image = publisher.build("1")
    intent = replace(INTENT, names=publisher.names)
    registry = publisher.place.stranger(publisher.names[0])
    release = publish.run(
        intent, LOCK, image, smoked(image), publisher.dist, lambda name: registry, Log(), dry_run=True
    )
    assert release == Release(digest=image.digest)
    assert not (publisher.dist / "release.json").exists()
    assert publisher.tags() == {}
    told = capfd.readouterr().err
    assert f"would push {image.digest}" in told
    for tag in (f"{FIXED}1", *MOVING):
        assert f"{publisher.names[0]}:{tag}: would be made" in told


# Refusing; none of these may write to a registry


def _refused(publisher: Publisher, kind: type[Exception], match: str, **changes: object) -> None:
    arguments: dict[str, object] = {"lock": publisher.lock, "image": publisher.image, "names": publisher.names}
    arguments |= {"reports": smoked(publisher.image), **changes}
    intent = replace(INTENT, names=arguments["names"])  # type: ignore[arg-type]
    with pytest.raises(kind, match=match):
        publish.run(
            intent,
            arguments["lock"],  # type: ignore[arg-type]
            arguments["image"],  # type: ignore[arg-type]
            arguments["reports"],  # type: ignore[arg-type]
            publisher.dist,
            publisher._registry,
            LOG,
        )
    assert publisher.line.requests == []


def test_an_unsmoked_image_is_refused(publisher: Publisher) -> None:
    reports = smoked(publisher.build("smoked"))
    publisher.build("not smoked")
    _refused(publisher, SmokeFailed, "was not smoked", reports=reports)
    _refused(publisher, SmokeFailed, "was not smoked", reports=[])


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
