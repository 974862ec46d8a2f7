"""A real registry on loopback with token authentication as Docker Hub and ghcr.io have it, and a base image in it.

Anyone may pull, the user of this run may push: so `push` needs credentials and `verify` does without. The registry is
Debian's docker-registry; the token server is ours. Source: distribution's docs/spec/auth/jwt.md and token.md.
"""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import secrets
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.core.machine import find
from pipeline.core.names import INDEX, MANIFEST, Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import write_json, write_text
from pipeline.oci.credentials import Credentials
from pipeline.oci.registry import Registry

_ISSUER = "dind-k3s rehearsal"
_SERVICE = "rehearsal"
_START = 20.0  # seconds until the registry must answer; it takes well under one
_STOP = 5.0  # seconds for the registry to end by itself
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running registry."""

    host: str  # 127.0.0.1:<port>, with TLS localhost:<port>
    credentials: Credentials  # of the user that may push; new in every run
    authority: Path | None  # with TLS: the certificate (PEM) to trust; new in every run
    token: Callable[[list[dict[str, object]]], str]  # for a client that cannot ask the token server: access → token


@contextmanager
def serve(program: str, folder: Path, port: int, *, tls: bool = False) -> Iterator[Served]:
    """Run the registry and its token server for the length of the block; images stay in `folder` between runs.

    The token server listens on the next port. `tls`: both speak TLS. Raises EngineError when either port is taken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    credentials = Credentials(username="rehearsal", password=secrets.token_urlsafe(24))
    key, certificate = _key_and_certificate()
    # One certificate for both ends of trust: the registry believes tokens that it signed, clients the registry.
    authority, private = folder / "token.crt", folder / "token.key"
    authority.write_bytes(certificate)
    name, token_port = "localhost" if tls else "127.0.0.1", port + 1
    host = f"{name}:{port}"
    _require_free(port)
    context: ssl.SSLContext | None = None
    if tls:
        private.touch(mode=0o600)
        private.write_bytes(_pem(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority, private)
    # The configuration is YAML, and JSON is YAML.
    configuration = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}, "delete": {"enabled": True}},
        "http": {
            "addr": f"127.0.0.1:{port}",
            **({"tls": {"certificate": str(authority), "key": str(private)}} if tls else {}),
        },
        "auth": {
            "token": {
                "realm": f"{'https' if tls else 'http'}://{name}:{token_port}/token",
                "service": _SERVICE,
                "issuer": _ISSUER,
                "rootcertbundle": str(authority),
            }
        },
    }
    write_json(folder / "config.yml", configuration)
    with (
        _token_server(token_port, key, certificate, credentials, context),
        (folder / "registry.log").open("wb") as output,
    ):
        # The kernel ends it with us, should we be killed.
        command = [find("setpriv") or "setpriv", "--pdeathsig", "KILL", program, "serve", str(folder / "config.yml")]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait(process, port, folder / "registry.log")
            yield Served(
                host=host,
                credentials=credentials,
                authority=authority if tls else None,
                token=partial(_token, key, certificate),
            )
        finally:
            process.terminate()
            try:
                process.wait(_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_ports() -> int:
    """A free port whose successor is free too, for a registry and its token server. Raises EngineError."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise EngineError("there are no two free ports in a row on 127.0.0.1")


def _require_free(port: int) -> None:
    """Another registry on our port would answer in ours' place."""
    with socket.socket() as probe:
        # As servers do: connections that have only just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise EngineError(
                f"the registry cannot listen on 127.0.0.1:{port}",
                found=error.strerror,
                next_step=f"stop what listens there: ss -ltnp 'sport = {port}'",
            ) from None


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until it listens: it does so when it can answer, and nothing else listened there a moment ago."""
    deadline = time.monotonic() + _START
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        if process.poll() is not None or time.monotonic() > deadline:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise EngineError(
                f"the registry does not answer on 127.0.0.1:{port}",
                expected=f"an answer within {_START:.0f} s",
                found="; ".join(last) or "no output",
                where=str(log),
                next_step="read that log; nothing else listened on that port a moment ago",
            )
        time.sleep(0.02)


@contextmanager
def _token_server(
    port: int, key: _Key, certificate: bytes, user: Credentials, context: ssl.SSLContext | None
) -> Iterator[None]:
    """Give tokens: `pull` to anyone, `push` to the user; `context`: over TLS."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            given = self.headers.get("Authorization", "")
            known = secrets.compare_digest(given, user.basic)
            if given and not known:
                self.send_error(HTTPStatus.UNAUTHORIZED)
                return
            access: list[dict[str, object]] = []
            for scope in asked.get("scope", []):
                kind, _, rest = scope.partition(":")
                name, _, actions = rest.rpartition(":")
                allowed = [action for action in actions.split(",") if action == "pull" or known]
                access.append({"type": kind, "name": name, "actions": allowed})
            body = json.dumps({"token": _token(key, certificate, access)}).encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            # Docker's own clients ask this way first (distribution's docs/spec/auth/oauth.md), and then by GET.
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: tokens are asked for at every turn."""

    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise EngineError(
            f"the token server cannot listen on 127.0.0.1:{port}",
            found=error.strerror,
            next_step=f"stop what listens there: ss -ltnp 'sport = {port}'",
        ) from None
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def push_base(registry: Registry, tag: str, roots: Mapping[Platform, Path], folder: Path, log: Log) -> Digest:
    """Make a multi-platform image of one layer out of root tars, push it and tag it; the same tars, the same digest.

    `folder`: the image's OCI layout; a tar that was packed before is not packed again.
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = Digest.of(data)
        if not (blobs / digest.hex).exists():
            (blobs / digest.hex).write_bytes(data)
        return {"mediaType": media_type, "digest": digest.text, "size": len(data)}

    manifests = []
    for platform, root in sorted(roots.items()):
        diff, layer = _packed(root, folder)
        config = {
            "architecture": platform.architecture,
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {"Cmd": ["bash"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [diff.text]},
            "history": [{"created_by": "mmdebstrap", "created": "2026-01-01T00:00:00Z"}],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": put(_json(config), "application/vnd.oci.image.config.v1+json"),
            "layers": [put(layer, _LAYER)],
        }
        described = put(_json(manifest), MANIFEST)
        manifests.append({**described, "platform": {"os": "linux", "architecture": platform.architecture}})
    index = _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
    put(index, INDEX)
    digest = Digest.of(index)
    pushed = registry.push_layout(folder, digest, log)
    known = registry.manifest(tag)
    if known is None or known.digest != digest:
        registry.tag(tag, index, INDEX)
    log.say(f"{registry.name}:{tag} is {digest}" + ("" if pushed.sent else ", as before"))
    return digest


def _packed(root: Path, folder: Path) -> tuple[Digest, bytes]:
    """A tar's digest and its gzip form; remembered by the tar's size and time of change."""
    status = root.stat()
    note = folder / f"{root.name}.json"
    mark = [status.st_size, status.st_mtime_ns]
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        layer = (folder / "blobs" / "sha256" / Digest(known["layer"]).hex).read_bytes()
        if known["mark"] == mark and Digest.of(layer).text == known["layer"]:
            return Digest(known["diff"]), layer
    except (OSError, ValueError, KeyError):
        pass
    data = root.read_bytes()
    layer = gzip.compress(data, compresslevel=3, mtime=0)
    diff = Digest(f"sha256:{sha256(data).hexdigest()}")
    (folder / "blobs" / "sha256" / Digest.of(layer).hex).write_bytes(layer)
    write_text(note, json.dumps({"mark": mark, "diff": diff.text, "layer": Digest.of(layer).text}))
    return diff, layer


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


# The signing key's type is cryptography's; that library is only imported when a registry is served.
_Key = object


def _key_and_certificate() -> tuple[_Key, bytes]:
    """A fresh EC key and its self-signed certificate (PEM), which the registry and its clients trust."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _ISSUER)])
    usage = dict.fromkeys(
        (
            *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("crl_sign", "encipher_only", "decipher_only"),
        ),
        False,
    )
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        # What a strict verifier asks of an authority (RFC 5280 §4.2.1, Python's VERIFY_X509_STRICT).
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return key, certificate.public_bytes(Encoding.PEM)


def _pem(key: _Key) -> bytes:
    """A private key as the registry reads it."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _token(key: _Key, certificate: bytes, access: list[dict[str, object]]) -> str:
    """A JSON Web Token, ES256, with the certificate in its header (RFC 7515, RFC 7518 §3.4)."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    assert isinstance(key, ec.EllipticCurvePrivateKey)
    der = "".join(line for line in certificate.decode().splitlines() if "CERTIFICATE" not in line)
    now = int(time.time())
    header = {"typ": "JWT", "alg": "ES256", "x5c": [der]}
    claims = {
        **{"iss": _ISSUER, "sub": "", "aud": _SERVICE, "nbf": now - 60, "iat": now, "exp": now + 300},
        "jti": secrets.token_hex(8),
        "access": access,
    }
    signed = f"{_url64(_json(header))}.{_url64(_json(claims))}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_url64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
