"""k3s on its embedded etcd, and what a new address means to any k3s: only a real one shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.image.box import Box, Image
from tests.image.objects import config_map, create, pod, wait_for_pods
from tests.image.test_snapshot import has

pytestmark = [pytest.mark.engine, pytest.mark.real_k3s, pytest.mark.timeout(900)]

CI = {"PROFILE": "ci"}
ETCD = {**CI, "K3S_ARGS": "--cluster-init"}
ENDS = "grep -c 'Shutdown request received' /app/logs/k3s.log || true"


@pytest.fixture
def network(image: Image) -> Iterator[str]:
    """A docker network in which a container's address can be chosen."""
    made = image.engine.network.create("etcd", subnet="10.99.5.0/24")
    try:
        yield made.name
    finally:
        made.remove()


@pytest.fixture
def at(network: str, boxes: Callable[..., Box]) -> Callable[..., Box]:
    """Makes boxes at an address of that network."""

    def make(last: int, environment: dict[str, str]) -> Box:
        return boxes(environment=environment, options={"networks": [network], "ip": f"10.99.5.{last}"})

    return make


def move(box: Box, last: int) -> None:
    """A new container on the same volumes, with another address."""
    box.options = {**box.options, "ip": f"10.99.5.{last}"}
    box.recreate()


def has_address(box: Box, last: int) -> bool:
    return f"10.99.5.{last}" in box.kubectl("get", "nodes", "-o", "jsonpath={.items[*].status.addresses}")


@pytest.mark.parametrize("environment", [CI, ETCD], ids=["sqlite", "etcd"])
def test_another_address_at_each_start_and_while_it_runs(
    at: Callable[..., Box], network: str, environment: dict[str, str]
) -> None:
    box = at(10, environment)
    box.up(limit=180)
    create(box, config_map("kept"))
    move(box, 11)
    box.ready(limit=180)
    assert has(box, "kept")
    box.until("the new address", lambda: has_address(box, 11))
    # Once its address is known everywhere, so that nothing is left of the first one.
    box.until("its end", lambda: box.do("cat", "/app/k3s/.dind-k3s/address") == "10.99.5.11")
    box.docker.network.disconnect(network, box.name)
    box.docker.network.connect(network, box.name, ip="10.99.5.12")
    box.until("the new address", lambda: has_address(box, 12), limit=180)
    box.until("its end", lambda: box.do("cat", "/app/k3s/.dind-k3s/address") == "10.99.5.12")
    box.ready(limit=180)
    assert has(box, "kept")
    assert box.shell(ENDS) == "0"  # k3s ends where it does not find its address


def test_a_snapshot_of_etcd_is_restored_elsewhere_and_so_is_what_was_there(at: Callable[..., Box]) -> None:
    box, other = at(20, ETCD), at(21, CI)
    box.up(limit=180)
    create(box, config_map("one"))
    assert box.do("snapshot", "/tmp/cluster.tar.gz").startswith("/tmp/cluster.tar.gz (")
    create(box, config_map("two"))
    other.create()
    box.docker.copy((box.name, "/tmp/cluster.tar.gz"), box.image.folder)
    box.docker.copy(box.image.folder / "cluster.tar.gz", (other.name, "/tmp/cluster.tar.gz"))
    other.up(limit=180)
    create(other, config_map("elsewhere"))
    assert "is ready" in other.do("restore", "/tmp/cluster.tar.gz", "--timeout", "240")
    assert has(other, "one")
    assert not has(other, "two")
    create(other, config_map("later"))
    (sqlite,) = other.shell("ls /app/k3s/snapshots/before-restore-*").splitlines()
    other.do("restore", sqlite, "--timeout", "240")
    assert has(other, "elsewhere")
    # What was kept of etcd is a copy of its files, as one before an upgrade is.
    etcd = other.shell("ls /app/k3s/snapshots/before-restore-* | tail -n 1")
    other.do("restore", etcd, "--timeout", "240")
    assert has(other, "later")
    move(other, 22)
    other.ready(limit=180)
    assert has(other, "later")
    assert other.shell("ls -d /app/k3s/server/tls-* /app/k3s/server/db/etcd?* 2>/dev/null || true") == ""


def test_three_servers(at: Callable[..., Box]) -> None:
    """One of them gets another address; then all of them do, which they cannot mend, and report what to do."""
    joins = {**CI, "K3S_TOKEN": "secret", "K3S_ARGS": "server --server https://10.99.5.30:6443"}
    boxes = [at(30, {**ETCD, "K3S_TOKEN": "secret", "K3S_NODE_NAME": "first"})]
    boxes += [at(last, {**joins, "K3S_NODE_NAME": f"other-{last}"}) for last in (31, 32)]
    for box in boxes:
        box.up(limit=240)
    create(boxes[0], config_map("kept"))
    boxes[0].do("snapshot")
    refusal = boxes[0].fails("bash", "-c", "restore /app/k3s/snapshots/*")
    assert "etcd has 3 members" in refusal
    assert "this server has joined the cluster" in boxes[1].fails("reset", "cluster", "--yes")
    move(boxes[2], 33)
    boxes[2].ready(limit=240)
    assert has(boxes[2], "kept")
    for box in boxes:
        box.docker.stop(box.name)
    for last, box in enumerate(boxes, start=40):
        move(box, last)
    boxes[0].until("the error", lambda: "etcd has no majority of its members" in boxes[0].log(), limit=120)
    for box in boxes[1:]:
        box.docker.stop(box.name)
    # As the error says.
    boxes[0].shell("supervisorctl stop k3s; k3s server --cluster-reset; supervisorctl start k3s")
    boxes[0].ready(limit=240)
    assert has(boxes[0], "kept")


def test_reset_frees_the_addresses_and_host_ports_of_pods(boxes: Callable[..., Box]) -> None:
    box = boxes(environment=CI).up(limit=180)
    box.build("mine:1")
    serves = pod("serves", "/usr/bin/socat", "TCP-LISTEN:80,fork,reuseaddr", "EXEC:/bin/cat /word")
    serves["spec"]["containers"][0]["ports"] = [{"containerPort": 80, "hostPort": 8099}]
    answers = "socat -T 3 - TCP:$(hostname -i):8099 </dev/null"
    for _ in range(2):
        create(box, serves)
        wait_for_pods(box)
        box.until("an answer", lambda: box.shell(answers) == "hello")
        address = box.kubectl("get", "pod", "serves", "-o", "jsonpath={.status.podIP}")
        rules = box.shell("iptables-save -t nat | grep -c '^-A CNI-HOSTPORT-DNAT'")
        leases = box.shell("ls /var/lib/cni/networks/cbr0 | grep -c '^10'")
        assert (rules, leases) == ("1", box.shell("docker ps --quiet --filter name=k8s_POD_ | wc -l"))
        box.do("reset", "cluster", "--yes")
        assert box.shell(f"ls /var/lib/cni/networks/*/{address} 2>/dev/null || true") == ""
