"""Token, node password and kubeconfigs: the files that let others in."""

from __future__ import annotations

import base64
import hashlib
import secrets
from pathlib import Path

from . import files
from .certs import Certificates, key_of
from .config import Config
from .failure import Failure


def ensure_token(config: Config, certificates: Certificates) -> str:
    """Return the server's secret, stable over restarts; the file holds it in k3s's form, behind the CA's hash.

    k3s refuses to start with another token than the one its data was made with, and so does the stub.
    """
    path = config.data_dir / "server/token"
    stored = path.read_text(encoding="utf-8").strip().rpartition(":")[2] if path.is_file() else ""
    if stored and config.token and stored != config.token:
        raise Failure(f"bootstrap data was made with another token: the one given is not the one in {path}")
    secret = stored or config.token or secrets.token_hex(16)
    ca_hash = hashlib.sha256(certificates.server_ca.read_bytes()).hexdigest()
    files.write(path, f"K10{ca_hash}::server:{secret}\n")
    for link in (path.with_name("node-token"), path.with_name("agent-token")):
        if not link.is_symlink():
            link.unlink(missing_ok=True)
            link.symlink_to(path)  # absolute, as in pkg/server/server.go
    return secret


def ensure_node_password(config: Config) -> str:
    """Return the node's password, kept where k3s keeps it: outside data-dir, so that losing it can be rehearsed."""
    path = config.etc_dir / "node/password"
    if not path.is_file():
        files.write(path, secrets.token_hex(16) + "\n")
    return path.read_text(encoding="utf-8").strip()


def write_kubeconfig(config: Config, certificates: Certificates) -> None:
    """Write the administrator's kubeconfig, with all certificates in it."""
    host = config.bind_address if config.bind_address not in ("0.0.0.0", "::") else "127.0.0.1"
    content = _kubeconfig(
        {"certificate-authority-data": _embedded(certificates.server_ca), "server": url(host, config.port)},
        {
            "client-certificate-data": _embedded(certificates.client),
            "client-key-data": _embedded(key_of(certificates.client)),
        },
    )
    files.write(config.kubeconfig, content, mode=config.kubeconfig_mode)


def write_kubelet_kubeconfig(config: Config, certificate: Path, *, ca: Path, server: str) -> None:
    """The kubelet's own. An agent's points to a load balancer on 127.0.0.1:6444 in k3s; here to the server itself."""
    content = _kubeconfig(
        {"certificate-authority": str(ca), "server": server},
        {"client-certificate": str(certificate), "client-key": str(key_of(certificate))},
    )
    files.write(config.data_dir / "agent/kubelet.kubeconfig", content)


def url(host: str, port: int) -> str:
    """The address of a server, IPv6 in brackets."""
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


def _kubeconfig(cluster: dict[str, str], user: dict[str, str]) -> str:
    def indented(values: dict[str, str]) -> str:
        return "".join(f"    {key}: {value}\n" for key, value in values.items())

    return f"""apiVersion: v1
kind: Config
clusters:
- name: default
  cluster:
{indented(cluster)}contexts:
- name: default
  context:
    cluster: default
    user: default
current-context: default
users:
- name: default
  user:
{indented(user)}"""


def _embedded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")
