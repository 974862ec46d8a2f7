"""Names inside: resolvers that nested containers cannot ask, none at all, `--add-host`, many look-ups; IPv6 alone."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.image.box import Box, Image
from tests.image.test_network import in_docker, in_pod

pytestmark = pytest.mark.engine

FORWARDER = "169.254.53.53"
RESOLVER = "fd00:47::53"
ALONE = {"K3S_DISABLE": "1"}

# A DNS server that knows answer.example and says nothing about other names.
SERVE = """
import socket
server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
server.bind(("::", 53))
while True:
    query, client = server.recvfrom(512)
    if b"\\x06answer\\x07example" in query:
        end = query.find(b"\\0", 12) + 5
        a = query[end - 4 : end - 2] == b"\\0\\x01"
        record = b"\\xc0\\x0c\\0\\x01\\0\\x01\\0\\0\\0\\x3c\\0\\x04" + socket.inet_aton("192.0.2.7") if a else b""
        server.sendto(query[:2] + b"\\x81\\x80\\0\\x01\\0" + bytes([a]) + b"\\0" * 4 + query[12:end] + record, client)
"""

# 400 names that nobody answers for, then a sibling's: the code of its answer (0 is good, 5 is refused).
FLOOD = """
import socket, struct, sys, time
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.connect((sys.argv[1], 53))
asking.settimeout(10)
def ask(number, name):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    asking.send(struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\\0" + struct.pack("!2H", 1, 1))
for number in range(400):
    ask(number, f"n{number}.silent.example")
    time.sleep(0.001)
ask(1000, sys.argv[2])
while True:
    answer = asking.recv(512)
    if answer[:2] == struct.pack("!H", 1000):
        print(answer[3] & 15)
        break
"""


@pytest.fixture
def resolver(image: Image) -> Iterator[str]:
    """A network with both families, and in it a DNS server; the network's name."""
    engine = image.engine
    wanted = ["--ipv6", "--subnet", "fd00:47::/64", "--subnet", "10.47.0.0/16", "resolving"]
    subprocess.run([*engine.client_config.docker_cmd, "network", "create", *wanted], check=True)
    server = ["run", "--detach", "--name=resolver", "--network=resolving", f"--ip6={RESOLVER}", "--ip=10.47.0.53"]
    server += ["--entrypoint=python3", image.name, "-c", SERVE]
    subprocess.run([*engine.client_config.docker_cmd, *server], check=True)
    yield "resolving"
    engine.remove("resolver", force=True, volumes=True)
    engine.network.remove("resolving")


def resolving(made: Box, folder: Path, text: str) -> Box:
    """The box with this resolv.conf."""
    file = folder / "resolv.conf"
    file.write_text(text)
    file.chmod(0o644)
    made.volumes = [*made.own_volumes.items(), (file, "/etc/resolv.conf")]
    return made


def test_a_resolver_with_ipv6_alone_is_asked_for_nested_containers(
    resolver: str, boxes: Callable[..., Box], tmp_path: Path
) -> None:
    made = boxes(environment=ALONE, options={"networks": [resolver]})
    resolving(made, tmp_path, f"nameserver {RESOLVER}\n").up("docker")
    made.build("probe")
    assert f"nameserver {FORWARDER}" in in_docker(made, "cat", "/etc/resolv.conf").splitlines()
    assert "192.0.2.7" in in_docker(made, "getent", "ahostsv4", "answer.example")


def test_without_a_resolver_nobody_asks_google(boxes: Callable[..., Box], tmp_path: Path) -> None:
    made = resolving(boxes(environment=ALONE), tmp_path, "# nothing\n").up("docker")
    made.build("probe")
    assert "8.8.8.8" not in in_docker(made, "cat", "/etc/resolv.conf")
    assert "resolv.conf names no resolver: no name outside is found" in made.log()
    assert "no name outside is found: --dns ADDRESS" in made.shell("doctor || true")


def test_names_of_add_host_are_known_in_containers_and_pods(boxes: Callable[..., Box]) -> None:
    made = boxes(options={"add_hosts": [("far.example", "192.0.2.9")], "dns": ["192.0.2.53"]}).up()
    made.build("probe")
    ask = ("getent", "ahostsv4", "far.example")
    assert "192.0.2.9" in in_docker(made, *ask)
    made.do("docker", "network", "create", "made-inside")
    assert "192.0.2.9" in in_docker(made, *ask, network="made-inside")
    assert "192.0.2.9" in in_pod(made, "add-host", " ".join(ask))


def test_four_hundred_look_ups_at_once_leave_siblings_names_alone(resolver: str, boxes: Callable[..., Box]) -> None:
    made = boxes(environment=ALONE, options={"networks": [resolver], "dns": ["10.47.0.53"]}).up("docker")
    assert made.do("python3", "-c", FLOOD, FORWARDER, "resolver") == "0"


def test_an_outer_network_without_ipv4(image: Image, boxes: Callable[..., Box]) -> None:
    wanted = [
        "--ipv4=false",
        "--ipv6",
        "--subnet",
        "fd00:46::/64",
        "--opt",
        "com.docker.network.driver.mtu=1400",
        "six",
    ]
    subprocess.run([*image.engine.client_config.docker_cmd, "network", "create", *wanted], check=True)
    try:
        made = boxes(options={"networks": ["six"]}).up()
        assert "eth0 has no IPv4 address and MTU 1400; no default route for IPv4: k3s needs one" in made.log()
        assert "images are pulled over IPv6" in made.log()
        assert "images come from /app/images alone" not in made.log()
        made.build("probe")
        assert in_docker(made, "cat", "/sys/class/net/eth0/mtu") == "1400"
        node = made.kubectl("get", "node", "local-node", "-o=jsonpath={.status.addresses[0].address}")
        assert f"dind-k3s0 has {node}; eth0" in made.log()
        assert "attached again" not in made.log()
        made.remove()
    finally:
        image.engine.network.remove("six")
