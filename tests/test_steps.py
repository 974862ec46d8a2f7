"""A release from any point to its end: two real registries, one with TLS, both with tokens; a real key; real kills.

The images are tiny, so nothing is built and nothing boots here: image.json and smoke's reports are there when a test
begins, as on the machine that publishes. The rehearsal runs the same steps with a real image.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from pipeline.core.errors import IntentError, RegistryError, SmokeFailed
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.core.records import SmokeReport, State, Tier
from pipeline.http import retries, transport
from pipeline.oci.registry import Registry
from tests.helpers.images import tier
from tests.helpers.released import ROOT, STEPS, Registries, Scene, serving
from tests.publish.test_scan import grype, match


class Once:
    """Chooses every so-manieth thing that is asked for, when it is asked for the first time."""

    def __init__(self, every: int) -> None:
        self._every, self._seen, self.chosen = every, set[tuple[str, str]](), 0

    def __call__(self, request: httpx.Request) -> bool:
        this = (request.method, request.url.params.get("digest", request.url.path))
        if this in self._seen:
            return False
        self._seen.add(this)
        if len(self._seen) % self._every != 1:
            return False
        self.chosen += 1
        return True


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registries]:
    with serving(tmp_path_factory.mktemp("registries")) as registries:
        yield registries


@pytest.fixture
def scene(registries: Registries, tmp_path: Path, request: pytest.FixtureRequest) -> Scene:
    name = "".join(letter if letter.isalnum() else " " for letter in request.node.name.lower())
    return Scene(registries, tmp_path, "-".join(name.split()))


def test_a_release_from_what_was_smoked_to_its_end(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    scene.release(dry_run=True, log=Log())
    plan = capfd.readouterr().err
    assert scene.written == []
    for text in (
        "build: nothing to do",
        "smoke: nothing to do",
        "sbom: write the spdx of linux/amd64",
        f"scan: scan {scene.image.digest}",
        *(f"push: push {scene.image.digest} to {name}" for name in scene.names),
        *(f"sign: sign {scene.image.digest} in {name}" for name in scene.names),
        *(f"tag: {name}:latest: create it" for name in scene.names),
        "verify: after sbom",
    ):
        assert text in plan
    scene.release()
    scene.require_released()
    capfd.readouterr()
    scene.release(dry_run=True, log=Log())
    assert capfd.readouterr().err.split("\n")[:-1] == [f"{name}: nothing to do" for name in STEPS]


def test_one_that_was_not_built_begins_there(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    (scene.dist / "image.json").unlink()
    scene.release(dry_run=True, log=Log())
    printed = capfd.readouterr().err.splitlines()
    assert printed[0] == "build: fetch what is missing, and build linux/amd64, linux/arm64"
    assert [line.partition(": ")[2][:11] for line in printed[1:]] == ["after build"] * 7
    assert scene.requests == []


# The network


@pytest.fixture(scope="module")
def length(registries: Registries, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many requests a whole release makes."""
    scene = Scene(registries, tmp_path_factory.mktemp("length"), "length")
    scene.release()
    return scene.asked


