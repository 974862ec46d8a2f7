"""Verifies Sigstore bundles of statements, and returns the statements. No network, no code of the signer.

Two kinds of trust: a public key, or the identity of a workflow, certified by Sigstore, with an entry in its
transparency log. The log is not queried: the bundle contains its signed entry.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.core.errors import IntentError, VerificationFailed
from pipeline.signing import signature
from pipeline.signing.statement import PAYLOAD, signed_bytes

if TYPE_CHECKING:
    from sigstore.models import TrustedRoot

TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


@dataclass(frozen=True, kw_only=True)
class Trust:
    """The trusted signer: the holder of a key, else an identity confirmed by an issuer."""

    identity: str = ""  # a URI or address; * matches anything
    issuer: str = signature.GITHUB_ACTIONS
    key: ec.EllipticCurvePublicKey | None = None
    root: TrustedRoot | None = None  # None: Sigstore's own

    def __str__(self) -> str:
        return "the holder of the key" if self.key is not None else f"{self.identity}, known to {self.issuer}"


def public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a public key on P-256 in PEM. Raises IntentError."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IntentError("the public key cannot be read", found=str(error), where=str(path)) from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise IntentError("the public key is of another kind", expected="EC on P-256, in PEM", where=str(path))
    return key


def statement(raw: bytes, trust: Trust) -> dict[str, Any]:
    """Return the statement in a bundle. Raises VerificationFailed unless the trusted signer signed it."""
    try:
        document = json.loads(raw)
        envelope = document["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        material = document["verificationMaterial"]
        signatures = [base64.b64decode(entry["sig"], validate=True) for entry in envelope["signatures"]]
        kind = str(envelope["payloadType"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        raise VerificationFailed("a bundle cannot be read", expected=f"{TYPE} with a DSSE envelope") from None
    if kind != PAYLOAD:
        raise VerificationFailed("a bundle does not sign a statement", expected=PAYLOAD, found=kind)
    if len(signatures) != 1:
        raise VerificationFailed("a bundle must have exactly one signature", found=str(len(signatures)))
    if trust.key is not None:
        try:
            trust.key.verify(signatures[0], signed_bytes(payload), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            expected = "a signature of the given key"
            raise VerificationFailed("unexpected signer, or the signed bytes have changed", expected=expected) from None
    elif not isinstance(material, Mapping) or "publicKey" in material:
        raise VerificationFailed("unexpected signer", expected=str(trust), found="the holder of a key")
    else:
        payload = _by_identity(raw, trust)
    try:
        signed = json.loads(payload)
        if not isinstance(signed, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise VerificationFailed("a bundle signs an invalid statement", found=repr(payload[:80])) from None
    return signed


def _by_identity(raw: bytes, trust: Trust) -> bytes:
    from sigstore.errors import Error, VerificationError
    from sigstore.models import Bundle
    from sigstore.verify import Verifier, policy

    issued = policy.AnyOf([policy.OIDCIssuer(trust.issuer), policy.OIDCIssuerV2(trust.issuer)])
    try:
        bundle = Bundle.from_json(raw)
        verifier = Verifier(trusted_root=trust.root or signature.trust())
        _, payload = verifier.verify_dsse(bundle, policy.AllOf([issued, _Named(trust.identity)]))
    except (VerificationError, x509.ExtensionNotFound) as error:
        raise VerificationFailed("unexpected signer", expected=str(trust), found=str(error)) from None
    except (Error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise VerificationFailed("a bundle cannot be read", expected=TYPE, found=reason) from None
    return payload


class _Named:
    """A policy of the sigstore library: the certificate has a matching name."""

    def __init__(self, identity: str) -> None:
        self._identity = identity

    def verify(self, certificate: x509.Certificate) -> None:
        """Raises sigstore's VerificationError."""
        from sigstore.errors import VerificationError

        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        identities = [
            *names.get_values_for_type(x509.UniformResourceIdentifier),
            *names.get_values_for_type(x509.RFC822Name),
        ]
        pattern = ".*".join(re.escape(part) for part in self._identity.split("*"))
        if not any(re.fullmatch(pattern, name) for name in identities):
            raise VerificationError(f"the certificate names {', '.join(identities) or 'nobody'}")
