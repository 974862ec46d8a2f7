"""A certificate authority of the tests that issues what Sigstore's issues: ten minutes, an identity, an issuer."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pipeline.signing import signature

_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_START = datetime(2024, 3, 19, tzinfo=UTC)


@dataclass(frozen=True)
class Pair:
    """The files next to a signed file, and what they are checked against."""

    certificate: bytes
    signature: bytes
    authority: x509.Certificate


def sign(
    data: bytes,
    *,
    identity: str = signature.KUBERNETES,
    issuer: str = signature.GOOGLE,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CODE_SIGNING,
    starts: datetime = _START + timedelta(days=1),
    wrapped: bool = True,
) -> Pair:
    """Sign as kubernetes does: an ephemeral key, a certificate in PEM in base64, a signature in base64."""
    root_key, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "tests"), x509.NameAttribute(NameOID.COMMON_NAME, "ca")]
    )
    authority = (
        begin(name, name, root_key.public_key(), _START, timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(sign=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA384())
    )
    leaf = (
        begin(x509.Name([]), name, key.public_key(), starts, timedelta(minutes=10))
        .add_extension(key_usage(sign=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(identity)]), critical=True)
        .add_extension(x509.UnrecognizedExtension(_ISSUER, issuer.encode()), critical=False)
        .sign(root_key, hashes.SHA384())
    )
    pem = leaf.public_bytes(serialization.Encoding.PEM)
    return Pair(
        certificate=base64.b64encode(pem) if wrapped else pem,
        signature=base64.b64encode(key.sign(data, ec.ECDSA(hashes.SHA256()))),
        authority=authority,
    )


def begin(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    starts: datetime,
    length: timedelta,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    """A certificate without extensions, not signed yet."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(starts)
        .not_valid_after(starts + length)
    )


def key_usage(*, sign: bool) -> x509.KeyUsage:
    """Of a key that signs data, or of an authority's."""
    return x509.KeyUsage(
        digital_signature=sign,
        key_cert_sign=not sign,
        crl_sign=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
