"""The certificates of the server, made by the openssl command: two authorities, one server and one client certificate.

File names are k3s's (data-dir/server/tls). Keys are EC P-256, which is what k3s makes, and openssl makes one in
milliseconds even under emulation. Everything is kept across restarts; the server's certificate is made again when its
names change, and both leaves when they have less than 90 days left (k3s renews then, too, and only at a start).
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import files
from .failure import Failure

RENEW_SECONDS = 90 * 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """Files of a server or an agent; each certificate's key is beside it."""

    server_ca: Path  # the authority of the API server
    client_ca: Path  # the authority of clients and kubelets
    server: Path  # of the listener
    client: Path  # the administrator's, or an agent's


def ensure(folder: Path, sans: list[str]) -> Certificates:
    """Make what is missing, outdated or has other names than asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    authorities = server_ca, client_ca = folder / "server-ca.crt", folder / "client-ca.crt"
    server, admin = folder / "serving-kube-apiserver.crt", folder / "client-admin.crt"
    for authority in authorities:
        if not _is_usable(authority):
            uses = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]
            _make(authority, f"/CN=k3s-{authority.stem}", uses)
    record = folder / "serving-kube-apiserver.sans"
    wanted = "\n".join(sans) + "\n"
    known = record.read_text(encoding="utf-8") if record.is_file() else ""
    if known != wanted or not _is_usable(server):
        extensions = [*_leaf("serverAuth"), f"subjectAltName={','.join(sans)}"]
        _make(server, "/CN=kube-apiserver", extensions, issuer=server_ca)
        files.write(record, wanted)
    if not _is_usable(admin):
        _make(admin, "/O=system:masters/CN=system:admin", _leaf("clientAuth"), issuer=client_ca)
    return Certificates(server_ca=server_ca, client_ca=client_ca, server=server, client=admin)


def for_node(client_ca: Path, node: str) -> Path:
    """Make a kubelet's certificate: the API server knows it by it, and it serves with it."""
    path = client_ca.parent / f"nodes/{node}.crt"
    path.parent.mkdir(exist_ok=True)
    _make(path, f"/O=system:nodes/CN=system:node:{node}", _leaf("clientAuth,serverAuth"), issuer=client_ca)
    return path


def names(node_name: str, others: list[str]) -> list[str]:
    """All names of the server, sorted, as openssl writes subject alternative names."""
    own = [f"kubernetes{suffix}" for suffix in ("", ".default", ".default.svc", ".default.svc.cluster.local")]
    hosts = {"localhost", "127.0.0.1", "::1", *own, node_name, *others}
    addresses = {host for host in hosts if ":" in host or host.replace(".", "").isdecimal()}
    return sorted(f"{'IP' if host in addresses else 'DNS'}:{host}" for host in hosts if host)


def key_of(certificate: Path) -> Path:
    """The private key that belongs to a certificate."""
    return certificate.with_suffix(".key")


def _leaf(usage: str) -> list[str]:
    return ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature", f"extendedKeyUsage={usage}"]


def _is_usable(certificate: Path) -> bool:
    if not certificate.is_file() or not key_of(certificate).is_file():
        return False
    command = ["openssl", "x509", "-noout", "-checkend", str(RENEW_SECONDS), "-in", str(certificate)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _make(certificate: Path, subject: str, extensions: list[str], issuer: Path | None = None) -> None:
    """Make a key and a certificate and put both in place, the key first."""
    with tempfile.TemporaryDirectory(dir=certificate.parent) as scratch:
        new, key, config = (Path(scratch, name) for name in ("crt", "key", "openssl.cnf"))
        # Not the system's configuration: it adds extensions, and two of a kind make a broken certificate.
        lines = ["[req]", "distinguished_name=name", "[name]", "[extensions]", *extensions]
        lines += ["subjectKeyIdentifier=hash", "authorityKeyIdentifier=keyid:always"]
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-sha256", "-config", str(config), "-extensions", "extensions", "-subj", subject]
        command += ["-days", "365" if issuer else "3650", "-keyout", str(key), "-out", str(new)]
        if issuer:
            command += ["-CA", str(issuer), "-CAkey", str(key_of(issuer))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failure(f"openssl could not make {certificate}: {' '.join(done.stderr.split())}")
        key.chmod(0o600)
        key.replace(key_of(certificate))
        new.chmod(0o644)
        new.replace(certificate)
