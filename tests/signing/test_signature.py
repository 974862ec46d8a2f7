"""Signatures of an authority made here, and a recorded bundle of Sigstore's public one."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from pipeline.core.errors import VerificationFailed
from pipeline.core.names import Digest
from pipeline.signing import signature
from tests.helpers import signing
from tests.helpers.signing import Pair
from tests.helpers.vendors import RECORDED

DATA = b"kubectl"
BUNDLE = (RECORDED / "recorded/rfc8785-0.1.2.sigstore.json").read_bytes()
SIGNED = Digest.of_hex("c4e92e9ecc828bef2aa7dba1de8ac983511f7532a0df11c770d39099a25cf201")
WORKFLOW = signature.Workflow(repository="https://github.com/trailofbits/rfc8785.py", ref="refs/tags/v0.1.2")
IDENTITY = f"{WORKFLOW.repository}/.github/workflows/release.yml@{WORKFLOW.ref}"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def check(pair: Pair, data: bytes = DATA, **changed: Any) -> None:
    signature.check_pair(
        **{
            "certificate": pair.certificate,
            "signature": pair.signature,
            "digest": Digest.of(data),
            "identity": signature.KUBERNETES,
            "issuer": signature.GOOGLE,
            "authorities": [pair.authority],
            **changed,
        }
    )


@pytest.mark.parametrize("wrapped", [True, False])
def test_valid_pair_as_published_by_kubernetes(wrapped: bool) -> None:
    check(signing.sign(DATA, wrapped=wrapped))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: signing.sign(b"another file"), "not for that file"),
        (lambda: signing.sign(DATA, identity="krel-staging@example.org"), "unexpected signer"),
        (lambda: signing.sign(DATA, issuer="https://accounts.example.org"), "unexpected signer"),
        (lambda: signing.sign(DATA, usage=ExtendedKeyUsageOID.SERVER_AUTH), "not for code signing"),
        (
            lambda: replace(signing.sign(DATA), authority=signing.sign(DATA).authority),
            "not issued by the trusted authority",
        ),
        (lambda: signing.sign(DATA, starts=datetime(2020, 1, 1, tzinfo=UTC)), "not issued by the trusted authority"),
        (lambda: signing.sign(DATA, starts=datetime(2040, 1, 1, tzinfo=UTC)), "not issued by the trusted authority"),
        (lambda: replace(signing.sign(DATA), signature=signing.sign(DATA).signature), "not for that file"),
        (lambda: replace(signing.sign(DATA), signature=b"???"), "not for that file"),
        (lambda: replace(signing.sign(DATA), signature="sé".encode()), "cannot be read|not for that file"),
        (lambda: replace(signing.sign(DATA), certificate=b"<html>"), "cannot be read"),
        (lambda: replace(signing.sign(DATA), certificate=b"-----BEGIN CERTIFICATE-----\nAAAA\n"), "cannot be read"),
    ],
)
def test_invalid_pair(make: Callable[[], Pair], message: str) -> None:
    with pytest.raises(VerificationFailed, match=message):
        check(make())


def recorded_pair() -> Pair:
    bundle = json.loads(BUNDLE)
    der = base64.b64decode(bundle["verificationMaterial"]["x509CertificateChain"]["certificates"][0]["rawBytes"])
    return Pair(
        certificate=x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM),
        signature=bundle["messageSignature"]["signature"].encode(),
        authority=signing.sign(DATA).authority,
    )


def test_pair_certified_by_sigstores_own_authority() -> None:
    trusted: dict[str, Any] = {
        "authorities": signature.trust().get_fulcio_certs(),
        "issuer": signature.GITHUB_ACTIONS,
    }
    check(recorded_pair(), digest=SIGNED, identity=IDENTITY, **trusted)
    with pytest.raises(VerificationFailed, match="unexpected signer"):
        check(recorded_pair(), digest=SIGNED, authorities=trusted["authorities"])
    with pytest.raises(VerificationFailed, match="not issued by the trusted authority"):
        check(recorded_pair(), digest=SIGNED, identity=IDENTITY, issuer=signature.GITHUB_ACTIONS)


def test_recorded_bundle_is_valid_without_a_network() -> None:
    signature.check_bundle(BUNDLE, digest=SIGNED, workflow=WORKFLOW, root=signature.trust())


@pytest.mark.parametrize(
    ("digest", "workflow"),
    [
        (Digest.of(b"other"), WORKFLOW),
        (SIGNED, replace(WORKFLOW, repository="https://github.com/docker/buildx")),
        (SIGNED, replace(WORKFLOW, ref="refs/tags/v0.1.3")),
    ],
)
def test_bundle_of_another_file_repository_or_tag_is_invalid(digest: Digest, workflow: signature.Workflow) -> None:
    with pytest.raises(VerificationFailed, match="the bundle is invalid"):
        signature.check_bundle(BUNDLE, digest=digest, workflow=workflow, root=signature.trust())


def _entry(bundle: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = bundle["verificationMaterial"]["tlogEntries"][0]
    return entry


def _later(bundle: dict[str, Any]) -> None:
    _entry(bundle)["integratedTime"] = "1710889999"


def _another_root(bundle: dict[str, Any]) -> None:
    _entry(bundle)["inclusionProof"]["rootHash"] = base64.b64encode(bytes(32)).decode()


def _another_signature(bundle: dict[str, Any]) -> None:
    bundle["messageSignature"]["signature"] = signing.sign(DATA).signature.decode()


@pytest.mark.parametrize("tamper", [_later, _another_root, _another_signature])
def test_changed_bundle_is_invalid(tamper: Callable[[dict[str, Any]], None]) -> None:
    bundle = json.loads(BUNDLE)
    tamper(bundle)
    with pytest.raises((VerificationFailed, signature.Unreadable)):
        signature.check_bundle(json.dumps(bundle).encode(), digest=SIGNED, workflow=WORKFLOW, root=signature.trust())


def _no_entry(bundle: dict[str, Any]) -> None:
    bundle["verificationMaterial"]["tlogEntries"] = []


def _another_kind(bundle: dict[str, Any]) -> None:
    _entry(bundle)["kindVersion"] = {"kind": "intoto", "version": "0.0.2"}


def _future(bundle: dict[str, Any]) -> None:
    bundle["mediaType"] = "application/vnd.dev.sigstore.bundle.v9+json"


@pytest.mark.parametrize("change", [_no_entry, _another_kind, _future])
def test_unsupported_bundle_is_unreadable(change: Callable[[dict[str, Any]], None]) -> None:
    bundle = json.loads(BUNDLE)
    change(bundle)
    with pytest.raises(signature.Unreadable):
        signature.check_bundle(json.dumps(bundle).encode(), digest=SIGNED, workflow=WORKFLOW, root=signature.trust())


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"<html>", b"\xff\xfe", b"[" * 100_000])
def test_anything_but_a_bundle_is_unreadable(raw: bytes) -> None:
    with pytest.raises(signature.Unreadable):
        signature.check_bundle(raw, digest=SIGNED, workflow=WORKFLOW, root=signature.trust())
