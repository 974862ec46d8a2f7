"""Certificates made by the openssl command: two authorities, a server, a client and a kubelet certificate.

File names are k3s's (data-dir/server/tls). Keys are EC P-256, as k3s makes them; openssl makes one in milliseconds even
under emulation. The authorities are kept across restarts, the others are made at each start.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .errors import Failure


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """Files of a server or an agent; each certificate's key is next to it."""

    server_ca: Path  # the authority of the API server
    client_ca: Path  # the authority of clients and kubelets
    server: Path  # of the listener
    client: Path  # the administrator's, or an agent's


def ensure(folder: Path, sans: list[str]) -> Certificates:
    """Make the authorities that are missing, and new server and client certificates."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    server_ca, client_ca = (folder / f"{name}-ca.crt" for name in ("server", "client"))
    for authority in (server_ca, client_ca):
        if not authority.is_file():
            uses = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]
            _make(authority, f"/CN=k3s-{authority.stem}", uses)
    server, admin = folder / "serving-kube-apiserver.crt", folder / "client-admin.crt"
    _make(server, "/CN=kube-apiserver", _leaf("serverAuth", *sans), issuer=server_ca)
    _make(admin, "/O=system:masters/CN=system:admin", _leaf("clientAuth"), issuer=client_ca)
    return Certificates(server_ca=server_ca, client_ca=client_ca, server=server, client=admin)


def for_node(client_ca: Path, node: str) -> Path:
    """Make a kubelet's certificate, for its requests to the API server and for its own listener."""
    path = client_ca.parent / f"nodes/{node}.crt"
    path.parent.mkdir(exist_ok=True)
    subject = f"/O=system:nodes/CN=system:node:{node}"
    _make(path, subject, _leaf("clientAuth,serverAuth", f"DNS:{node}"), issuer=client_ca)
    return path


def names(node_name: str, others: list[str]) -> list[str]:
    """Return all names of the server, sorted, as openssl writes subject alternative names."""
    own = [f"kubernetes{suffix}" for suffix in ("", ".default", ".default.svc", ".default.svc.cluster.local")]
    hosts = {"localhost", "127.0.0.1", "::1", *own, node_name, *others}
    addresses = {host for host in hosts if ":" in host or host.replace(".", "").isdecimal()}
    return sorted(f"{'IP' if host in addresses else 'DNS'}:{host}" for host in hosts if host)


def key_of(certificate: Path) -> Path:
    """Return the private key that belongs to a certificate."""
    return certificate.with_suffix(".key")


def _leaf(usage: str, *sans: str) -> list[str]:
    extensions = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature"]
    return [*extensions, f"extendedKeyUsage={usage}", *([f"subjectAltName={','.join(sans)}"] if sans else [])]


def _make(certificate: Path, subject: str, extensions: list[str], issuer: Path | None = None) -> None:
    """Make a key and a certificate; the key is in place first."""
    with tempfile.TemporaryDirectory(dir=certificate.parent) as scratch:
        new, key, config = (Path(scratch, name) for name in ("crt", "key", "openssl.cnf"))
        # Not the system's configuration, which adds extensions: a duplicate one makes the certificate invalid.
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
            raise Failure(f"openssl cannot make {certificate}: {' '.join(done.stderr.split())}")
        key.chmod(0o600)
        key.replace(key_of(certificate))
        new.chmod(0o644)
        new.replace(certificate)
