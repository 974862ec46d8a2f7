"""In the place of rancher/k3s: its commands, its kubeconfig's path, and Testcontainers, which knows no other image."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from testcontainers.community.k3s import K3SContainer
from testcontainers.core.config import ConnectionMode, testcontainers_config

from tests.image.box import Box, Image

pytestmark = pytest.mark.engine

KUBECONFIG = "/etc/rancher/k3s/k3s.yaml"


@pytest.fixture
def k3s(image: Image, monkeypatch: pytest.MonkeyPatch) -> Iterator[K3SContainer]:
    """PyPI's testcontainers as its users write it; its own image, which removes containers, cannot be pulled here."""
    monkeypatch.setenv("DOCKER_HOST", str(image.engine.client_config.host))
    monkeypatch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
    # Where the tests run in a container themselves: TESTCONTAINERS_CONNECTION_MODE and TC_HOST.
    monkeypatch.setattr(testcontainers_config, "connection_mode_override", ConnectionMode.docker_host)
    monkeypatch.setattr(testcontainers_config, "tc_host_override", "localhost")
    with K3SContainer(image=image.name) as started:
        yield started


@pytest.mark.filterwarnings("ignore:The wait_for_logs function:DeprecationWarning")
def test_k3s_container_of_testcontainers_starts_this_image(image: Image, k3s: K3SContainer) -> None:
    config = k3s.config_yaml()
    assert f":{k3s.get_exposed_port(6443)}" in config
    ask = 'echo "$1" >/tmp/kubeconfig; kubectl --kubeconfig /tmp/kubeconfig get nodes --output name'
    written = image.engine.run(image.name, ["bash", "-euc", ask, "-", config], remove=True, networks=["host"])
    assert str(written).strip() == "node/local-node"
    # Testcontainers for Java and Go copy the file, and the engine would hand them a link as a link.
    container = k3s.get_wrapped_container()
    _, entry = container.get_archive(KUBECONFIG)
    assert (entry["linkTarget"], entry["size"] > 1000) == ("", True)
    assert container.exec_run(["wait-ready", "--for", "k8s", "--timeout", "60"]).exit_code == 0
    log = container.logs().decode()
    assert "--disable in the container's command adds to our disable" not in log  # with this profile we disable nothing
    assert "K3S_URL is not used: this is a server" in log
    assert "--disable traefik --tls-san=" in log


def test_a_server_and_an_agent_as_rancher_k3s_is_told_to_run_them(network: str, boxes: Callable[..., Box]) -> None:
    for_others = {"DOCKER_ARGS": "--group=1000", "K3S_KUBECONFIG_MODE": "0644"}
    command = ["server", "--token=of-both", "--tls-san=other.example"]
    server = boxes(command=command, environment=for_others, options={"networks": [network]}).up()
    assert server.do("docker", "ps", "--quiet", user="1000:1000") == ""
    assert server.do("kubectl", "get", "nodes", "--output=name", user="1000:1000") == "node/local-node"
    assert "--tls-san in the container's command adds to our tls-san" in server.log()
    assert server.do("cat", KUBECONFIG) == server.do("cat", "/app/k3s/k3s.yaml")
    join = ["agent", f"--server=https://{server.name}:6443", "--token", "of-both"]
    agent = boxes(command=join, options={"networks": [network]}).up()
    assert "of-both" not in agent.log()
    server.kubectl("wait", "--for=condition=Ready", f"node/{agent.name}", "--timeout=30s")
    assert f"this is an agent; its cluster is at https://{server.name}:6443" in agent.fails("reset", "cluster", "--yes")


def test_a_command_that_contradicts_the_variables_is_refused(boxes: Callable[..., Box]) -> None:
    made = boxes(command=["server"], environment={"K3S_DISABLE": "1"})
    made.start()
    code, _ = made.ends()
    why = "K3S_DISABLE is set, so the container's command cannot be server; leave one of them out"
    assert (code, made.errors()) == (2, [why])
