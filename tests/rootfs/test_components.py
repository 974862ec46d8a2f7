"""k3s's packaged components: when each can be used, and what is reported while it cannot.

Pods and events are trimmed from what a real k3s v1.36.3 answered.
"""

from __future__ import annotations

import base64
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from dind_k3s import components, renamed
from dind_k3s.components import METRICS, STORAGE, TRAEFIK
from dind_k3s.kube_api import EVENTS, Kubernetes

HELM: dict[str, Any] = {"/apis/helm.cattle.io/v1": {}}
STORAGE_CLASS: dict[str, Any] = {"/apis/storage.k8s.io/v1/storageclasses/local-path": {}}
SERVICE = "/api/v1/namespaces/kube-system/services/traefik"
APISERVICE = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io"


class Answers:
    """An API server that has these objects, by path, and no others."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._objects = objects

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        return (200, self._objects[path]) if path in self._objects else (404, {})


def asked(objects: Mapping[str, Any]) -> Kubernetes:
    return cast("Kubernetes", Answers(objects))


def pod(name: str, label: str, *, ready: bool = False, phase: str = "Pending", **status: Any) -> dict[str, Any]:
    key, _, value = label.partition("=")
    conditions = [{"type": "Ready", "status": str(ready)}, *status.pop("conditions", [])]
    return {
        "metadata": {"name": name, "labels": {key: value}},
        "status": {"phase": phase, "conditions": conditions, **status},
    }


def waiting(image: str, reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [{"name": "main", "image": image, "state": state}]}


def certificate_of(name: str) -> bytes:
    """Of a certificate, what is read: a UTF-8 string's type, its length, then itself."""
    content = base64.b64encode(b"0\x82...\x0c" + bytes([len(name)]) + name.encode() + b"\x82")
    return b"-----BEGIN CERTIFICATE-----\n" + content + b"\n-----END CERTIFICATE-----\n"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    (tmp_path / "app/k3s/server/manifests").mkdir(parents=True)
    (tmp_path / "run/dind-k3s").mkdir(parents=True)
    (tmp_path / "run/dind-k3s/facts").write_text("address=127.0.0.1\n")
    return tmp_path


def test_a_component_is_enabled_while_k3s_has_its_manifest(root: Path) -> None:
    file = root / "app/k3s/server/manifests/local-storage.yaml"
    assert not STORAGE.enabled(asked({}))
    file.touch()
    assert STORAGE.enabled(asked({}))
    file.with_name("local-storage.yaml.skip").touch()
    assert not STORAGE.enabled(asked({}))


def test_traefik_needs_the_helm_controller(root: Path) -> None:
    (root / "app/k3s/server/manifests/traefik.yaml").touch()
    assert TRAEFIK.enabled(asked(HELM))
    assert not TRAEFIK.enabled(asked({}))  # --disable-helm-controller


