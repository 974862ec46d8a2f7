"""Evidence for digests, and witnesses that contradict each other."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline import components
from pipeline.core.errors import DigestMismatch, UpstreamError, VerificationFailed
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.fetch import fetch
from pipeline.http import retries, transport
from pipeline.inputs import changes, lock, versions
from pipeline.inputs.evidence import Grade
from pipeline.inputs.lock import Artifact, Lock
from pipeline.inputs.versions import UPSTREAM
from pipeline.resolve import upstream, witnesses
from pipeline.signing import signature
from pipeline.workflow import Run
from tests.helpers import signing
from tests.helpers.signing import Pair
from tests.helpers.vendors import CHANNELS, MIRROR, NOW, RECORDED, Given, Vendors, times

ROOT = Path(__file__).resolve().parents[2]
API = "https://api.github.com/repos"
KUBECTL = f"{UPSTREAM['kubernetes']}/release/v1.37.1/bin/linux/amd64/kubectl"
DOCKER = f"{UPSTREAM['docker']}/linux/static/stable/x86_64/docker-29.7.2.tgz"


def of(made: Lock, component: str, platform: Platform = Platform.AMD64) -> Artifact:
    return next(file for file in made.artifacts if (file.component, file.platform) == (component, platform))


def mirrored(vendors: Vendors, text: str | None = None) -> None:
    """Serve docker's archives from a mirror, with the same bytes or others."""
    vendors.intent = replace(vendors.intent, mirrors={"docker": (MIRROR,)})
    for platform in Platform:
        where = components.published("docker", "29.7.2", platform)
        there = vendors.answers[f"{UPSTREAM['docker']}/{where.path}"]
        assert isinstance(there, Given)
        vendors.gives(f"{MIRROR}/{where.path}", there.content if text is None else text)


# Records.


def test_a_checksum_a_size_an_etag_and_a_day(vendors: Vendors) -> None:
    file = of(vendors.resolve(), "compose")
    (reason,) = file.evidence
    assert (reason.grade, reason.observed) == (Grade.PUBLISHED, "2026-11-25")
    assert reason.source.endswith("/docker/compose/releases/download/v5.4.0/checksums.txt")
    assert (file.size, file.etag) == (len(b"compose 5.4.0 linux/amd64 "), f'"{file.digest.hex[:16]}"')


@pytest.mark.parametrize("etag", ['W/"weak"', "unquoted", '"', "", '"a"b"', '"' + "x" * 500 + '"'])
def test_an_etag_that_is_not_strong_is_not_recorded(vendors: Vendors, etag: str) -> None:
    url = vendors.url("compose", "5.4.0", Platform.AMD64)
    vendors.gives(url, "x", headers={"ETag": etag})
    assert of(vendors.resolve(), "compose").etag is None


def test_equal_responses_on_a_later_day_give_equal_bytes(vendors: Vendors) -> None:
    mirrored(vendors)
    first = vendors.resolve()
    later = vendors.resolve(lock.parse(lock.render(first), "x"), now=NOW + timedelta(days=100))
    assert lock.render(later) == lock.render(first)
    assert changes.lines(first, later) == []


def test_new_evidence_is_logged_and_leaves_the_date(vendors: Vendors) -> None:
    first = replace(vendors.resolve(), date="2020-01-01")
    mirrored(vendors)
    later = vendors.resolve(first, now=NOW + timedelta(days=1))
    assert (later.date, later.digest) == ("2020-01-01", first.digest)
    assert changes.lines(first, later) == [
        "docker 29.7.2 (amd64): first use → corroborated",
        "docker 29.7.2 (arm64): first use → corroborated",
        "evidence: 2 new reasons",
    ]
    assert {one.observed for one in of(later, "docker").evidence} == {"2026-11-25", "2026-11-26"}


