"""Signers: a workflow on GitHub without a stored key (Sigstore), or a key in a file, for rehearsals and forks.

Both return a Sigstore bundle with a DSSE envelope, the format of cosign 3.
Sources: https://github.com/sigstore/protobuf-specs (sigstore_bundle.proto), sigstore-python's sigstore.sign.
"""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.core.errors import IntentError, UpstreamError
from pipeline.core.names import Digest
from pipeline.signing.bundle import TYPE
from pipeline.signing.statement import PAYLOAD, signed_bytes

if TYPE_CHECKING:
    from sigstore.models import ClientTrustConfig
    from sigstore.sign import SigningContext


class KeySigner:
    """An ECDSA P-256 key. The same statement gives the same bundle (RFC 6979), so a rerun changes nothing."""

    def __init__(self, path: Path) -> None:
        """Read an unencrypted private key in PEM. Raises IntentError."""
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise IntentError(
                "the signing key cannot be read",
                expected="an unencrypted EC key on P-256 in PEM",
                found=str(error),
                where=str(path),
                next_step="create one: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out FILE",
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise IntentError("the signing key is of another kind", expected="EC on P-256", where=str(path))
        self._key = key
        self._path = path

    @property
    def public(self) -> ec.EllipticCurvePublicKey:
        """The public key."""
        return self._key.public_key()

    def sign(self, statement: bytes) -> bytes:
        """Return a bundle that names the key by its digest, as cosign does; without a log entry."""
        encoded = self.public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        signed = self._key.sign(signed_bytes(statement), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        bundle = {
            "mediaType": TYPE,
            "verificationMaterial": {
                "publicKey": {"hint": base64.b64encode(bytes.fromhex(Digest.of(encoded).hex)).decode()}
            },
            "dsseEnvelope": {
                "payload": base64.b64encode(statement).decode(),
                "payloadType": PAYLOAD,
                "signatures": [{"sig": base64.b64encode(signed).decode()}],
            },
        }
        return json.dumps(bundle, sort_keys=True, separators=(",", ":")).encode()

    def __str__(self) -> str:
        return f"the key {self._path.name}"


def make_key(path: Path) -> Path:
    """Create a private key if it does not exist, with mode 0600; return the path of the public key next to it."""
    public = path.with_suffix(".pub")
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        form = serialization.PrivateFormat.PKCS8
        path.touch(mode=0o600)
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    encoded = KeySigner(path).public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    public.write_bytes(encoded)
    return public


class Keyless:
    """The identity of this workflow, certified by Sigstore for ten minutes; each signature has an entry in its log."""

    def __init__(self, context: SigningContext, token: str) -> None:
        """`token`: OpenID Connect, for the audience `sigstore`."""
        from sigstore.oidc import IdentityToken

        self._context = context
        self._token = IdentityToken(token)

    def sign(self, statement: bytes) -> bytes:
        """Return a bundle with the certificate and the log's entry. Raises UpstreamError if Sigstore is unavailable."""
        from sigstore.dsse import Statement

        try:
            # A certificate for each signature, since it is valid for ten minutes.
            with self._context.signer(self._token) as signer:
                return signer.sign_dsse(Statement(statement)).to_json().encode()
        except Exception as error:
            # The library's clients of Fulcio and Rekor raise classes without a common base.
            if type(error).__module__.partition(".")[0] not in ("sigstore", "requests", "pydantic_core", "urllib3"):
                raise
            raise UpstreamError(
                "Sigstore did not sign",
                found=str(error).partition("\n")[0][:300] or type(error).__name__,
                next_step="run it again: what was signed is kept and not signed again (status: status.sigstore.dev)",
            ) from None

    def __str__(self) -> str:
        return f"{self._token.identity}, by Sigstore"


Signer = KeySigner | Keyless


def identity_token() -> str:
    """Return the OpenID Connect token of this workflow. Raises IntentError where there is none."""
    from sigstore.oidc import IdentityError, detect_credential

    try:
        token = detect_credential()
    except IdentityError as error:
        raise IntentError("this workflow's identity is not available", found=str(error), next_step=_NEXT) from None
    if token is None:
        raise IntentError("there is no identity to sign with", found="no workflow on GitHub", next_step=_NEXT)
    return token


def keyless(trust: ClientTrustConfig | None = None) -> Keyless:
    """Return a signer with the identity of this workflow, which needs the permission `id-token: write`.

    `trust`: the Sigstore instance; None: the public one. Raises IntentError without an identity, UpstreamError.
    """
    from sigstore.errors import Error
    from sigstore.models import ClientTrustConfig
    from sigstore.sign import SigningContext

    token = identity_token()
    logging.getLogger("sigstore").setLevel(logging.ERROR)
    try:
        return Keyless(SigningContext.from_trust_config(trust or ClientTrustConfig.production()), token)
    except Error as error:
        raise UpstreamError("Sigstore's trust root cannot be renewed", found=str(error)[:300]) from None


_NEXT = "in a workflow: `permissions: id-token: write` for the job; anywhere else: --key FILE"
