"""k3s's packaged components, apart from CoreDNS (cluster_dns.py): whether each can be used, and else why not.

Names are k3s's own, as `--disable` takes them (k3s-io/k3s, pkg/cli/cmds/server.go: DisableItems). k3s writes the
manifest of each component that is not disabled into server/manifests (docs.k3s.io/installation/packaged-components).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dind_k3s import k3s_config
from dind_k3s.kube_api import Kubernetes, Object, is_ready, warnings
from dind_k3s.renamed import own_name
from dind_k3s.root import at, facts
from dind_k3s.volume import KUBELET, TRAEFIK_CONFIG

MANIFESTS = "/app/k3s/server/manifests"
PODS = "/api/v1/namespaces/kube-system/pods"
KUBELET_PORT = 10250
FLANNEL = "/app/k3s/agent/etc/flannel/net-conf.json"  # k3s writes it where it runs flannel
SUBNET = "/run/flannel/subnet.env"  # flannel's CNI plugin needs it for each pod
PATIENCE = 0.5  # seconds for a connection to Traefik or kubelet
STARTING = ("", "ContainerCreating", "PodInitializing")  # states of a container that need no explanation
NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull")

Pods = Mapping[str, Object]


@dataclass(frozen=True, kw_only=True)
class Component:
    """One of them. `pods`: labels, as (key, value), one of which each of its pods has."""

    name: str
    manifest: str
    pods: tuple[tuple[str, str], ...]
    needs_helm: bool = False

    def enabled(self, kubernetes: Kubernetes) -> bool:
        """Whether k3s installs it; to be asked once the cluster takes pods, for then its manifest is written.

        Raises OSError, KeyError or ValueError without an API server.
        """
        file = at(f"{MANIFESTS}/{self.manifest}")
        if not file.exists() or file.with_name(f"{file.name}.skip").exists():
            return False
        # With --disable-helm-controller the manifest is there, and nothing that installs it.
        return not self.needs_helm or kubernetes.get("/apis/helm.cattle.io/v1")[0] == 200

    def of(self, pods: Pods) -> list[Object]:
        """Those of its pods that are not over."""
        mine = (pod for pod in pods.values() if {*self.pods} & {*pod["metadata"].get("labels", {}).items()})
        return [pod for pod in mine if pod.get("status", {}).get("phase") != "Succeeded"]


COREDNS = Component(name="coredns", manifest="coredns.yaml", pods=(("k8s-app", "kube-dns"),))
STORAGE = Component(name="local-storage", manifest="local-storage.yaml", pods=(("app", "local-path-provisioner"),))
METRICS = Component(
    name="metrics-server",
    manifest="metrics-server/metrics-server-deployment.yaml",
    pods=(("k8s-app", "metrics-server"),),
)
TRAEFIK = Component(
    name="traefik",
    manifest="traefik.yaml",
    pods=(
        ("app.kubernetes.io/name", "traefik"),
        ("helmcharts.helm.cattle.io/chart", "traefik"),  # the jobs that install it
        ("helmcharts.helm.cattle.io/chart", "traefik-crd"),
    ),
    needs_helm=True,
)
ALL = (STORAGE, METRICS, TRAEFIK)


def runs_kubelet() -> bool:
    """Whether k3s is to run one here. A server that is no node (--disable-agent) has none."""
    return k3s_config.given(os.environ, "disable-agent").get("disable-agent", "").lower() != "true"


def node_problem(nodes: Mapping[str, Object]) -> str:
    """Why this node takes no pods yet; of a server that is no node itself, why none does."""
    name = own_name()
    if name in nodes and is_ready(nodes[name]):
        return ""
    if not runs_kubelet():  # asked last: it reads all of the user's files, and this is asked ten times a second
        return "" if any(map(is_ready, nodes.values())) else "no node is Ready"
    if name in nodes:
        return f"node {name} is not Ready"
    return f"node {name} is not registered yet" if name else "kubelet has no certificate yet"


def kubelet_problem() -> str:
    """Why nothing can run on this node yet. After k3s was killed its node stays Ready for 40 s, with no kubelet."""
    if not at(KUBELET).exists():
        return ""
    try:
        socket.create_connection(("127.0.0.1", KUBELET_PORT), PATIENCE).close()
    except OSError as error:
        if runs_kubelet():
            return f"kubelet does not answer on port {KUBELET_PORT} ({error.strerror or error})"
    return ""


def network_problem() -> str:
    """Why a pod gets no network yet. Nodes are Ready some seconds before flannel has its subnet."""
    if at(FLANNEL).exists() and not at(SUBNET).exists():
        return f"flannel has not written {SUBNET} yet, so pods get no network"
    return ""


def problem(component: Component, kubernetes: Kubernetes, pods: Pods) -> str:
    """Why it cannot be used; empty when it can. Raises OSError, KeyError or ValueError without an API server."""
    mine = component.of(pods)
    if component is METRICS:
        missing = _metrics_problem(kubernetes)
    elif component is TRAEFIK and at(TRAEFIK_CONFIG).exists():
        missing = _ports_problem()
    else:
        missing = "" if any(map(is_ready, mine)) else "it has no ready pod"
        if component is STORAGE and not missing:
            status, _ = kubernetes.get("/apis/storage.k8s.io/v1/storageclasses/local-path")
            missing = "" if status == 200 else "there is no storage class local-path"
    if not missing:
        return ""
    return f"{component.name} is not ready: {reason(component, kubernetes, pods) or missing}"


def reason(component: Component, kubernetes: Kubernetes, pods: Pods) -> str:
    """What keeps its pods from being ready; empty when nothing but time does."""
    if component is TRAEFIK and (ignored := _ignored_config(kubernetes)):
        return ignored
    waiting = [pod for pod in component.of(pods) if not is_ready(pod)]
    return next(filter(None, (_state_of(pod) for pod in waiting)), "") or next(_warnings(kubernetes, waiting), "")


def lacks_image(problem: str) -> bool:
    """Whether a problem is that an image is missing."""
    return any(word in problem for word in (*NO_IMAGE, "pull image", "pulling image"))


def _metrics_problem(kubernetes: Kubernetes) -> str:
    """By its APIService, which the API server calls available once it has reached it."""
    status, found = kubernetes.get("/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io")
    if status != 200:
        return "it has no APIService yet"
    conditions: list[dict[str, Any]] = found.get("status", {}).get("conditions") or [{}]
    available = next((one for one in conditions if one.get("type") == "Available"), {})
    return "" if available.get("status") == "True" else str(available.get("message") or "it is not available yet")


def _ports_problem() -> str:
    """Traefik's ports on the node, as our HelmChartConfig asks for them."""
    address = facts().get("address") or "127.0.0.1"
    for port in (80, 443):
        try:
            socket.create_connection((address, port), PATIENCE).close()
        except OSError as error:
            return f"port {port} of {address} does not answer ({error.strerror or error})"
    return ""