def test_grades_below_the_policy_are_a_warning_of_resolve(vendors: Vendors, capsys: pytest.CaptureFixture[str]) -> None:
    policy = {"default": Grade.PUBLISHED, "docker": Grade.CORROBORATED}
    vendors.intent = replace(vendors.intent, policy=policy)
    made = vendors.resolve()
    assert (
        "push will refuse this lock: docker 29.7.2 for linux/amd64 is first use, and the policy asks"
        in capsys.readouterr().err
    )
    with pytest.raises(VerificationFailed):
        made.require(policy)
    mirrored(vendors)
    vendors.resolve(made).require(policy)


def test_a_lock_without_dates_of_evidence_gets_them(vendors: Vendors) -> None:
    made = vendors.resolve()
    undated = replace(
        made,
        artifacts=tuple(
            replace(file, evidence=tuple(replace(one, observed=None) for one in file.evidence))
            for file in made.artifacts
        ),
    )
    again = vendors.resolve(undated)
    assert of(again, "k3s").evidence == of(made, "k3s").evidence
    assert of(again, "docker").evidence[0].observed is None, "nothing was downloaded"
    assert changes.lines(undated, again) == ["evidence: 6 reasons with a new date"]


# Docker: the bytes.


def test_docker_from_two_sites_is_corroborated(vendors: Vendors) -> None:
    mirrored(vendors)
    file = of(vendors.resolve(), "docker")
    assert file.grade is Grade.CORROBORATED
    assert [one.source for one in file.evidence] == sorted([DOCKER, f"{MIRROR}/{file.path}"])


WITNESSES = versions.read(ROOT / "versions.yaml").witnesses["docker"]


def witnessed(vendors: Vendors, *bases: str) -> None:
    """Use the committed policy and witnesses: those in `bases` have docker's archives, the others are down."""
    committed = versions.read(ROOT / "versions.yaml")
    vendors.intent = replace(vendors.intent, policy=committed.policy, witnesses=committed.witnesses)
    for platform in Platform:
        where = components.published("docker", "29.7.2", platform)
        there = vendors.answers[f"{UPSTREAM['docker']}/{where.path}"]
        assert isinstance(there, Given)
        for base in WITNESSES:
            url = f"{base}/{where.path}"
            vendors.answers[url] = there if base in bases else httpx.ConnectError("no route to host")


@pytest.mark.parametrize("answering", [WITNESSES, WITNESSES[1:]])
def test_one_witness_of_the_committed_intent_satisfies_its_policy(vendors: Vendors, answering: tuple[str, ...]) -> None:
    witnessed(vendors, *answering)
    made = vendors.resolve()
    for platform in Platform:
        file = of(made, "docker", platform)
        assert file.grade is Grade.CORROBORATED
        assert [one.source for one in file.evidence] == sorted([file.url, f"{answering[0]}/{file.path}"])
    assert not [text for text in made.weak(vendors.intent.policy) if "docker" in text]
    made.require({"docker": vendors.intent.policy["docker"]})


def test_without_a_witness_resolve_passes_and_a_release_is_refused(
    vendors: Vendors, capsys: pytest.CaptureFixture[str]
) -> None:
    witnessed(vendors)
    made = vendors.resolve()
    assert of(made, "docker").grade is Grade.FIRST_USE
    log = capsys.readouterr().err
    for base in WITNESSES:
        assert httpx.URL(base).host in log
    assert "push will refuse this lock: docker 29.7.2 for linux/amd64 is first use" in log
    with pytest.raises(VerificationFailed, match="docker") as refused:
        made.require({"docker": vendors.intent.policy["docker"]})
    assert refused.value.exit_code == 10


def test_nothing_is_fetched_from_a_witness(vendors: Vendors, tmp_path: Path) -> None:
    witnessed(vendors, *WITNESSES)
    made = vendors.resolve()
    only = replace(made, artifacts=tuple(file for file in made.artifacts if file.component == "docker"))
    vendors.asked.clear()
    fetch.run(vendors.intent, replace(only, packages=(), guest=()), tmp_path / "other", vendors.client, vendors.log)
    assert {request.url.host for request in vendors.asked} == {"download.docker.com"}


def test_a_witness_is_not_asked_again(vendors: Vendors) -> None:
    witnessed(vendors, *WITNESSES)
    made = vendors.resolve()
    vendors.asked.clear()
    vendors.resolve(made)
    assert {request.url.host for request in vendors.asked}.isdisjoint(httpx.URL(base).host for base in WITNESSES)


