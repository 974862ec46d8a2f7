"""Token, node password and kubeconfigs."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from pathlib import Path

from .certs import Certificates, key_of
from .config import Config


def ensure_token(config: Config, certificates: Certificates) -> str:
    """Return the server's secret, the same after restarts; the file has it in k3s's form, after the CA's hash."""
    path = config.data_dir / "server/token"
    stored = path.read_text(encoding="utf-8").strip().rpartition(":")[2] if path.is_file() else ""
    secret = stored or config.token or secrets.token_hex(16)
    ca_hash = hashlib.sha256(certificates.server_ca.read_bytes()).hexdigest()
    write(path, f"K10{ca_hash}::server:{secret}\n")
    for link in (path.with_name("node-token"), path.with_name("agent-token")):
        if not link.is_symlink():
            link.unlink(missing_ok=True)
            link.symlink_to(path)  # absolute, as in pkg/server/server.go
    return secret


def ensure_node_password(config: Config) -> str:
    """Return the node's password, whose file is outside data-dir as k3s's is."""
    path = config.etc_dir / "node/password"
    if not path.is_file():
        write(path, secrets.token_hex(16) + "\n")
    return path.read_text(encoding="utf-8").strip()


def write_kubeconfig(config: Config, certificates: Certificates) -> None:
    """Write the administrator's kubeconfig, and k3s's own; both contain the certificates."""
    host = config.bind_address if config.bind_address not in ("0.0.0.0", "::") else "127.0.0.1"
    content = _kubeconfig(
        {"certificate-authority-data": _embedded(certificates.server_ca), "server": url(host, config.port)},
        {
            "client-certificate-data": _embedded(certificates.client),
            "client-key-data": _embedded(key_of(certificates.client)),
        },
    )
    write(config.kubeconfig, content, mode=config.kubeconfig_mode)
    write(config.data_dir / "server/cred/admin.kubeconfig", content)
    link = config.etc_dir / "k3s/k3s.yaml"
    if link != config.kubeconfig:  # as in pkg/server/server.go
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(config.kubeconfig)


def write_kubelet_kubeconfig(config: Config, certificate: Path, *, ca: Path, server: str) -> None:
    """Write a kubelet's kubeconfig, which names files. Of an agent, k3s's names a load balancer on 127.0.0.1:6444."""
    content = _kubeconfig(
        {"certificate-authority": str(ca), "server": server},
        {"client-certificate": str(certificate), "client-key": str(key_of(certificate))},
    )
    write(config.data_dir / "agent/kubelet.kubeconfig", content)


def url(host: str, port: int) -> str:
    """Return the URL of a server, IPv6 in brackets."""
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


def write(path: Path, content: str, *, mode: int = 0o600) -> None:
    """Write a file atomically: a crash leaves the old or the new content. Makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
