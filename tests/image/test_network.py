"""The outer network: its MTU, ranges, resolver, IPv6 or none, a new address while everything runs, and none at all."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.image.box import Box, Image, box

pytestmark = pytest.mark.engine

OUTER = "outer"
FACTS = "/run/dind-k3s/facts"


@pytest.fixture(scope="module")
def outer(image: Image) -> Iterator[str]:
    """A network in the way of everything: k3s's range for pods, a small MTU, IPv6, and a neighbour to be found."""
    engine = image.engine
    wanted = ["--subnet", "10.42.0.0/16", "--ipv6", "--subnet", "fd00:42::/64"]
    wanted += ["--opt", "com.docker.network.driver.mtu=1400"]
    subprocess.run([*engine.client_config.docker_cmd, "network", "create", *wanted, OUTER], check=True)
    engine.run(image.name, ["1000"], entrypoint="sleep", name="neighbour", networks=[OUTER], detach=True)
    yield OUTER
    engine.remove("neighbour", force=True, volumes=True)
    engine.network.remove(OUTER)


@pytest.fixture(scope="module")
def inside(image: Image, outer: str) -> Iterator[Box]:
    """A box in that network, with an image and a network of its own."""
    with box(image, options={"networks": [outer]}) as made:
        made.up()
        made.build("probe")
        made.do("docker", "network", "create", "made-inside")
        yield made


def in_docker(made: Box, *command: str, network: str = "bridge") -> str:
    return made.do("docker", "run", "--rm", "--network", network, "probe", *command)


def in_pod(made: Box, name: str, script: str) -> str:
    """What a pod with this script prints; it runs on."""
    command = ("sh", "-c", f"{script}; sleep 1000")
    made.kubectl("run", name, "--image=probe", "--image-pull-policy=Never", "--restart=Never", "--", *command)
    made.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
    return str(made.until("the pod's words", lambda: made.kubectl("logs", name)))


def test_the_mtu_of_the_outer_network_reaches_containers_networks_and_pods(inside: Box) -> None:
    mtu = ("cat", "/sys/class/net/eth0/mtu")
    assert in_docker(inside, *mtu) == "1400"
    assert in_docker(inside, *mtu, network="made-inside") == "1400"
    assert in_pod(inside, "mtu", " ".join(mtu)) == "1400"  # the stub's; flannel reads the same interface by itself


def test_ranges_inside_are_not_those_outside(inside: Box) -> None:
    assert (
        "pods have 10.64.0.0/16, services 10.65.0.0/16, chosen, since the outer network has 10.42.0.0/16"
        in inside.log()
    )
    assert inside.kubectl("get", "service", "kubernetes", "-o=jsonpath={.spec.clusterIP}") == "10.65.0.1"


def test_siblings_are_found_by_containers_builds_and_pods(inside: Box) -> None:
    at = inside.do("getent", "ahostsv4", "neighbour").split()[0]
    assert at in in_docker(inside, "getent", "ahostsv4", "neighbour")
    # docker's resolver of a user-defined network passes on names with a dot only.
    assert at in in_docker(inside, "getent", "ahostsv4", f"neighbour.{OUTER}", network="made-inside")
    inside.shell(
        'printf \'FROM probe\nRUN getent ahostsv4 neighbour >/found\nCMD ["cat", "/found"]\' | docker build -t found -'
    )
    assert at in inside.do("docker", "run", "--rm", "found")
    assert at in in_pod(inside, "sibling", "getent ahostsv4 neighbour")
    resolv = inside.kubectl("exec", "sibling", "--", "cat", "/etc/resolv.conf")
    assert "nameserver 169.254.53.53" in resolv
    assert "8.8.8.8" not in resolv


def test_neighbours_outside_cannot_use_the_forwarder(inside: Box) -> None:
    address = inside.do("sed", "-n", "s/^address=//p", FACTS)
    ask = f"import socket; s = socket.create_connection(('{address}', 53), 2)"
    with pytest.raises(Exception, match="refused"):
        inside.docker.execute("neighbour", ["python3", "-c", ask])


def test_all_rules_are_in_one_backend(inside: Box) -> None:
    assert inside.do("sed", "-n", "s/^iptables=//p", FACTS) == "nft"
    assert ":DOCKER " in inside.do("iptables-nft-save")
    assert inside.do("iptables-legacy-save") == ""
    assert inside.do("readlink", "-f", "/usr/sbin/iptables") == inside.do("readlink", "-f", "/usr/sbin/iptables-nft")


def test_a_new_address_while_everything_runs_is_told_once_and_mended(inside: Box) -> None:
    inside.docker.network.disconnect(OUTER, inside.name)
    inside.docker.network.connect(OUTER, inside.name, ip="10.42.9.9")
    node = ("get", "node", "local-node", "-o=jsonpath={.status.addresses[0].address}")
    inside.until("the node's new address", lambda: inside.kubectl(*node) == "10.42.9.9")
    assert inside.log().count("the outer network was attached again: eth0 has 10.42.9.9 now") == 1
    inside.ready()
    assert in_docker(inside, "getent", "ahostsv4", "neighbour")
    assert inside.kubectl("exec", "sibling", "--", "getent", "ahostsv4", "neighbour")  # the pod was not touched


def test_a_new_address_between_two_starts(inside: Box) -> None:
    inside.docker.kill(inside.name)
    inside.docker.network.disconnect(OUTER, inside.name)
    inside.docker.network.connect(OUTER, inside.name, ip="10.42.8.8")
    inside.start()
    inside.ready()
    assert "eth0 has 10.42.8.8 and MTU 1400" in inside.log()
    assert "pods have 10.64.0.0/16, services 10.65.0.0/16, as before" in inside.log()
    assert in_docker(inside, "getent", "ahostsv4", "neighbour")


BROKEN = "#!/bin/sh\necho 'ip6tables: Address family not supported by protocol' >&2\nexit 3\n"


def test_legacy_rules_when_asked_and_no_ip6tables(boxes: Callable[..., Box]) -> None:
    """docker's default network 172.17.0.0/16 outside, without IPv6; a kernel without ip6tables."""
    made = boxes(
        environment={"K3S_DISABLE": "1", "DOCKER_IPTABLES_LEGACY": "1"},
        files={"/usr/local/bin/ip6tables": BROKEN, "/usr/local/bin/ip6tables-legacy-restore": BROKEN},
    ).up("docker")
    assert ":DOCKER " in made.do("iptables-legacy-save")
    assert "DOCKER" not in made.do("iptables-nft-save")
    messages = [line for line in made.log().splitlines() if "  iptables " in line]
    assert "legacy as DOCKER_IPTABLES_LEGACY asks, proved by rules; no rules for IPv6" in messages[0]
    assert "Address family not supported" in messages[0]
    outside = made.do("sh", "-c", "ip -4 route show dev eth0 scope link | cut -d ' ' -f 1")
    assert outside == "172.17.0.0/16"
    assert (
        made.do("docker", "network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Subnet}}") == "172.18.0.0/16"
    )


def test_without_any_outer_network_docker_and_k3s_run(boxes: Callable[..., Box]) -> None:
    made = boxes(options={"networks": ["none"]}).up()
    assert "no default route: k3s needs one and has one now that leads nowhere" in made.log()
    made.build("probe")
    assert in_docker(made, "cat", "/word") == "hello"
    assert "ended by itself" not in made.log()
