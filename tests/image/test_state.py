"""What was acknowledged is still there: after a new container on the volumes, and after twenty kills."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.image.box import Box
from tests.image.objects import config_map, create, pod, wait_for_pods

pytestmark = pytest.mark.engine

KILLS = 20
LIVE = ("/bin/sh", "-c", "trap exit TERM; while :; do sleep 1; done")
IDENTITY = (
    "/app/k3s/server/token",
    "/app/k3s/server/tls/server-ca.crt",
    "/etc/rancher/node/password",
    "/etc/machine-id",
)


def test_a_new_container_on_the_volumes_in_another_network_is_the_same_machine(boxes: Callable[..., Box]) -> None:
    box = boxes()
    networks = [f"{box.name}-{number}" for number in (1, 2)]
    try:
        for number, name in enumerate(networks):
            box.docker.network.create(name, subnet=f"10.99.{number}.0/24")
        box.options = {"networks": [networks[0]], "ip": "10.99.0.77"}
        box.up()
        box.build("mine:1")
        create(box, pod("keeper", *LIVE, volume={"emptyDir": {}}))
        wait_for_pods(box)
        box.kubectl("exec", "keeper", "--", "/bin/sh", "-c", "echo kept >/data/file")
        before = [box.do("cat", path) for path in IDENTITY]
        uids = box.kubectl("get", "node,pod", "-A", "-o", "jsonpath={.items[*].metadata.uid}")

        box.options = {"networks": [networks[1]], "ip": "10.99.1.78", "hostname": "elsewhere"}
        box.recreate()
        box.ready()
        assert [box.do("cat", path) for path in IDENTITY] == before
        assert box.kubectl("get", "node,pod", "-A", "-o", "jsonpath={.items[*].metadata.uid}") == uids
        box.until(
            "the new address",
            lambda: "10.99.1.78" in box.kubectl("get", "nodes", "-o", "jsonpath={.items[*].status.addresses}"),
        )
        box.until("the pod", lambda: box.kubectl("exec", "keeper", "--", "/bin/cat", "/data/file") == "kept")
        assert box.do("docker", "run", "--rm", "mine:1") == "hello"
        # The kubeconfig of before is good for the new address.
        assert "Ready" in box.kubectl("get", "nodes", "--server=https://10.99.1.78:6443")
    finally:
        box.remove()
        for name in networks:
            box.docker.network.remove(name)


def test_a_node_with_another_name_leaves_no_dead_one_behind(boxes: Callable[..., Box]) -> None:
    """Kubernetes calls the pods of the old one Running for minutes."""
    box = boxes(environment={"K3S_NODE_NAME": "first", "PROFILE": "ci"}).up()
    box.build("mine:1")
    create(box, pod("on-first", *LIVE))
    wait_for_pods(box)
    box.environment = {"K3S_NODE_NAME": "second", "PROFILE": "ci"}
    box.recreate()
    box.ready("all")
    assert box.kubectl("get", "nodes", "-o", "name") == "node/second"
    assert "on-first" not in box.kubectl("get", "pods", "-o", "name")
    assert "node first, this machine's former name, and its" in box.log()
    create(box, pod("on-second", *LIVE))
    wait_for_pods(box)
    box.recreate()
    box.ready("all")
    assert "former name" not in box.log()


def test_twenty_kills_lose_nothing_that_was_acknowledged(boxes: Callable[..., Box]) -> None:
    box = boxes(environment={"PROFILE": "ci"}).up()
    box.build("base:1")
    script = """
wait-ready --for docker --quiet
docker build -q -t kept:$0 --label number=$0 - <<<'FROM base:1' >/dev/null
wait-ready --for k8s --quiet
kubectl create -f - <<<"$1" >/dev/null
"""
    for number in range(KILLS):
        # Acknowledged by dockerd and by the API server; then the end, in the same moment.
        box.do("bash", "-euc", script, str(number), json.dumps(config_map(f"kept-{number}")))
        box.docker.kill(box.name)
        box.start()
    box.ready()
    names = box.kubectl("get", "configmaps", "-o", "jsonpath={.items[*].metadata.name}").split()
    assert {f"kept-{number}" for number in range(KILLS)} <= set(names)
    tags = box.do("docker", "image", "ls", "--format", "{{.Tag}}", "kept").split()
    assert {*tags} == {str(number) for number in range(KILLS)}
    assert box.do("docker", "run", "--rm", f"kept:{KILLS - 1}") == "hello"
    assert not box.errors()


def test_files_that_a_power_cut_left_empty(boxes: Callable[..., Box]) -> None:
    box = boxes().up()
    create(box, config_map("kept"))
    box.shell(
        """
for file in /var/lib/docker/.dind-k3s/{storage,versions,lock} /app/k3s/.dind-k3s/{machine-id,versions,lock} \
  /app/k3s/.dind-k3s/node/password /app/k3s/k3s.yaml /app/k3s/config.yaml /run/docker.pid; do : >$file; done
mkdir -p /var/lib/cni/networks/cbr0 /var/lib/cni/cache/results
: >/var/lib/cni/networks/cbr0/last_reserved_ip.0; echo 'no json' >/var/lib/cni/cache/results/cbr0-x
echo 1 >/run/docker.pid; echo 1 >/run/containerd.pid
"""
    )
    box.docker.kill(box.name)
    box.start()
    box.ready()
    box.kubectl("get", "configmap", "kept")
    assert box.do("wc", "-c", "/etc/rancher/node/password").split()[0] != "0"
    assert box.shell("ls -A /var/lib/cni/networks/cbr0 2>/dev/null || echo none") == "none"
    assert not box.errors()
