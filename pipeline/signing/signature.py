"""Signatures of the vendors, made with Sigstore: which identity signed which digest. No network.

- kubectl: a signature and a certificate next to the file, and nothing of the transparency log. Checked here: the
  certificate was issued by Sigstore's authority to that identity by that issuer, and its key signed that very digest.
  Not proven: that it was signed within the ten minutes in which the certificate was valid, and that the log has it;
  `cosign verify-blob` asks Rekor for that, over the network.
- buildx: a bundle, which holds the log's entry and the time. Checked whole, by the sigstore library.

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

# The kinds of entries of the transparency log that the library can check a bundle against.
_KINDS = {("dsse", "0.0.1"), ("hashedrekord", "0.0.1"), ("hashedrekord", "0.0.2")}


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """Who may have signed a bundle: a workflow on GitHub that ran for that repository at that tag."""

    repository: str  # https://github.com/docker/buildx
    ref: str  # refs/tags/v0.36.1


class Unreadable(Exception):
    """A bundle that cannot be judged: none of the kinds that the library knows, or without an entry of the log."""


def trust() -> TrustedRoot:
    """Sigstore's public trust root, as the library includes it; kept in the user's cache folder, no network."""
    from sigstore.models import ClientTrustConfig

    logging.getLogger("sigstore").setLevel(logging.ERROR)  # it warns that it is offline, which is wanted
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

    `authorities`: certificates that are trusted to issue, `trust().get_fulcio_certs()`. Raises VerificationFailed
    with the first thing that is wrong.
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
    # Checked at the moment of issue: the certificate is valid for ten minutes, and nothing here states when the
    # signature was made.
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
            "the signature's certificate was not issued by the authority that is trusted", found=str(error)
        ) from None
    except (VerificationError, x509.ExtensionNotFound) as error:
        raise VerificationFailed(
            "somebody else signed",
            expected=f"{identity}, known to {issuer}",
            found=str(error),
        ) from None
    if ExtendedKeyUsageOID.CODE_SIGNING not in usage or not isinstance(key, ec.EllipticCurvePublicKey):
        raise VerificationFailed("the signature's certificate is not one for signing code")
    try:
        key.verify(signed, bytes.fromhex(digest.hex), ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except InvalidSignature:
        raise VerificationFailed("the signature is not one of that file", expected=f"a signature of {digest}") from None


def _any_usage(policy: verification.ExtensionPolicy) -> verification.ExtensionPolicy:
    """The defaults ask for TLS in the extended key usage; signing code is asked for afterwards."""
    return policy.may_be_present(x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, None)


def check_bundle(raw: bytes, *, digest: Digest, workflow: Workflow, root: TrustedRoot) -> None:
    """Check a Sigstore bundle against a file's digest: a signature of it, or of a statement that names it.

    Raises Unreadable for what cannot be judged, VerificationFailed for what is wrong.
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
    wanted = policy.AllOf(
        [
            policy.OIDCIssuer(GITHUB_ACTIONS),
            policy.OIDCSourceRepositoryURI(workflow.repository),
            policy.OIDCSourceRepositoryRef(workflow.ref),
        ]
    )
    verifier = Verifier(trusted_root=root)
    try:
        if kind == "statement":
            named = _named(verifier, bundle, wanted)
            if digest.hex not in named:
                raise VerificationFailed(
                    "the signed statement is about other files", expected=digest.hex, found=", ".join(sorted(named))
                )
        else:
            hashed = Hashed(algorithm=HashAlgorithm.SHA2_256, digest=bytes.fromhex(digest.hex))
            verifier.verify_artifact(hashed, bundle, wanted)
    except (VerificationError, x509.ExtensionNotFound) as error:
        raise VerificationFailed(
            "the bundle does not hold",
            expected=f"a signature by a workflow of {workflow.repository} at {workflow.ref}",
            found=str(error),
        ) from None


def _kind(raw: bytes) -> str:
    """What the bundle signs: a `statement` (DSSE) or the `file` itself. Raises Unreadable."""
    try:
        document = json.loads(raw)
        entry = document["verificationMaterial"]["tlogEntries"][0]["kindVersion"]
        found = (entry["kind"], entry["version"])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise Unreadable("no bundle with an entry of the transparency log") from None
    if found not in _KINDS:
        raise Unreadable(f"an entry of the transparency log of the kind {found[0]} {found[1]}"[:200])
    return "statement" if "dsseEnvelope" in document else "file"


def _named(verifier: Verifier, bundle: Bundle, wanted: VerificationPolicy) -> set[str]:
    """The sha256 of every file that a signed in-toto statement names."""
    kind, payload = verifier.verify_dsse(bundle, wanted)
    if kind != PAYLOAD:
        raise VerificationFailed("what the bundle signs is no statement", expected=PAYLOAD, found=kind)
    try:
        return {str(subject["digest"]["sha256"]) for subject in json.loads(payload)["subject"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise VerificationFailed(
            "the signed statement names no file", found=payload[:80].decode(errors="replace")
        ) from None
