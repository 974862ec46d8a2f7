"""The certificates of the server, made by the openssl command: two authorities, one server and one client certificate.

File names are k3s's (data-dir/server/tls). Keys are EC P-256, which is what k3s makes, and openssl makes one in
milliseconds even under emulation. Everything is kept across restarts; the server's certificate is made again when its
names change, and both leaves when they have less than 90 days left (k3s renews then, too, and only at a start).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from . import files
from .failure import Failure

RENEW_SECONDS = 90 * 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """Where the files are."""

    folder: Path

    @property
    def server_ca(self) -> Path:
        """The authority that clients trust."""
        return self.folder / "server-ca.crt"

    @property
    def client_ca(self) -> Path:
        """The authority whose client certificates the server trusts."""
        return self.folder / "client-ca.crt"

    @property
    def server(self) -> Path:
        """The server's certificate; its key lies beside it."""
        return self.folder / "serving-kube-apiserver.crt"

    @property
    def admin(self) -> Path:
        """The administrator's certificate, as in the kubeconfig."""
        return self.folder / "client-admin.crt"

    def of_node(self, node: str, *, serving: bool) -> Path:
        """Where the certificate that `for_node` makes is."""
        return self.folder / f"nodes/{'serving' if serving else 'client'}-{node}.crt"

    def for_node(self, node: str, address: str, *, serving: bool) -> bytes:
        """A new certificate and its key for an agent: to serve at its address, or to be known by its name."""
        path = self.of_node(node, serving=serving)
        path.parent.mkdir(exist_ok=True)
        subject = f"/O=system:nodes/CN=system:node:{node}"
        if serving:
            sans = f"subjectAltName=DNS:{node},IP:{address}"
            _make(path, f"/CN={node}", [*_leaf("serverAuth"), sans], issuer=self.server_ca)
        else:
            _make(path, subject, _leaf("clientAuth"), issuer=self.client_ca)
        return path.read_bytes() + key_of(path).read_bytes()


def names(node_name: str, addresses: list[str], extra: tuple[str, ...]) -> list[str]:
    """All names of the server, sorted, as openssl writes subject alternative names."""
    hosts = {
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "127.0.0.1",
        "::1",
        node_name,
        *addresses,
        *extra,
    }
    return sorted(f"{'IP' if _is_address(host) else 'DNS'}:{host}" for host in hosts if host)


def ensure(folder: Path, sans: list[str]) -> Certificates:
    """Make what is missing, outdated or has other names than asked for."""
    if shutil.which("openssl") is None:
        raise Failure("the openssl command is missing; the stand-in makes its certificates with it")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    certificates = Certificates(folder=folder)
    for authority, subject in (
        (certificates.server_ca, "/CN=k3s-server-ca"),
        (certificates.client_ca, "/CN=k3s-client-ca"),
    ):
        if not _usable(authority):
            _make(authority, subject, ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"])
    record = folder / "serving-kube-apiserver.sans"
    wanted = "\n".join(sans) + "\n"
    known = record.read_text(encoding="utf-8") if record.is_file() else ""
    if known != wanted or not _usable(certificates.server, issuer=certificates.server_ca):
        extensions = [*_leaf("serverAuth"), f"subjectAltName={','.join(sans)}"]
        _make(certificates.server, "/CN=kube-apiserver", extensions, issuer=certificates.server_ca)
        files.write(record, wanted)
    if not _usable(certificates.admin, issuer=certificates.client_ca):
        subject = "/O=system:masters/CN=system:admin"
        _make(certificates.admin, subject, _leaf("clientAuth"), issuer=certificates.client_ca)
    return certificates


def key_of(certificate: Path) -> Path:
    """The private key that belongs to a certificate."""
    return certificate.with_suffix(".key")


def _leaf(usage: str) -> list[str]:
    return ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature", f"extendedKeyUsage={usage}"]


def _usable(certificate: Path, issuer: Path | None = None) -> bool:
    if not certificate.is_file() or not key_of(certificate).is_file():
        return False
    if not _succeeds(["x509", "-noout", "-checkend", str(RENEW_SECONDS), "-in", str(certificate)]):
        return False
    return issuer is None or _succeeds(["verify", "-CAfile", str(issuer), str(certificate)])


def _make(certificate: Path, subject: str, extensions: list[str], issuer: Path | None = None) -> None:
    """Make a key and a certificate and put both in place, the key first."""
    with tempfile.TemporaryDirectory(dir=certificate.parent) as scratch:
        new, key = Path(scratch, "crt"), Path(scratch, "key")
        command = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256"]
        command += ["-subj", subject, "-days", "365" if issuer else "3650", "-keyout", str(key), "-out", str(new)]
        # A configuration of our own: the system's adds extensions, and two of a kind make a broken certificate.
        config = Path(scratch, "openssl.cnf")
        lines = ["[req]", "distinguished_name=name", "[name]", "[extensions]", *extensions]
        lines += ["subjectKeyIdentifier=hash", "authorityKeyIdentifier=keyid:always"]
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command += ["-config", str(config), "-extensions", "extensions"]
        if issuer:
            command += ["-CA", str(issuer), "-CAkey", str(key_of(issuer))]
        done = subprocess.run(["openssl", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failure(f"openssl could not make {certificate}: {' '.join(done.stderr.split())}")
        key.chmod(0o600)
        key.replace(key_of(certificate))
        new.chmod(0o644)
        new.replace(certificate)


def _succeeds(arguments: list[str]) -> bool:
    return subprocess.run(["openssl", *arguments], capture_output=True, check=False).returncode == 0


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
