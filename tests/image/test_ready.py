"""Readiness in a container: what it waits for, how soon it reports, what it costs, that losses are reported once."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.image.box import Box

pytestmark = pytest.mark.engine

COREDNS = "/app/k3s/server/manifests/coredns.yaml"
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: ADDRESS
  ports: [{name: dns, port: 53, protocol: UDP}]
"""
ENDPOINTS = """
apiVersion: v1
kind: Endpoints
metadata: {name: kube-dns, namespace: kube-system}
subsets: [{addresses: [{ip: 10.42.0.9}], ports: [{name: dns, port: 53, protocol: UDP}]}]
"""

TRAEFIK = "/app/k3s/server/manifests/traefik.yaml"
# What k3s has in a cluster that cannot pull the image of the job which installs Traefik.
CHART = """
apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {name: traefik, namespace: kube-system}
spec: {chart: "https://%{KUBERNETES_API}%/static/charts/traefik.tgz"}
---
apiVersion: v1
kind: Pod
metadata: {name: helm-install-traefik, namespace: kube-system, labels: {helmcharts.helm.cattle.io/chart: traefik}}
spec:
  containers: [{name: helm, image: "127.0.0.1:1/klipper-helm:1"}]
"""


def state(box: Box) -> dict[str, Any]:
    return dict(json.loads(box.do("cat", "/run/dind-k3s/state.json")))


def messages(box: Box, pattern: str) -> list[str]:
    return re.findall(rf"^\[watch\] (.*(?:{pattern}).*)$", box.log(), re.MULTILINE)


def test_the_state_file_has_the_time_of_each_stage(running: Box) -> None:
    running.ready("all")
    found = state(running)
    assert (found["schema"], found["role"], found["health"]) == (1, "server", "ok")
    stages = found["ready_after"]
    components = ["local-storage", "metrics-server", "traefik"]
    assert list(stages) == ["docker", "k8s", "dns", *components, "addons", "all"]
    assert 0 < stages["docker"] < stages["k8s"] <= stages["all"] < 60
    assert found["disabled"] == ["dns", *components]  # the stub installs none of them
    assert found["certificates"]["days_left"] > 300
    assert running.do("/usr/local/bin/healthcheck").startswith("docker ready after")
    running.until("docker to call it healthy", lambda: running.state()["health"] == "healthy", 10)


# Both edges of k3s's death, each seen by ourselves and by the watcher, in seconds. Nobody but the watcher writes the
# health; the flags are taken away by keeper, too.
_EDGES = """
import json, os, pathlib, signal, subprocess, sys, time
sys.path.insert(0, "/usr/local/lib/dind-k3s")
from dind_k3s.kube_api import Kubernetes
run = pathlib.Path("/run/dind-k3s")
pid = int(subprocess.check_output(["supervisorctl", "pid", "k3s"]))
api = Kubernetes(pathlib.Path("/app/k3s/k3s.yaml"))
killed = time.monotonic()
os.kill(pid, signal.SIGKILL)
while not (run / "health").read_text().startswith("failing"):
    time.sleep(0.005)
lost, truth, told = time.monotonic(), 0, 0
while not (truth and told):
    if not truth and not api.problem():
        truth = time.monotonic()
    if not told and (run / "ready/k8s").exists():
        told = time.monotonic()
    time.sleep(0.005)
print(lost - killed, told - truth)
"""


def test_both_edges_are_noticed_without_a_poll_and_told_once(running: Box) -> None:
    running.ready("all")
    lost, ready = (float(seconds) for seconds in running.do("python3", "-c", _EDGES).split())
    print(f"k3s killed: noticed after {lost:.3f} s; the API is back: noticed after {ready:.3f} s")
    # A look every now and then would take seconds; how quick it is, a loaded machine cannot tell.
    assert lost < 2
    assert ready < 2
    running.ready("all")
    assert len(messages(running, "not ready any more")) == 1
    assert len(messages(running, "ready again")) == 1


