"""Whether the cluster's DNS answers, asked as a pod asks it: at its service's address, over UDP."""

from __future__ import annotations

import secrets
import socket

from dind_k3s.kube_api import Kubernetes, Object
from dind_k3s.root import at

# k3s puts CoreDNS's manifest there unless it is disabled, and takes it away when it is.
MANIFEST = "/app/k3s/server/manifests/coredns.yaml"
SERVICE = "/api/v1/namespaces/kube-system/services/kube-dns"
ENDPOINTS = "/api/v1/namespaces/kube-system/endpoints?fieldSelector=metadata.name%3Dkube-dns"
PATIENCE = 0.5


def enabled() -> bool:
    """Whether this k3s installs a DNS server; to be asked once the cluster takes pods, for then the file is written."""
    return at(MANIFEST).exists() and not at(f"{MANIFEST}.skip").exists()


def has_addresses(endpoints: dict[str, Object] | None) -> bool:
    """Whether a CoreDNS is ready."""
    found = (endpoints or {}).get("kube-dns", {})
    return any(subset.get("addresses") for subset in found.get("subsets") or [])


def problem(kubernetes: Kubernetes) -> str:
    """Why it does not answer; empty when it does."""
    try:
        address = str(kubernetes.get(SERVICE)[1]["spec"]["clusterIP"])
    except (OSError, KeyError, ValueError):
        return "the service kube-dns is not there"
    try:
        ask(address)
    except OSError as error:
        return f"the cluster's DNS does not answer at {address} ({error})"
    return ""


def ask(address: str, port: int = 53, name: str = "kubernetes.default.svc.cluster.local") -> None:
    """One question; any answer to it will do. OSError when there is none."""
    number = secrets.token_bytes(2)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = number + b"\x01\0" + b"\0\x01" + b"\0" * 6 + labels + b"\0" + b"\0\x01\0\x01"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect((address, port))
        sock.send(query)
        while not sock.recv(512).startswith(number):
            pass
