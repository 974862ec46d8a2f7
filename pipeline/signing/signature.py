"""Verifies the vendors' Sigstore signatures: the expected identity signed the digest. No network.

- kubectl: a signature and a certificate next to the file, without an entry of the transparency log. Checked here:
  Sigstore's authority issued the certificate to that identity of that issuer, and its key signed the digest. Not
  proven: that it was signed within the ten minutes of the certificate's validity, and that the log has an entry;
  `cosign verify-blob` queries Rekor for that, over the network.
- buildx: a bundle with the log's entry and the time. Verified completely, by the sigstore library.

The trust root is the one that the sigstore library includes; it is updated with the library.
Sources: https://kubernetes.io/docs/tasks/administer-cluster/verify-signed-artifacts/,
https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md, docker/github-builder (README).
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from pipeline.core.errors import VerificationFailed
from pipeline.core.names import Digest
from pipeline.signing.statement import PAYLOAD

if TYPE_CHECKING:
    from sigstore.models import Bundle, TrustedRoot
    from sigstore.verify import Verifier
    from sigstore.verify.policy import VerificationPolicy

KUBERNETES = "krel-staging@k8s-releng-prod.iam.gserviceaccount.com"
GOOGLE = "https://accounts.google.com"
GITHUB_ACTIONS = "https://token.actions.githubusercontent.com"

# Kinds of transparency log entries that the library supports.
_KINDS = {("dsse", "0.0.1"), ("hashedrekord", "0.0.1"), ("hashedrekord", "0.0.2")}


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """The expected signer of a bundle: a workflow on GitHub in that repository at that tag."""

    repository: str  # https://github.com/docker/buildx
    ref: str  # refs/tags/v0.36.1


class Unreadable(Exception):
    """A bundle that cannot be verified: a kind that the library does not support, or without an entry of the log."""


def trust() -> TrustedRoot:
    """Return Sigstore's public trust root of the library; cached in the user's cache folder, no network."""
    from sigstore.models import ClientTrustConfig

    logging.getLogger("sigstore").setLevel(logging.ERROR)  # it warns that it is offline, which is intended
    return ClientTrustConfig.production(offline=True).trusted_root


def check_pair(
    *,
    certificate: bytes,
    signature: bytes,
    digest: Digest,
    identity: str,
    issuer: str,
    authorities: Sequence[x509.Certificate],
) -> None:
    """Check a detached signature (base64) and its certificate (PEM, or base64 of it) against a file's digest.

    `authorities`: trusted issuers, `trust().get_fulcio_certs()`. Raises VerificationFailed for the first mismatch.
    """
    from sigstore.errors import VerificationError
    from sigstore.verify.policy import Identity

    try:
        text = certificate if b"-----BEGIN" in certificate else base64.b64decode(certificate)
        leaf = x509.load_pem_x509_certificate(text)
        signed = base64.b64decode(signature, validate=False)
        key = leaf.public_key()
    except (ValueError, binascii.Error, x509.InvalidVersion) as error:
        raise VerificationFailed("the signature's certificate cannot be read", found=str(error)) from None
    # Checked at the time of issue: the certificate is valid for ten minutes, and the time of the signature is unknown.
    builder = (
        verification.PolicyBuilder()
        .store(verification.Store(list(authorities)))
        .time(leaf.not_valid_before_utc)
        .extension_policies(
            ca_policy=_any_usage(verification.ExtensionPolicy.webpki_defaults_ca()),
            ee_policy=_any_usage(verification.ExtensionPolicy.webpki_defaults_ee()),
        )
    )
    try:
        builder.build_client_verifier().verify(leaf, [])
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        Identity(identity=identity, issuer=issuer).verify(leaf)
    except (verification.VerificationError, x509.UnsupportedGeneralNameType, ValueError) as error:
        raise VerificationFailed(
            "the signature's certificate was not issued by the trusted authority", found=str(error)
        ) from None
    except (VerificationError, x509.ExtensionNotFound) as error:
        raise VerificationFailed(
            "unexpected signer",
            expected=f"{identity}, known to {issuer}",
            found=str(error),
        ) from None
    if ExtendedKeyUsageOID.CODE_SIGNING not in usage or not isinstance(key, ec.EllipticCurvePublicKey):
        raise VerificationFailed("the signature's certificate is not for code signing")
    try:
        key.verify(signed, bytes.fromhex(digest.hex), ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except InvalidSignature:
        raise VerificationFailed("the signature is not for that file", expected=f"a signature of {digest}") from None


def _any_usage(policy: verification.ExtensionPolicy) -> verification.ExtensionPolicy:
    """Accept any extended key usage: the defaults require TLS; code signing is checked afterwards."""
    return policy.may_be_present(x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, None)


def check_bundle(raw: bytes, *, digest: Digest, workflow: Workflow, root: TrustedRoot) -> None:
    """Check a Sigstore bundle against a file's digest: a signature of it, or of a statement that names it.

    Raises Unreadable for an unsupported bundle, VerificationFailed for an invalid one.
    """
    from sigstore.errors import Error, VerificationError
    from sigstore.hashes import Hashed
    from sigstore.models import Bundle
    from sigstore.verify import Verifier, policy
    from sigstore_models.common.v1 import HashAlgorithm

    kind = _kind(raw)
    try:
        bundle = Bundle.from_json(raw)
    except (Error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unreadable(str(error).partition("\n")[0][:200]) from None
    expected = policy.AllOf(
        [
            policy.OIDCIssuer(GITHUB_ACTIONS),
            policy.OIDCSourceRepositoryURI(workflow.repository),
            policy.OIDCSourceRepositoryRef(workflow.ref),
        ]
    )
    verifier = Verifier(trusted_root=root)
    try:
        if kind == "statement":
            subjects = _subjects(verifier, bundle, expected)
            if digest.hex not in subjects:
                raise VerificationFailed(
                    "the signed statement is about other files", expected=digest.hex, found=", ".join(sorted(subjects))
                )
        else:
            hashed = Hashed(algorithm=HashAlgorithm.SHA2_256, digest=bytes.fromhex(digest.hex))
            verifier.verify_artifact(hashed, bundle, expected)
    except (VerificationError, x509.ExtensionNotFound) as error:
        raise VerificationFailed(
            "the bundle is invalid",
            expected=f"a signature by a workflow of {workflow.repository} at {workflow.ref}",
            found=str(error),
        ) from None


def _kind(raw: bytes) -> str:
    """Return the subject of the signature: a `statement` (DSSE) or the `file` itself. Raises Unreadable."""
    try:
        document = json.loads(raw)
        entry = document["verificationMaterial"]["tlogEntries"][0]["kindVersion"]
        kind = (entry["kind"], entry["version"])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise Unreadable("no bundle with an entry of the transparency log") from None
    if kind not in _KINDS:
        raise Unreadable(f"an entry of the transparency log of the kind {kind[0]} {kind[1]}"[:200])
    return "statement" if "dsseEnvelope" in document else "file"


def _subjects(verifier: Verifier, bundle: Bundle, expected: VerificationPolicy) -> set[str]:
    """Return the sha256 of every subject of a signed in-toto statement."""
    kind, payload = verifier.verify_dsse(bundle, expected)
    if kind != PAYLOAD:
        raise VerificationFailed("the bundle does not sign a statement", expected=PAYLOAD, found=kind)
    try:
        return {str(subject["digest"]["sha256"]) for subject in json.loads(payload)["subject"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise VerificationFailed(
            "the signed statement names no file", found=payload[:80].decode(errors="replace")
        ) from None
