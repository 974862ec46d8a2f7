"""A Sigstore of the tests: an authority that issues certificates, a log, and a GitHub that gives identities.

It is as Sigstore's public one where clients look: certificates with the identity, the issuer and the word of a
certificate log, entries with an inclusion proof and a signed checkpoint. Each entry is a separate log with one leaf.
Sources: https://github.com/sigstore/fulcio/blob/main/docs/certificate-specification.md, RFC 6962,
https://github.com/sigstore/rekor/blob/main/openapi.yaml, https://github.com/C2SP/C2SP/blob/main/tlog-checkpoint.md.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from sigstore.models import ClientTrustConfig, TrustedRoot

from pipeline.rehearsal import loopback
from tests.helpers.signing import begin, key_usage

IDENTITY = "https://github.com/dind-k3s/dind-k3s/.github/workflows/release.yml@refs/tags/v7"
ISSUER = "https://token.actions.githubusercontent.com"
_SCTS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_ISSUER_V1 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_V2 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_ECDSA = ec.ECDSA(hashes.SHA256())


class Sigstore:
    """Keys, and what is signed with them."""

    def __init__(self) -> None:
        self.url = ""
        self.identity, self.issuer = IDENTITY, ISSUER
        self.entries: list[bytes] = []
        self.broken = ""  # a path that answers with status 500
        self._authority = ec.generate_private_key(ec.SECP384R1())
        self._log = ec.generate_private_key(ec.SECP256R1())
        self._certificates = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "tests"), x509.NameAttribute(NameOID.COMMON_NAME, "ca")]
        )
        public = self._authority.public_key()
        self._root = (
            begin(name, name, public, datetime.now(UTC) - timedelta(days=1), timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(sign=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._authority, hashes.SHA384())
        )

    @property
    def trusted_root(self) -> str:
        """What verifiers must know, as JSON."""
        since = {"start": "2020-01-01T00:00:00Z"}

        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            raw = _b64(_der(key))
            known = {"rawBytes": raw, "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": since}
            identifier = {"keyId": _b64(_key_id(key))}
            return {"baseUrl": self.url, "hashAlgorithm": "SHA2_256", "publicKey": known, "logId": identifier}

        authority = {
            "subject": {"organization": "tests", "commonName": "ca"},
            "uri": self.url,
            "certChain": {"certificates": [{"rawBytes": _b64(self._root.public_bytes(serialization.Encoding.DER))}]},
            "validFor": since,
        }
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self._log)],
                "certificateAuthorities": [authority],
                "ctlogs": [log(self._certificates)],
                "timestampAuthorities": [],
            }
        )

    @property
    def trust(self) -> ClientTrustConfig:
        """What signers must know."""
        service = {"url": self.url, "majorApiVersion": 1, "operator": "tests"}
        service |= {"validFor": {"start": "2020-01-01T00:00:00Z"}}
        config = {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": json.loads(self.trusted_root),
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": [service],
                "oidcUrls": [service],
                "rekorTlogUrls": [service],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaUrls": [],
                "tsaConfig": {"selector": "ANY"},
            },
        }
        return ClientTrustConfig.from_json(json.dumps(config))

    @property
    def root(self) -> TrustedRoot:
        return self.trust.trusted_root

    def token(self) -> str:
        """What GitHub gives a workflow that may write id-tokens; nobody checks its signature here."""
        now = int(time.time())
        claims = {"iss": self.issuer, "sub": "repo:x", "aud": "sigstore", "iat": now, "nbf": now, "exp": now + 300}
        parts = (json.dumps({"alg": "RS256", "typ": "JWT"}).encode(), json.dumps(claims).encode(), b"signature")
        return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)

    def certify(self, request: x509.CertificateSigningRequest) -> list[str]:
        """The chain for a key, in PEM."""
        public = request.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        serial, starts = x509.random_serial_number(), datetime.now(UTC) - timedelta(seconds=5)

        def leaf(word: bytes) -> x509.Certificate:
            text = self.issuer.encode()
            return (
                begin(x509.Name([]), self._root.subject, public, starts, timedelta(minutes=10), serial)
                .add_extension(key_usage(sign=True), critical=True)
                .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
                .add_extension(
                    x509.AuthorityKeyIdentifier.from_issuer_public_key(self._authority.public_key()), critical=False
                )
                .add_extension(
                    x509.SubjectAlternativeName([x509.UniformResourceIdentifier(self.identity)]), critical=True
                )
                .add_extension(x509.UnrecognizedExtension(_ISSUER_V1, text), critical=False)
                .add_extension(x509.UnrecognizedExtension(_ISSUER_V2, b"\x0c" + _length(text) + text), critical=False)
                .add_extension(x509.UnrecognizedExtension(_SCTS, word), critical=False)
                .sign(self._authority, hashes.SHA384())
            )

        # What the certificate log signs is the certificate without its own word (RFC 6962, 3.2).
        when = int(time.time() * 1000)
        body = leaf(self._word(when, b"")).tbs_precertificate_bytes
        issuer = hashlib.sha256(_der(self._authority)).digest()
        signed = struct.pack("!BBQH", 0, 0, when, 1) + issuer + len(body).to_bytes(3, "big") + body + b"\0\0"
        made = leaf(self._word(when, self._certificates.sign(signed, _ECDSA)))
        return [one.public_bytes(serialization.Encoding.PEM).decode() for one in (made, self._root)]

    def _word(self, when: int, signed: bytes) -> bytes:
        """A list of one signed certificate timestamp, as an extension's value."""
        one = struct.pack("!B32sQHBBH", 0, _key_id(self._certificates), when, 0, 4, 3, len(signed)) + signed
        listed = struct.pack("!HH", len(one) + 2, len(one)) + one
        return b"\x04" + _length(listed) + listed

    def enter(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """An entry of the log for a DSSE envelope."""
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        payload = base64.b64decode(envelope["payload"])
        spec = {
            "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(content["envelope"].encode()).hexdigest()},
            "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
            "signatures": [
                {"signature": one["sig"], "verifier": content["verifiers"][0]} for one in envelope["signatures"]
            ],
        }
        body = _canonical({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        self.entries.append(body)
        index, root = len(self.entries), hashlib.sha256(b"\0" + body).digest()
        note = f"tests - 1\n1\n{_b64(root)}\n"
        signed = _key_id(self._log)[:4] + self._log.sign(note.encode(), _ECDSA)
        promised = {"body": _b64(body), "integratedTime": int(time.time())}
        promised |= {"logID": _key_id(self._log).hex(), "logIndex": index}
        proof = {"logIndex": 0, "treeSize": 1, "rootHash": root.hex(), "hashes": []}
        proof["checkpoint"] = f"{note}\n\u2014 tests {_b64(signed)}\n"
        word = _b64(self._log.sign(_canonical(promised), _ECDSA))
        return {root.hex(): {**promised, "verification": {"inclusionProof": proof, "signedEntryTimestamp": word}}}


@contextmanager
def running() -> Iterator[Sigstore]:
    """A Sigstore on a free port of loopback."""
    sigstore = Sigstore()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"value": sigstore.token()})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if sigstore.broken and sigstore.broken in self.path:
                self._answer(500, {"message": "out of order"})
            elif "signingCert" in self.path:
                pem = base64.b64decode(asked["certificateSigningRequest"])
                chain = sigstore.certify(x509.load_pem_x509_csr(pem))
                self._answer(200, {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}})
            else:
                self._answer(201, sigstore.enter(asked))

        def _answer(self, status: int, document: object) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sigstore.url = f"http://127.0.0.1:{server.server_address[1]}"
    with loopback.running(server):
        yield sigstore


def _der(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.DER, form)


def _key_id(key: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(_der(key)).digest()


def _length(data: bytes) -> bytes:
    """DER's length of an element."""
    if len(data) < 0x80:
        return bytes([len(data)])
    size = len(data).to_bytes((len(data).bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(size)]) + size


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _canonical(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
