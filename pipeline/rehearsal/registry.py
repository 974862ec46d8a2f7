"""A real registry on loopback with token authentication as Docker Hub and ghcr.io have it, and a base image in it.

Anyone may pull, the user of this run may push: so `push` needs credentials and `verify` does without. The registry is
Debian's docker-registry; the token server is ours. Source: distribution's docs/spec/auth/jwt.md and token.md.
"""

from __future__ import annotations

import gzip
import json
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pipeline.core import machine
from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.core.names import INDEX, MANIFEST, Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import write_json
from pipeline.oci.credentials import Credentials
from pipeline.oci.registry import Registry
from pipeline.rehearsal import loopback

_ISSUER = "dind-k3s rehearsal"
_SERVICE = "rehearsal"
_START = 20.0  # seconds until the registry must answer; it takes well under one
_STOP = 5.0  # seconds for the registry to end by itself
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

Access = list[dict[str, object]]  # rights, as a token states them


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running registry."""

    host: str  # 127.0.0.1:<port>, with TLS localhost:<port>
    credentials: Credentials  # of the user that may push; new in every run
    authority: Path | None  # with TLS: the certificate (PEM) to trust; new in every run
    token: Callable[[Access], str]  # for a client that cannot ask the token server


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a registry has its files and ports."""

    folder: Path
    port: int
    tls: bool

    @property
    def certificate(self) -> Path:
        """For both ends of trust: the registry believes tokens that it signed, clients the registry."""
        return self.folder / "token.crt"

    @property
    def key(self) -> Path:
        return self.folder / "token.key"

    @property
    def name(self) -> str:
        return "localhost" if self.tls else "127.0.0.1"

    def make_certificate(self) -> None:
        """Write a new EC key and its self-signed certificate, which is an authority for a day (RFC 5280, 4.2.1)."""
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-keyout", str(self.key), "-out", str(self.certificate), "-days", "1", "-subj", f"/CN={_ISSUER}"]
        command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        command += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EngineError("openssl cannot make the registry's certificate", found=done.stderr.strip()[-300:])

    def write_configuration(self) -> Path:
        """Write distribution's configuration, which is YAML; JSON is YAML."""
        scheme = "https" if self.tls else "http"
        tls = {"tls": {"certificate": str(self.certificate), "key": str(self.key)}} if self.tls else {}
        token = {
            "realm": f"{scheme}://{self.name}:{self.port + 1}/token",
            "service": _SERVICE,
            "issuer": _ISSUER,
            "rootcertbundle": str(self.certificate),
        }
        configuration = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "storage")}, "delete": {"enabled": True}},
            "http": {"addr": f"127.0.0.1:{self.port}", **tls},
            "auth": {"token": token},
        }
        path = self.folder / "config.yml"
        write_json(path, configuration)
        return path


@contextmanager
def serve(program: str, folder: Path, port: int, *, tls: bool = False) -> Iterator[Served]:
    """Run the registry and its token server for the length of the block; images stay in `folder` between runs.

    The token server listens on the next port. `tls`: both speak TLS. Raises EngineError when either port is taken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = _Place(folder=folder, port=port, tls=tls)
    credentials = Credentials(username="rehearsal", password=secrets.token_urlsafe(24))
    _require_free(port)
    place.make_certificate()
    token = partial(_token, place.key.read_bytes(), place.certificate.read_text(encoding="ascii"))
    context: ssl.SSLContext | None = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(place.certificate, place.key)
    # The kernel ends it with us, should we be killed.
    command = machine.tied([program, "serve", str(place.write_configuration())])
    with (
        loopback.serve("the token server", port + 1, partial(_TokenHandler, token, credentials), context),
        (folder / "registry.log").open("wb") as output,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            _wait(process, port, folder / "registry.log")
            yield Served(
                host=f"{place.name}:{port}",
                credentials=credentials,
                authority=place.certificate if tls else None,
                token=token,
            )
        finally:
            process.terminate()
            machine.stop(process, _STOP)


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
            raise loopback.port_taken("the registry", port, error) from None


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


class _TokenHandler(BaseHTTPRequestHandler):
    """Gives tokens: `pull` to anyone, `push` to the user."""

    def __init__(self, token: Callable[[Access], str], user: Credentials, *arguments: Any) -> None:
        self._token, self._user = token, user
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer with a token for the scopes that were asked for."""
        given = self.headers.get("Authorization", "")
        known = secrets.compare_digest(given, self._user.basic)
        if given and not known:
            self.send_error(HTTPStatus.UNAUTHORIZED)
            return
        access: Access = []
        for scope in parse_qs(urlsplit(self.path).query).get("scope", []):
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            allowed = [action for action in actions.split(",") if action == "pull" or known]
            access.append({"type": kind, "name": name, "actions": allowed})
        body = json.dumps({"token": self._token(access)}).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Refuse: docker's own clients ask this way first (distribution's docs/spec/auth/oauth.md), then by GET."""
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: tokens are asked for all the time."""


def _token(key: bytes, certificate: str, access: Access) -> str:
    """A JSON Web Token with the certificate in its header (RFC 7515)."""
    import jwt

    der = "".join(line for line in certificate.splitlines() if "CERTIFICATE" not in line)
    now = int(time.time())
    claims = {"iss": _ISSUER, "sub": "", "aud": _SERVICE, "nbf": now - 60, "iat": now, "exp": now + 300}
    claims |= {"jti": secrets.token_hex(8), "access": access}
    return jwt.encode(claims, key, algorithm="ES256", headers={"x5c": [der]})


def push_base(registry: Registry, tag: str, roots: Mapping[Platform, Path], folder: Path, log: Log) -> Digest:
    """Make a multi-platform image of one layer out of root tars, push it and tag it; the same tars, the same digest.

    `folder`: the image's OCI layout.
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
        data = root.read_bytes()
        config = {
            "architecture": platform.architecture,
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {"Cmd": ["bash"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [Digest.of(data).text]},
            "history": [{"created_by": "mmdebstrap", "created": "2026-01-01T00:00:00Z"}],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": put(_json(config), "application/vnd.oci.image.config.v1+json"),
            "layers": [put(gzip.compress(data, compresslevel=3, mtime=0), _LAYER)],
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


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
