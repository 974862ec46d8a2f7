"""Signing as a workflow, against a Sigstore of the tests: the whole way, and what verifiers say of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.errors import UpstreamError, VerificationFailed
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.signing import bundle, statement
from pipeline.signing.bundle import Trust
from pipeline.signing.signer import Keyless, keyless
from tests.helpers import sigstores
from tests.helpers.cosigns import Cosign
from tests.helpers.images import Place, running
from tests.helpers.signed import Signed
from tests.helpers.sigstores import IDENTITY, ISSUER, Sigstore

STATEMENT = statement.make("x", Digest.of(b"x"), statement.SIGNATURE, {})
PATTERN = "https://github.com/dind-k3s/dind-k3s/.github/workflows/release.yml@refs/tags/*"


@pytest.fixture
def sigstore(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sigstore]:
    """A Sigstore, and a job that may write id-tokens."""
    with sigstores.running() as sigstore:
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "x")
        monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{sigstore.url}/token?x=y")
        yield sigstore


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running(tmp_path_factory.mktemp("registry")) as place:
        yield place


def signer(sigstore: Sigstore) -> Keyless:
    return keyless(sigstore.trust)


def trust(sigstore: Sigstore, identity: str = PATTERN, issuer: str = ISSUER) -> Trust:
    return Trust(identity=identity, issuer=issuer, root=sigstore.root)


@pytest.mark.parametrize("identity", [PATTERN, IDENTITY, "*"])
def test_what_a_workflow_signs_holds(sigstore: Sigstore, identity: str) -> None:
    raw = signer(sigstore).sign(STATEMENT)
    assert bundle.statement(raw, trust(sigstore, identity)) == json.loads(STATEMENT)
    assert json.loads(raw)["mediaType"] == bundle.TYPE
    assert len(sigstore.entries) == 1


@pytest.mark.parametrize(
    ("identity", "issuer"),
    [
        ("https://github.com/dind-k3s/dind-k3s/.github/workflows/release.yml@refs/heads/*", ISSUER),
        ("https://github.com/dind-k3s/dind-k3s/.github/workflows/*.yml", ISSUER),
        ("https://github.com/other/dind-k3s/.github/workflows/release.yml@refs/tags/*", ISSUER),
        ("https://github.com/dind-k3s/dind-k3s/xgithub/workflows/release.yml@refs/tags/*", ISSUER),
        ("", ISSUER),
        (PATTERN, "https://accounts.google.com"),
    ],
)
def test_another_identity_or_issuer_is_expected(sigstore: Sigstore, identity: str, issuer: str) -> None:
    raw = signer(sigstore).sign(STATEMENT)
    with pytest.raises(VerificationFailed, match="unexpected signer"):
        bundle.statement(raw, trust(sigstore, identity, issuer))


def test_another_sigstore_is_trusted(sigstore: Sigstore) -> None:
    raw = signer(sigstore).sign(STATEMENT)
    with pytest.raises(VerificationFailed, match="unexpected signer"), sigstores.running() as other:
        bundle.statement(raw, trust(other))
    with pytest.raises(VerificationFailed, match="unexpected signer"):
        bundle.statement(raw, Trust(identity=PATTERN))  # the public one


@pytest.mark.parametrize("part", ["payload", "sig", "rootHash", "signedEntryTimestamp", "canonicalizedBody"])
def test_a_bundle_that_was_changed(sigstore: Sigstore, part: str) -> None:
    text = signer(sigstore).sign(STATEMENT).decode()
    at = text.index(f'"{part}"') + len(part) + 30
    changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
    with pytest.raises(VerificationFailed):
        bundle.statement(changed.encode(), trust(sigstore))


@pytest.mark.parametrize("broken", ["signingCert", "log/entries"])
def test_a_sigstore_that_is_out_of_order(sigstore: Sigstore, broken: str) -> None:
    sigstore.broken = broken
    with pytest.raises(UpstreamError, match="Sigstore did not sign") as failure:
        signer(sigstore).sign(STATEMENT)
    assert "run it again" in str(failure.value)


@pytest.fixture
def signed(sigstore: Sigstore, place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> Signed:
    made = Signed(place, tmp_path / "dist", place.name(request.node.name.replace("_", "-")))
    made.publish()
    made.sign(signer(sigstore), trust(sigstore))
    return made


def test_an_image_that_a_workflow_signed(signed: Signed, sigstore: Sigstore) -> None:
    signed.verify(trust=trust(sigstore))
    assert len(sigstore.entries) == 7
    with pytest.raises(VerificationFailed, match="not signed by a trusted signer: unexpected signer"):
        signed.verify(trust=replace(trust(sigstore), identity=PATTERN.replace("release", "ci")))


def test_a_second_run_of_the_workflow_enters_nothing_into_the_log(signed: Signed, sigstore: Sigstore) -> None:
    before = len(signed.line.written)
    for path in (signed.dist / "signed").iterdir():
        path.unlink()  # another runner
    signed.sign(signer(sigstore), trust(sigstore))
    assert len(sigstore.entries) == 7
    assert len(signed.line.written) == before


def test_cosign_accepts_what_a_workflow_signed(signed: Signed, sigstore: Sigstore, cosigns: dict[int, Cosign]) -> None:
    root = signed.dist / "root.json"
    root.write_text(sigstore.trusted_root, encoding="utf-8")
    identity = PATTERN.replace(".", r"\.").replace("*", "")
    who = ("--certificate-identity-regexp", f"^{identity}", "--certificate-oidc-issuer", ISSUER)
    options = ("--trusted-root", str(root), *who)
    code, output = cosigns[3].run("verify", *options, f"{signed.name}:latest")
    assert code == 0, output
    platform = f"{signed.name}@{signed.image.platforms[Platform.ARM64].digest}"
    for kind in ("spdxjson", "cyclonedx"):
        code, output = cosigns[3].run("verify-attestation", "--type", kind, *options, platform)
        assert code == 0, output
    others = ("--certificate-identity-regexp", "^https://github.com/other/", "--certificate-oidc-issuer", ISSUER)
    code, output = cosigns[3].run("verify", "--trusted-root", str(root), *others, f"{signed.name}:latest")
    assert code != 0