@pytest.mark.parametrize("part", range(12))
def test_a_registry_that_goes_away_in_the_middle(scene: Scene, part: int, length: int) -> None:
    """After each twelfth of the requests; the next run does the rest and sends nothing twice."""
    last = length * part // 12

    def down(number: int, request: httpx.Request) -> httpx.Response | None:
        if number >= last:
            raise httpx.ConnectError("Connection refused", request=request)
        return None

    with pytest.raises(Exception, match="Connection refused") as failure:
        scene.release(down)
    assert getattr(failure.value, "exit_code", None) in (9, 10)  # while it writes, or while it reads back
    scene.require_sound()
    scene.release()
    scene.require_released()


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "GET"])
def test_answers_500_are_asked_again(scene: Scene, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third thing that is asked for fails at first, and the release comes to its end in one run."""
    monkeypatch.setattr(retries, "PAUSES", (0.01,) * 4)
    once = Once(3)

    def ailing(number: int, request: httpx.Request) -> httpx.Response | None:
        if request.method == method and once(request):
            # 501 is not among them: what a server does not implement it will not do in a moment either
            return httpx.Response((500, 502, 503, 504)[number % 4], request=request, text="out of order")
        return None

    scene.release(ailing)
    assert once.chosen > 0
    scene.require_released()


@pytest.mark.parametrize("word", ["/blobs/uploads/", "/manifests/sha256:", "/manifests/latest"])
def test_a_registry_that_stays_out_of_order(scene: Scene, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSES", (0.01,) * 4)

    def broken(_number: int, request: httpx.Request) -> httpx.Response | None:
        if request.method in ("POST", "PUT") and word in request.url.path and request.url.port == port:
            return httpx.Response(503, request=request)
        return None

    port = int(scene.names[1].registry.rpartition(":")[2])  # the second one: the first has got its part
    with pytest.raises(RegistryError, match="is not available") as failure:
        scene.release(broken)
    assert "status 503" in str(failure.value)
    scene.require_sound()
    scene.release()
    scene.require_released()


def test_a_token_that_expires_is_renewed(scene: Scene) -> None:
    """Every second thing is asked for at first without its token, as if that was not known any more."""
    once = Once(2)
    forgotten = 0

    def forgetful(_number: int, request: httpx.Request) -> None:
        nonlocal forgotten
        if once(request) and request.headers.get("Authorization", "").startswith("Bearer "):
            forgotten += 1
            del request.headers["Authorization"]

    scene.release(forgetful)
    assert forgotten > 5
    scene.require_released()


def test_a_login_that_is_not_accepted_any_more(scene: Scene) -> None:
    """After the image is pushed: nothing is tagged, and with a new login it continues."""

    def revoked(_number: int, request: httpx.Request) -> httpx.Response | None:
        if request.url.path == "/token" and "push" in str(request.url) and scene.record.pushed:
            return httpx.Response(401, request=request)
        return None

    with pytest.raises(RegistryError, match="did not accept the credentials"):
        scene.release(revoked)
    assert [scene.tags(name) for name in scene.names] == [{}, {}]
    scene.release()
    scene.require_released()


# Other people


def test_somebody_takes_our_number_before_we_tag(scene: Scene) -> None:
    """Their release of the same versions ends while ours is signed: ours takes the next number everywhere."""
    other = Scene(scene.registries, scene.folder / "other", scene.names[0].repository, "theirs")
    done = False

    def between(_number: int, request: httpx.Request) -> None:
        nonlocal done
        if not done and scene.record.signed and "/tags/list" in request.url.path:
            done = True
            other.release()

    scene.release(between)
    assert done
    for name in scene.names:
        tags = scene.tags(name)
        assert sorted(tag[-2:] for tag in tags if tag.startswith("k3s-")) == ["r1", "r2"]
        assert tags["latest"] == scene.image.digest
        assert {tag: one for tag, one in tags.items() if tag.endswith("-r1")}.popitem()[1] == other.image.digest


def test_a_tag_that_was_moved_after_the_release_comes_back(scene: Scene) -> None:
    scene.release()
    with transport.make_client(verify=scene.registries.verify) as client:
        name = scene.names[1]
        theirs = Registry(client, name, scene.registries.served[name.registry].credentials)
        digest = scene.image.platforms[Platform.AMD64].digest.text
        found = theirs.manifest(digest)
        assert found is not None
        theirs.tag("latest", found.raw, found.media_type)
    scene.release()
    scene.require_released()


# Red


def test_one_platform_that_fails_its_smoke_stops_everything(scene: Scene) -> None:
    """No registry is asked for anything; when it is green, the release continues."""
    green = SmokeReport.read(scene.dist, Platform.ARM64)
    failed = tier(Tier.BOOT, State.FAILED, "dockerd could not be kept alive")
    replace(green, tiers=(*green.tiers[:2], failed)).write(scene.dist)
    again = 0

    def smoke() -> None:
        nonlocal again
        again += 1
        raise SmokeFailed("linux/arm64, tier boot: dockerd could not be kept alive")

    for _ in range(2):
        with pytest.raises(SmokeFailed, match="dockerd could not be kept alive"):
            scene.release(smoke=smoke)
    assert again == 2
    assert scene.requests == []
    # Calling the stages one by one gets no further.
    run = scene.run()
    for stage in (run.push, run.tag):
        with pytest.raises(Exception, match=r"failed tier boot|is not signed"):
            stage()
    scene.release(smoke=lambda: green.write(scene.dist))
    scene.require_released()


def test_a_vulnerability_stops_it_before_anything_leaves(scene: Scene) -> None:
    (scene.folder / "report.json").write_text(grype(match()))
    with pytest.raises(Exception, match="vulnerabilities that are fixed elsewhere"):
        scene.release()
    assert scene.requests == []
    (scene.folder / "report.json").write_text(grype())
    scene.release()
    scene.require_released()


def test_what_is_missing_is_told_before_anything_begins(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "BUILDKITE", "SIGSTORE_ID_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    (scene.dist / "image.json").unlink()  # it would be built first, and nothing is here to build with
    key, scanner = scene.key, scene.scanner
    scene.scanner = scene.folder / "no-scanner"
    with pytest.raises(IntentError, match=r"there is no .*no-scanner"):
        scene.release()
    scene.scanner, scene.key = scanner, scene.folder / "no-key"
    with pytest.raises(IntentError, match="no-key"):
        scene.release()
    scene.key = None
    with pytest.raises(IntentError, match="no identity to sign with"):
        scene.release()
    assert scene.requests == []
    scene.key = key
    scene.image.write(scene.dist)
    scene.release()
    # with everything done, nothing is asked for
    scene.key, scene.scanner = None, scene.folder / "no-scanner"
    scene.require_released()


# Kills


def command(scene: Scene, *arguments: str) -> subprocess.Popen[str]:
    """`python -m pipeline … release`, as nox starts it."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "pipeline"),
            *("--versions", str(scene.folder / "versions.yaml"), "--lock", str(scene.folder / "versions.lock.yaml")),
            *("--dist", str(scene.dist), "--cache", str(scene.folder / "cache")),
            *("release", "--key", str(scene.key), "--scanner", str(scene.scanner), *arguments),
        ],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "DOCKER_CONFIG": str(scene.registries.docker_config),
            "SSL_CERT_FILE": str(scene.registries.authority),
        },
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "mark",
    [
        *(f"▶ {name}" for name in STEPS[2:]),
        *("linux/amd64 cdx", "linux/amd64: 0 findings", "pushed", "index.signature: signed", "claims pushed"),
        *(":v1.37", ":latest", "latest is sha256"),
    ],
)
def test_a_runner_that_is_killed(scene: Scene, mark: str) -> None:
    """SIGKILL at that line of its output; the same command again comes to the end."""
    with command(scene) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if mark in line:
                process.send_signal(signal.SIGKILL)
                break
        else:
            pytest.fail(f"it never output {mark!r}")
    assert process.returncode == -signal.SIGKILL
    scene.require_sound()
    with command(scene) as process:
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    scene.require_released()