def test_a_node_is_of_no_use_before_its_kubelet_listens(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(components, "KUBELET_PORT", listener.getsockname()[1])
        assert components.kubelet_problem() == ""  # --disable-agent: there is none
        (root / "app/k3s/agent").mkdir(parents=True)
        (root / "app/k3s/agent/kubelet.kubeconfig").touch()
        assert components.kubelet_problem() == ""
    assert "kubelet does not answer on port" in components.kubelet_problem()


def test_a_server_that_joins_waits_for_its_own_node(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, waits = pod("", "", ready=True), pod("", "")
    others = {"first": ready}
    assert components.node_problem(others) == "kubelet has no certificate yet"
    (root / "app/k3s/agent").mkdir(parents=True)
    (root / "app/k3s/agent/client-kubelet.crt").write_bytes(certificate_of("system:node:second-1a2b"))
    (root / "app/k3s/agent/kubelet.kubeconfig").write_text(
        "    client-certificate: /app/k3s/agent/client-kubelet.crt\n"
    )
    assert components.node_problem(others) == "node second-1a2b is not registered yet"
    assert components.node_problem({**others, "second-1a2b": waits}) == "node second-1a2b is not Ready"
    assert components.node_problem({"second-1a2b": ready}) == ""
    monkeypatch.setenv("K3S_ARGS", "--disable-agent")
    assert components.node_problem(others) == ""
    assert components.node_problem({}) == "no node is Ready"


def test_a_former_name_of_this_machine_is_a_problem_while_its_node_is_there(root: Path) -> None:
    (root / "app/k3s/agent").mkdir(parents=True)
    (root / "app/k3s/.dind-k3s").mkdir()
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/machine-id").write_text("4711\n")

    def certify(name: str) -> None:
        (root / "app/k3s/agent/client-kubelet.crt").write_bytes(certificate_of(f"system:node:{name}"))
        (root / "app/k3s/agent/kubelet.kubeconfig").write_text(
            "    client-certificate: /app/k3s/agent/client-kubelet.crt\n"
        )

    def node(machine: str) -> dict[str, Any]:
        return {"status": {"nodeInfo": {"machineID": machine}}}

    assert renamed.noted() == ""  # a new volume
    certify("first")
    (root / "app/k3s/.dind-k3s/names").write_text(renamed.noted())
    (messages,) = renamed.left_on_server("second", {})
    assert messages.endswith("kubectl delete node first there")
    assert renamed.left_on_server("first", {}) == []
    assert renamed.left_on_server("second", {"K3S_ARGS": "--node-name first"}) == []
    certify("second")
    assert renamed.noted() == "first\nsecond\n"
    api = Kubernetes(root / "none")
    nodes = {"first": node("4711"), "second": node("4711")}
    with pytest.raises(OSError, match="none"):  # nobody there to delete it
        renamed.Former().problem(api, nodes)
    assert renamed.Former().problem(api, {"first": node("4711")}) == ""  # the new one is not registered yet
    assert renamed.known() == ["first"]
    assert renamed.Former().problem(api, {"first": node("of another"), "second": node("4711")}) == ""
    assert renamed.known() == ["second"]


def test_pods_get_no_network_before_flannel_has_its_subnet(root: Path) -> None:
    assert components.network_problem() == ""  # another CNI
    (root / "app/k3s/agent/etc/flannel").mkdir(parents=True)
    (root / "app/k3s/agent/etc/flannel/net-conf.json").touch()
    assert "/run/flannel/subnet.env" in components.network_problem()
    (root / "run/flannel").mkdir()
    (root / "run/flannel/subnet.env").touch()
    assert components.network_problem() == ""


def test_local_storage_is_its_provisioner_and_its_class() -> None:
    label = "app=local-path-provisioner"
    ready = {"p": pod("p", label, ready=True, phase="Running")}
    assert components.problem(STORAGE, asked(STORAGE_CLASS), ready) == ""
    assert "no storage class local-path" in components.problem(STORAGE, asked({}), ready)
    assert "no ready pod" in components.problem(STORAGE, asked(STORAGE_CLASS), {})


def test_metrics_server_is_what_the_api_server_calls_available() -> None:
    def answer(status: str) -> Kubernetes:
        conditions = [{"type": "Available", "status": status, "message": "endpoints for service have no addresses"}]
        return asked({APISERVICE: {"status": {"conditions": conditions}}})

    assert components.problem(METRICS, answer("True"), {}) == ""
    assert "have no addresses" in components.problem(METRICS, answer("False"), {})
    assert "no APIService yet" in components.problem(METRICS, asked({}), {})


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            waiting("rancher/klipper-helm:v0.13", "ImagePullBackOff", "Back-off pulling image"),
            "image rancher/klipper-helm:v0.13 cannot be pulled (ImagePullBackOff)",
        ),
        (waiting("x", "CrashLoopBackOff", "back-off 10s"), "container main: CrashLoopBackOff: back-off 10s"),
        (
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "message": "1 node(s) didn't have free ports"}
                ]
            },
            "Pending: 1 node(s) didn't have free ports",
        ),
    ],
)
def test_what_a_pod_says_of_itself_is_the_reason(status: dict[str, Any], message: str) -> None:
    pods = {"p": pod("p", "helmcharts.helm.cattle.io/chart=traefik", **status)}
    assert components.problem(TRAEFIK, asked({}), pods) == f"traefik is not ready: {message}"
    assert components.lacks_image(message) == ("pulled" in message)


def test_the_last_event_is_the_reason_where_the_pod_says_nothing() -> None:
    pods = {"p": pod("p", "k8s-app=metrics-server", **waiting("x", "ContainerCreating"))}
    events = [
        {"involvedObject": {"name": name}, "reason": "FailedCreatePodSandBox", "message": text, "lastTimestamp": time}
        for name, text, time in (
            ("p", "old", "2026-11-30T10:00:00Z"),
            ("p", "failed pulling image rancher/mirrored-pause:3.6", "2026-11-30T10:00:09Z"),
            ("another", "newest", "2026-11-30T10:01:00Z"),
        )
    ]
    found = components.problem(METRICS, asked({f"{EVENTS}Pod": {"items": events}}), pods)
    assert (
        found == "metrics-server is not ready: FailedCreatePodSandBox: failed pulling image rancher/mirrored-pause:3.6"
    )
    assert components.lacks_image(found)


def test_pods_of_finished_jobs_are_no_reason() -> None:
    done = pod("helm-install-traefik", "helmcharts.helm.cattle.io/chart=traefik", phase="Succeeded")
    running = pod("traefik", "app.kubernetes.io/name=traefik", ready=True, phase="Running")
    assert components.problem(TRAEFIK, asked({}), {"a": done, "b": running}) == ""


def test_with_our_settings_traefik_is_its_ports(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "app/k3s/server/manifests/traefik-dind-k3s.yaml").touch()
    tried = []

    class Connection:
        def close(self) -> None:
            pass

    def connect(address: tuple[str, int], timeout: float) -> Connection:
        tried.append(address)
        if address[1] in refused:
            raise ConnectionRefusedError(111, "Connection refused")
        return Connection()

    monkeypatch.setattr(socket, "create_connection", connect)
    refused = {443}
    found = components.problem(TRAEFIK, asked({}), {})
    assert found == "traefik is not ready: port 443 of 127.0.0.1 does not answer (Connection refused)"
    refused = set()
    assert components.problem(TRAEFIK, asked({}), {}) == ""
    assert tried == [("127.0.0.1", 80), ("127.0.0.1", 443)] * 2


def test_a_chart_that_ignored_our_settings_is_named(root: Path) -> None:
    (root / "app/k3s/server/manifests/traefik-dind-k3s.yaml").touch()
    found = components.reason(TRAEFIK, asked({SERVICE: {"spec": {"type": "LoadBalancer"}}}), {})
    assert "its chart ignored our settings: service kube-system/traefik is of type LoadBalancer" in found