def test_a_witness_that_redirects_to_docker_corroborates_nothing(
    vendors: Vendors, capsys: pytest.CaptureFixture[str]
) -> None:
    mirrored(vendors)
    for platform in Platform:
        where = components.published("docker", "29.7.2", platform)
        vendors.answers[f"{MIRROR}/{where.path}"] = Given(
            status=302, headers={"Location": f"{UPSTREAM['docker']}/{where.path}"}
        )
    assert of(vendors.resolve(), "docker").grade is Grade.FIRST_USE
    assert f"redirect to {DOCKER}; it corroborates nothing" in capsys.readouterr().err


class _Trickle(httpx.SyncByteStream):
    """A body that never ends, without a timeout."""

    def __iter__(self) -> Iterator[bytes]:
        while True:
            threading.Event().wait(0.01)
            yield b"x"


def test_a_slow_witness_is_skipped(
    vendors: Vendors, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mirrored(vendors)
    monkeypatch.setattr(witnesses, "_PATIENCE", 0.1)
    answer = vendors._answer
    vendors.client.close()
    vendors.client = transport.make_client(
        httpx.MockTransport(
            lambda request: (
                httpx.Response(200, stream=_Trickle()) if str(request.url).startswith(MIRROR) else answer(request)
            )
        )
    )
    assert of(vendors.resolve(), "docker").grade is Grade.FIRST_USE
    assert "from mirrors.example.org: too slow" in capsys.readouterr().err


def test_a_mirror_of_the_same_site_corroborates_nothing(vendors: Vendors) -> None:
    vendors.intent = replace(vendors.intent, mirrors={"docker": ("https://cdn.docker.com",)})
    file = of(vendors.resolve(), "docker")
    assert file.grade is Grade.FIRST_USE
    assert not any(request.url.host == "cdn.docker.com" for request in vendors.asked)


def test_a_mirror_with_other_bytes_stops_the_run(vendors: Vendors) -> None:
    mirrored(vendors, "stale")
    with pytest.raises(DigestMismatch, match="two witnesses contradict") as refused:
        vendors.resolve()
    assert refused.value.found == Digest.of(b"stale").text
    assert refused.value.where is not None
    assert refused.value.where.startswith(MIRROR)


@pytest.mark.parametrize("answer", [Given(status=404), Given(status=500), httpx.ConnectError("refused")])
def test_an_unavailable_mirror_is_a_warning(
    vendors: Vendors, answer: Given | Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    mirrored(vendors)
    for url in [url for url in vendors.answers if url.startswith(MIRROR)]:
        vendors.answers[url] = answer
    assert of(vendors.resolve(), "docker").grade is Grade.FIRST_USE
    assert "it corroborates nothing" in capsys.readouterr().err


def test_fetch_does_not_download_again_what_resolve_did(vendors: Vendors, tmp_path: Path) -> None:
    made = vendors.resolve()
    assert times(vendors, DOCKER) == 1
    docker = tuple(file for file in made.artifacts if file.component == "docker")
    only = replace(made, artifacts=docker, packages=(), guest=())
    fetched = fetch.run(vendors.intent, only, tmp_path, vendors.client, vendors.log, offline=True)
    assert (fetched.downloaded, fetched.kept) == (0, 2)
    assert not list(tmp_path.rglob("*.partial"))


def test_docker_is_not_downloaded_again_if_size_and_etag_are_unchanged(vendors: Vendors) -> None:
    made = vendors.resolve()
    vendors.resolve(made)
    assert times(vendors, DOCKER) == 1


@pytest.mark.parametrize("locked", [{"etag": '"other"'}, {"size": 1}])
def test_docker_is_hashed_again_when_size_or_etag_changed(vendors: Vendors, locked: dict[str, Any]) -> None:
    made = vendors.resolve()
    before = tuple(replace(file, **locked) if file.url == DOCKER else file for file in made.artifacts)
    again = vendors.resolve(replace(made, artifacts=before))
    assert times(vendors, DOCKER) == 2
    assert of(again, "docker").digest == of(made, "docker").digest
    vendors.gives(DOCKER, "replaced in place", headers={"ETag": '"third"'})
    with pytest.raises(DigestMismatch, match="another digest than the lock"):
        vendors.resolve(made)


def test_a_broken_download_is_retried_and_leaves_nothing(
    vendors: Vendors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PAUSES", (0.0, 0.0))
    vendors.client.close()
    answer = vendors._answer
    broken: list[str] = []

    def breaking(request: httpx.Request) -> httpx.Response:
        if request.method == "GET" and str(request.url) == DOCKER and len(broken) < failures:
            broken.append(DOCKER)
            raise httpx.RemoteProtocolError("peer closed connection")
        return answer(request)

    vendors.client = transport.make_client(httpx.MockTransport(breaking))
    failures = 2
    assert of(vendors.resolve(), "docker").size
    broken.clear()
    failures = 3
    with pytest.raises(UpstreamError, match=r"docker 29\.7\.2 for linux/amd64"):
        vendors.resolve()
    assert not list(tmp_path.rglob("*.partial"))


# kubectl: the signature of kubernetes' release machinery.


def publish_pair(vendors: Vendors, pair: Pair) -> None:
    vendors.gives(f"{KUBECTL}.sig", pair.signature)
    vendors.gives(f"{KUBECTL}.cert", pair.certificate)


class Root:
    """A trust root with one authority."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    def get_fulcio_certs(self) -> list[object]:
        return [self.pair.authority]


def test_a_signed_kubectl_is_signed(vendors: Vendors, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = signing.sign(b"kubectl v1.37.1 linux/amd64 ")
    publish_pair(vendors, pair)
    monkeypatch.setattr(signature, "trust", lambda: Root(pair))
    made = vendors.resolve()
    assert of(made, "kubectl").grade is Grade.SIGNED
    assert signature.KUBERNETES in of(made, "kubectl").evidence[0].source
    assert of(made, "kubectl", Platform.ARM64).grade is Grade.PUBLISHED
    assert times(vendors, KUBECTL) == 0, "a signature is for the digest, so nothing is downloaded"


@pytest.mark.parametrize(
    "make",
    [
        lambda: signing.sign(b"kubectl v1.37.1 linux/amd64 "),  # by an authority that is not Sigstore's
        lambda: signing.sign(b"something else"),
        lambda: Pair(certificate=b"<html>", signature=b"<html>", authority=signing.sign(b"").authority),
    ],
)
def test_an_invalid_signature_stops_the_run(vendors: Vendors, make: Callable[[], Pair]) -> None:
    publish_pair(vendors, make())
    with pytest.raises(VerificationFailed, match=r"kubectl v1\.37\.1 for linux/amd64: ") as refused:
        vendors.resolve()
    assert refused.value.where == f"{KUBECTL}.sig"


# buildx: a bundle.


def test_a_bundle_of_another_workflow_stops_the_run(vendors: Vendors) -> None:
    url = vendors.url("buildx", "0.36.1", Platform.AMD64) + ".sigstore.json"
    vendors.gives(url, (RECORDED / "recorded/rfc8785-0.1.2.sigstore.json").read_bytes())
    with pytest.raises(VerificationFailed, match="the bundle is invalid"):
        vendors.resolve()


def test_an_unreadable_bundle_is_a_warning(vendors: Vendors, capsys: pytest.CaptureFixture[str]) -> None:
    vendors.gives(vendors.url("buildx", "0.36.1", Platform.AMD64) + ".sigstore.json", "{}")
    assert of(vendors.resolve(), "buildx").grade is Grade.PUBLISHED
    assert "cannot read the signature" in capsys.readouterr().err


def test_a_valid_bundle_is_the_grade_signed(vendors: Vendors, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Digest, signature.Workflow]] = []
    monkeypatch.setattr(
        signature, "check_bundle", lambda raw, *, digest, workflow, root: asked.append((digest, workflow))
    )
    vendors.gives(vendors.url("buildx", "0.36.1", Platform.AMD64) + ".sigstore.json", "{}")
    file = of(vendors.resolve(), "buildx")
    workflow = signature.Workflow(repository="https://github.com/docker/buildx", ref="refs/tags/v0.36.1")
    assert asked == [(file.digest, workflow)]
    assert file.grade is Grade.SIGNED


# GitHub's records.


def record(vendors: Vendors, component: str, version: str, digests: Mapping[str, str | None]) -> str:
    url = f"{API}/{upstream.assets_path(component, version).removeprefix('repos/')}"
    assets = [{"name": name, "digest": digest} for name, digest in digests.items()]
    vendors.gives(url, json.dumps({"assets": assets}))
    return url


def test_github_is_a_second_witness(vendors: Vendors) -> None:
    digest = of(vendors.resolve(), "k3s").digest
    url = record(vendors, "k3s", "v1.37.1+k3s1", {"k3s": digest.text, "k3s-arm64": None})
    vendors.asked.clear()
    made = vendors.resolve()
    assert [one.grade for one in of(made, "k3s").evidence] == [Grade.PUBLISHED, Grade.RECORDED]
    assert of(made, "k3s").evidence[1].source.startswith(url)
    assert [one.grade for one in of(made, "k3s", Platform.ARM64).evidence] == [Grade.PUBLISHED]
    assert times(vendors, url) == 1, "one request for all platforms"


def test_github_contradicts_the_checksum_file(vendors: Vendors) -> None:
    record(vendors, "compose", "5.4.0", {"docker-compose-linux-x86_64": f"sha256:{'0' * 64}"})
    with pytest.raises(DigestMismatch, match=r"compose 5\.4\.0 for linux/amd64: two witnesses contradict"):
        vendors.resolve()


@pytest.mark.parametrize(
    ("status", "headers", "token", "sentence"),
    [
        (
            403,
            {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1795608000"},
            None,
            "quota is exhausted until 12:00 UTC; a token in GITHUB_TOKEN raises it",
        ),
        (
            403,
            {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "soon"},
            "t0ken-of-mine",
            "quota is exhausted; resolved",
        ),
        (429, {"Retry-After": "60"}, None, "quota is exhausted"),
        (403, {"X-RateLimit-Remaining": "12"}, None, "denied: status 403"),
        (401, {}, "t0ken-of-mine", "invalid token in GITHUB_TOKEN"),
        (404, {}, None, "no such release"),
        (500, {}, None, "unexpected answer: status 500"),
        (200, {}, None, "does not describe the release"),
    ],
)
def test_refusals_of_github_are_warnings(
    vendors: Vendors,
    status: int,
    headers: dict[str, str],
    token: str | None,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for component, version in (("buildx", "0.36.1"), ("compose", "5.4.0"), ("k3s", "v1.37.1+k3s1")):
        vendors.gives(
            f"https://api.github.com/{upstream.assets_path(component, version)}", "[]", status=status, headers=headers
        )
    made = vendors.resolve(token=token)
    assert of(made, "buildx").grade is Grade.PUBLISHED
    log = capsys.readouterr().err
    assert sentence in log
    assert "t0ken-of-mine" not in log + lock.render(made)


def test_the_token_goes_to_githubs_api_and_nowhere_else(vendors: Vendors) -> None:
    vendors.resolve(token="t0ken-of-mine")
    for request in vendors.asked:
        expected = "Bearer t0ken-of-mine" if request.url.host == "api.github.com" else None
        assert request.headers.get("Authorization") == expected, request.url


def test_no_token_is_sent_over_plain_http(vendors: Vendors) -> None:
    vendors.resolve()
    clear = {**UPSTREAM, "github-api": "http://ghe.example/api/v3"}
    vendors.resolve(intent=replace(vendors.intent, upstream=clear), token="t0ken-of-mine")
    assert any(request.url.host == "ghe.example" for request in vendors.asked)
    assert not any("Authorization" in request.headers for request in vendors.asked)


def test_githubs_api_is_not_used_with_another_upstream(vendors: Vendors) -> None:
    assert vendors.intent.github_api == "https://api.github.com"
    elsewhere = replace(vendors.intent, upstream={**UPSTREAM, "github": "https://ghe.example"})
    assert elsewhere.github_api is None
    named = replace(elsewhere, upstream={**elsewhere.upstream, "github-api": "https://ghe.example/api/v3"})
    assert named.github_api == "https://ghe.example/api/v3"


# The command.


def test_resolve_check_logs_and_writes_nothing(
    vendors: Vendors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(
        root=tmp_path,
        intent_path=tmp_path / "versions.yaml",
        lock_path=tmp_path / "versions.lock.yaml",
        dist=tmp_path / "dist",
        cache=tmp_path,
        log=Log(),
        client=vendors.client,
        token=None,
    )
    versions.write(run.intent_path, vendors.intent)
    assert run.resolve(check=True)
    assert not run.lock_path.exists()
    assert "a new lock: docker 29.7.2" in capsys.readouterr().err
    assert run.resolve(check=False)
    before = run.lock_path.read_bytes()
    assert not run.resolve(check=True)
    vendors.release("compose", "5.4.1")
    vendors.refs("compose", "v5.4.1", "v5.4.0")
    assert run.resolve(check=True)
    assert "compose 5.4.0 → 5.4.1" in capsys.readouterr().err
    assert run.lock_path.read_bytes() == before


def test_a_failed_run_does_not_change_the_lock(vendors: Vendors, tmp_path: Path) -> None:
    path = tmp_path / "versions.lock.yaml"
    lock.write(path, vendors.resolve())
    before = path.read_bytes()
    run = Run(
        root=tmp_path,
        intent_path=tmp_path / "versions.yaml",
        lock_path=path,
        dist=tmp_path / "dist",
        cache=tmp_path,
        log=Log(),
        client=vendors.client,
        token=None,
    )
    versions.write(run.intent_path, vendors.intent)
    vendors.release("compose", "5.4.0", text="replaced")
    with pytest.raises(DigestMismatch):
        run.resolve(check=False)
    assert path.read_bytes() == before


# The lock.


def test_a_published_digest_that_changed_is_refused_with_both_digests(vendors: Vendors) -> None:
    made = vendors.resolve()
    vendors.release("compose", "5.4.0", text="replaced")
    with pytest.raises(DigestMismatch, match="another digest than the lock") as refused:
        vendors.resolve(made)
    assert refused.value.expected == of(made, "compose").digest.text
    assert refused.value.exit_code == 4


def test_another_upstream_is_checked_against_the_lock(vendors: Vendors) -> None:
    made = vendors.resolve()
    elsewhere = {**UPSTREAM, "docker": "https://docker.example.org"}
    for platform in Platform:
        where = components.published("docker", "29.7.2", platform)
        there = vendors.answers[f"{UPSTREAM['docker']}/{where.path}"]
        assert isinstance(there, Given)
        vendors.gives(f"https://docker.example.org/{where.path}", there.content)
    exact = {**CHANNELS, "docker": "29.7.2"}
    intent = replace(vendors.intent, upstream=elsewhere, components=exact)
    file = of(vendors.resolve(made, intent), "docker")
    assert file.url.startswith("https://docker.example.org/")
    assert file.grade is Grade.CORROBORATED, "the lock keeps the evidence of docker"
    vendors.gives(file.url, "other bytes")
    with pytest.raises(DigestMismatch, match="another digest than the lock"):
        vendors.resolve(made, intent)


def test_a_recorded_digest_is_confirmed_and_keeps_its_record(vendors: Vendors) -> None:
    made = vendors.resolve()
    reason = replace(of(made, "k3s").evidence[0], grade=Grade.RECORDED, source="one project records it", observed=None)
    seeded = replace(
        made,
        artifacts=tuple(
            replace(file, evidence=(reason,)) if file.component == "k3s" else file for file in made.artifacts
        ),
    )
    again = vendors.resolve(seeded)
    assert [one.grade for one in of(again, "k3s").evidence] == [Grade.PUBLISHED, Grade.RECORDED]
    assert "k3s v1.37.1+k3s1 (amd64): recorded → published" in changes.lines(seeded, again)
