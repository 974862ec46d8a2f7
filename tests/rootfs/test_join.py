"""Whether an agent believes its server: CAs of k3s's own, and those of users, which are below a root."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from dind_k3s import join

from tests import servers

PEM = serialization.Encoding.PEM
OTHER = "the token is not for the server"
UNSIGNED = "is not signed by its own CA"


@dataclass(frozen=True, kw_only=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(PEM)


def issue(name: str, issuer: Authority | None = None, *, ca: bool = True) -> Authority:
    """A certificate with its key; without an issuer, a root."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(issuer.key if issuer else key, hashes.SHA256())
    )
    return Authority(certificate=certificate, key=key)


def serving(leaf: Authority, folder: Path) -> ssl.SSLContext:
    secret = leaf.key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "serving.pem").write_bytes(secret + leaf.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "serving.pem")
    return context


def problem(folder: Path, leaf: Authority, bundle: bytes, digest: str) -> str:
    with servers.running(serving(leaf, folder)) as server:
        server.gives("/cacerts", bundle)
        server.gives("/v1-k3s/client-ca.crt", b"")
        return join.problem(server.url, f"K10{digest}::server:secret")


def of_root(root: Authority) -> str:
    """k3s's hash of a bundle of several certificates."""
    return hashlib.sha256(root.certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def test_a_single_ca_is_hashed_as_it_is(tmp_path: Path) -> None:
    ca = issue("k3s-server-ca@1")
    leaf = issue("k3s", ca, ca=False)
    assert problem(tmp_path, leaf, ca.pem, hashlib.sha256(ca.pem).hexdigest()) == ""
    assert OTHER in problem(tmp_path, leaf, ca.pem, of_root(issue("other")))


def test_a_ca_below_a_root_is_hashed_by_its_root(tmp_path: Path) -> None:
    root = issue("root")
    between = issue("between", root)
    ca = issue("server-ca", between)
    leaf = issue("k3s", ca, ca=False)
    bundle = ca.pem + between.pem + root.pem
    assert problem(tmp_path, leaf, bundle, of_root(root)) == ""
    assert OTHER in problem(tmp_path, leaf, bundle, of_root(issue("root")))


@pytest.mark.parametrize("more", [True, False])
def test_a_bundle_with_the_right_root_but_another_ca_is_not_believed(tmp_path: Path, more: bool) -> None:
    """Anybody can put a public root beside a CA of his own."""
    root = issue("root")
    ca = issue("server-ca", issue("root"))  # by a root of the same name
    alone = issue("alone")
    leaf = issue("k3s", alone if more else ca, ca=False)
    bundle = ca.pem + root.pem + (alone.pem if more else b"")
    assert UNSIGNED in problem(tmp_path, leaf, bundle, of_root(root))