def test_watching_costs_next_to_nothing(running: Box) -> None:
    running.ready("all")
    pid = running.pid("watch")

    def ticks() -> int:
        fields = running.do("cat", f"/proc/{pid}/stat").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before, began = ticks(), time.monotonic()
    running.shell("read -r -t 4 <> <(:) || true")
    share = (ticks() - before) / 100 / (time.monotonic() - began)
    memory = int(re.findall(r"RssAnon:\s+(\d+)", running.do("cat", f"/proc/{pid}/status"))[0])
    print(f"watch: {share:.2%} of a core, {memory / 1024:.1f} MiB of its own")
    assert share < 0.01  # one tick of the clock is 0.25 % of these four seconds
    assert memory < 16 * 1024


def test_the_clock_of_the_day_does_not_matter(running: Box) -> None:
    text = running.do("cat", "/run/dind-k3s/health").split()
    up = float(running.do("cat", "/proc/uptime").split()[0])
    assert 0 <= up - int(text[1]) < 15


def test_dns_is_waited_for_where_k3s_brings_it_and_asked_for_real(running: Box) -> None:
    """The stub has no DNS, so this plays CoreDNS: the manifest, then the objects, then an answer at the address."""
    running.ready("all")
    look = "printf x >/run/dind-k3s/wake"
    first = running.kubectl("get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}")
    address = f"{first.rpartition('.')[0]}.10"
    service = SERVICE.replace("ADDRESS", address)
    running.shell(f"mkdir -p {COREDNS.rpartition('/')[0]}; echo '{service}' >{COREDNS}; {look}")
    running.until("dns to be waited for", lambda: "CoreDNS is not ready" in str(state(running)["problems"]), 5)
    # Twice, if need be: k3s applies what lies there too, and may do so between kubectl's look and its creation.
    apply = f"kubectl apply -f {COREDNS} >/dev/null"
    running.shell(f"{apply} || {apply}; echo '{ENDPOINTS}' | kubectl apply -f - >/dev/null")
    running.until("an answer to be missed", lambda: f"does not answer at {address}" in str(state(running)), 5)
    running.shell(
        f"ip address add {address}/32 dev lo;"
        f" dnsmasq --conf-file=/dev/null --listen-address={address} --bind-interfaces --pid-file=/run/test-dns.pid"
        " --address=/cluster.local/10.43.0.1"
    )
    running.ready("dns", 5)
    running.shell("kubectl delete -n kube-system endpoints kube-dns >/dev/null")
    running.until("dns to be lost", lambda: "dns" not in state(running)["ready_after"], 1)
    running.shell(f"kill $(</run/test-dns.pid); rm {COREDNS}; {look}")
    running.ready("all", 5)


@pytest.mark.stub_k3s
def test_a_component_that_cannot_be_installed_is_named_with_the_image_that_it_lacks(running: Box) -> None:
    running.ready("all")
    look = "printf x >/run/dind-k3s/wake"
    running.shell(f"cat >{TRAEFIK} <<'END'\n{CHART}\nEND\n{look}")
    reason = "traefik is not ready: image 127.0.0.1:1/klipper-helm:1 cannot be pulled"
    running.until("the reason", lambda: reason in str(state(running)["problems"].get("traefik")), 30)
    assert reason in running.fails("wait-ready", "--for", "traefik", "--timeout", "1")
    assert reason in running.fails("wait-ready", "--timeout", "1")
    assert reason in running.fails("/usr/local/bin/healthcheck")
    running.do("wait-ready", "--for", "k8s", "--timeout", "1")
    running.shell(f"rm {TRAEFIK}; kubectl delete -n kube-system pod helm-install-traefik --now >/dev/null; {look}")
    running.ready("all", 30)


def test_without_k3s_there_is_docker_to_wait_for(boxes: Callable[..., Box]) -> None:
    box = boxes(environment={"K3S_DISABLE": "1"})
    box.up("all", 30)
    assert state(box)["role"] == "none"
    assert "there is no Kubernetes" in box.fails("wait-ready", "--for", "k8s")