def _ignored_config(kubernetes: Kubernetes) -> str:
    """What our HelmChartConfig asked for and the chart did not do: keys move from one chart to the next."""
    if not at(TRAEFIK_CONFIG).exists():
        return ""
    status, service = kubernetes.get("/api/v1/namespaces/kube-system/services/traefik")
    kind = service.get("spec", {}).get("type", "ClusterIP")
    if status != 200 or kind == "ClusterIP":
        return ""
    return (
        f"its chart ignored our settings: service kube-system/traefik is of type {kind}, expected ClusterIP, and"
        " servicelb takes ports 80 and 443; put a HelmChartConfig that this chart understands into /app/manifests"
    )


def _state_of(pod: Object) -> str:
    """What the pod's own status says; empty when it says nothing but that it starts."""
    status = pod.get("status", {})
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = container.get("state", {}).get("waiting", {})
        if (why := waiting.get("reason", "")) in STARTING:
            continue
        if any(word in why for word in NO_IMAGE):
            return f"image {container.get('image')} cannot be pulled ({why})"
        return f"container {container.get('name')}: {why}: {waiting.get('message', '')}"[:300]
    for one in status.get("conditions") or []:
        if one.get("type") == "PodScheduled" and one.get("status") == "False":
            return f"Pending: {one.get('message')}"[:300]
    return ""


def _warnings(kubernetes: Kubernetes, pods: list[Object]) -> Iterator[str]:
    """Events of these pods, the last one first: what kubelet says of a sandbox that it cannot make, for instance."""
    if not pods:
        return
    names = {pod["metadata"]["name"] for pod in pods}
    for event in reversed(warnings(kubernetes, "Pod")):
        if event["involvedObject"]["name"] in names:
            yield f"{event.get('reason')}: {event.get('message')}"[:300]
