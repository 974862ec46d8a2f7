"""A registry on loopback with token authentication, as Docker Hub and ghcr.io have it.

Anyone may pull, and the user of this run may push: `push` needs credentials, and `verify` works without them. The
registry is Debian's docker-registry; the token server is ours. Source: distribution's docs/spec/auth/jwt.md, token.md.
"""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
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
from pipeline.core.records import write_json
from pipeline.oci.credentials import Credentials
from pipeline.rehearsal import loopback

_ISSUER = "dind-k3s rehearsal"
_SERVICE = "rehearsal"
_START = 20.0  # seconds until the registry must answer; it needs well under one
_STOP = 5.0  # seconds for the registry to end by itself

Access = list[dict[str, object]]  # rights, as a token states them


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running registry."""

    host: str  # 127.0.0.1:<port>, with TLS localhost:<port>
    credentials: Credentials  # of the user that may push; new in every run
    authority: Path | None  # with TLS: the certificate (PEM) to trust; new in every run


@contextmanager
def serve(program: str, folder: Path, port: int, *, tls: bool = False) -> Iterator[Served]:
    """Run the registry and its token server for the length of the block; images stay in `folder` between runs.

    The token server listens on the next port. `tls`: both speak TLS. Raises EngineError if a port is in use.
    """
    folder.mkdir(parents=True, exist_ok=True)
    credentials = Credentials(username="rehearsal", password=secrets.token_urlsafe(24))
    name = "localhost" if tls else "127.0.0.1"
    # Both ends trust this certificate: the registry for the signatures of tokens, clients for TLS.
    certificate, key = folder / "token.crt", folder / "token.key"
    _require_free(port)
    _make_certificate(certificate, key)
    realm = f"{'https' if tls else 'http'}://{name}:{port + 1}/token"
    context: ssl.SSLContext | None = None
    http: dict[str, object] = {"addr": f"127.0.0.1:{port}"}
    if tls:
        http["tls"] = {"certificate": str(certificate), "key": str(key)}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    configuration = {  # JSON is YAML
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}, "delete": {"enabled": True}},
        "http": http,
        "auth": {"token": {"realm": realm, "service": _SERVICE, "issuer": _ISSUER, "rootcertbundle": str(certificate)}},
    }
    write_json(folder / "config.yml", configuration)
    token = partial(_token, key.read_bytes(), certificate.read_text(encoding="ascii"))
    # The kernel ends it if this process is killed.
    command = machine.tied([program, "serve", str(folder / "config.yml")])
    with (
        loopback.serve("the token server", port + 1, partial(_TokenHandler, token, credentials), context),
        (folder / "registry.log").open("wb") as output,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            _wait(process, port, folder / "registry.log")
            authority = certificate if tls else None
            yield Served(host=f"{name}:{port}", credentials=credentials, authority=authority)
        finally:
            process.terminate()
            machine.stop(process, _STOP)


def free_ports() -> int:
    """Return a free port whose successor is free, too, for a registry and its token server. Raises EngineError."""
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


def _make_certificate(certificate: Path, key: Path) -> None:
    """Write a new EC key and its self-signed certificate, which is an authority for a day (RFC 5280, 4.2.1)."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", f"/CN={_ISSUER}"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EngineError("openssl cannot make the registry's certificate", found=done.stderr.strip()[-300:])


def _require_free(port: int) -> None:
    """Raise EngineError if the port is in use: a registry that listens there would answer instead of ours."""
    with socket.socket() as probe:
        # As servers do: connections that have just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise loopback.port_taken("the registry", port, error) from None


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the registry listens, which it does once it can answer. Raises EngineError."""
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
    """Issues tokens: `pull` for anyone, `push` for the user."""

    def __init__(self, token: Callable[[Access], str], user: Credentials, *arguments: Any) -> None:
        self._token, self._user = token, user
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer with a token for the requested scopes."""
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
        """Refuse: docker's own clients try this first (distribution's docs/spec/auth/oauth.md), then GET."""
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, since tokens are requested all the time."""


def _token(key: bytes, certificate: str, access: Access) -> str:
    """Return a JSON Web Token with the certificate in its header (RFC 7515)."""
    import jwt

    der = "".join(line for line in certificate.splitlines() if "CERTIFICATE" not in line)
    now = int(time.time())
    claims = {"iss": _ISSUER, "sub": "", "aud": _SERVICE, "nbf": now - 60, "iat": now, "exp": now + 300}
    claims |= {"jti": secrets.token_hex(8), "access": access}
    return jwt.encode(claims, key, algorithm="ES256", headers={"x5c": [der]})
