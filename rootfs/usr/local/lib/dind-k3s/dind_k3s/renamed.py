"""A node with another name than at an earlier start: the Node of that name is this machine, too, and no kubelet has it.

k3s makes a Node for the new name and leaves the old one. Kubernetes calls the old one Ready for 40 s, and its pods
Running for another five minutes, those of a DaemonSet for ever (k3s-io/k3s#6335). So a server deletes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dind_k3s import k3s_config, volume
from dind_k3s.certificates import node_of
from dind_k3s.root import at

if TYPE_CHECKING:  # each start imports this module, and a TLS library with it would cost 20 ms
    from dind_k3s.kube_api import Kubernetes, Object

NAMES = f"{volume.OURS}/names"  # one a line: those that this volume's kubelet has had, without the deleted ones
ETCD = "node-role.kubernetes.io/etcd"
PODS = "/api/v1/pods?fieldSelector=spec.nodeName%3D"


def own_name() -> str:
    """Return the name that k3s made kubelet's certificate for, from --node-name and --with-node-id; empty before."""
    kubeconfig = at(volume.KUBELET)
    path = re.search(r"client-certificate: *(\S+)", kubeconfig.read_text()) if kubeconfig.exists() else None
    return node_of(at(path[1]).read_bytes()) if path and at(path[1]).exists() else ""


def known() -> list[str]:
    """Return the names that are written down."""
    return at(NAMES).read_text().split() if at(NAMES).is_file() else []


def noted() -> str:
    """Return NAMES with the name of the last start in it, to be asked before k3s makes another certificate."""
    return "".join(f"{name}\n" for name in dict.fromkeys(filter(None, [*known(), own_name()])))


def left_on_server(name: str, env: Mapping[str, str]) -> list[str]:
    """Return a warning for an agent with another name than at its last start: it may not delete a Node itself."""
    given = k3s_config.given(env, "node-name", "with-node-id")
    was = own_name()
    if not was or was == given.get("node-name", name) or "with-node-id" in given:
        return []
    return [
        f"warning: this agent was node {was}; the server keeps that one, and its pods seem to run: kubectl delete node"
        f" {was} there"
    ]


class Former:
    """The Nodes of earlier names."""

    def __init__(self) -> None:
        self._names = known()
        self._deleted: set[str] = set()

    def problem(self, kubernetes: Kubernetes, nodes: Mapping[str, Object]) -> str:
        """Delete those that are this machine; what is left of them, empty when nothing is.

        Raises OSError, KeyError or ValueError while the API server does not take it.
        """
        if not self._names:  # asked ten times a second, and own_name reads files
            return ""
        own = own_name()
        if own not in nodes:
            return ""
        if self._names == [own]:
            self._names = []
            return ""
        machine = at("/etc/machine-id").read_text().strip()
        dead = [
            name
            for name in self._names
            if name != own and nodes.get(name, {}).get("status", {}).get("nodeInfo", {}).get("machineID") == machine
        ]
        if not dead:
            self._names = []
            at(NAMES).write_text(f"{own}\n")
            return ""
        for name in dead:
            if name not in self._deleted:
                print(forget(kubernetes, name, own), flush=True)
                self._deleted.add(name)
        return f"node {dead[0]}, this machine's former name, is being deleted"


def forget(kubernetes: Kubernetes, name: str, own: str) -> str:
    """Delete a Node and its pods, which nothing else would end; return what was done."""
    _, listed = kubernetes.get(f"{PODS}{name}")
    pods = [pod["metadata"] for pod in listed.get("items") or []]
    # With this label k3s would remove the Node's member of etcd, which is ours (k3s: pkg/etcd, onRemove).
    kubernetes.patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": {ETCD: None}}})
    for pod in pods:
        kubernetes.delete(f"/api/v1/namespaces/{pod['namespace']}/pods/{pod['name']}")
    kubernetes.delete(f"/api/v1/nodes/{name}")
    return (
        f"node {name}, this machine's former name, and its {len(pods)} pods are deleted; their controllers make new"
        f" ones on {own}. Volumes of local-path stay with {name}: K3S_NODE_NAME={name} makes them available again"
    )
