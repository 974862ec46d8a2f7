"""Two machines: a server, and an agent that joins it with K3S_URL and K3S_TOKEN."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.authorities import issue
from tests.image.box import Box

pytestmark = pytest.mark.engine


def test_a_cluster_of_two_and_its_restarts(network: str, boxes: Callable[..., Box]) -> None:
    server = boxes(options={"networks": [network]}).up("all")
    token = server.do("cat", "/app/k3s/server/node-token")
    joins = {"K3S_URL": f"https://{server.name}:6443", "K3S_TOKEN": token}
    agent = boxes(environment=joins, options={"networks": [network]})
    agent.up("all")
    assert json.loads(agent.do("cat", "/run/dind-k3s/state.json"))["role"] == "agent"
    nodes = server.kubectl("get", "nodes", "--no-headers").splitlines()
    assert [line.split()[:3] for line in nodes] == [
        [agent.name, "Ready", "<none>"],
        ["local-node", "Ready", "control-plane"],
    ]

    # A pod of the agent's own image runs on the agent; its log and a command in it go through the server.
    agent.build("there:1", word="from the agent")
    overrides = json.dumps({"spec": {"nodeSelector": {"kubernetes.io/hostname": agent.name}}})
    server.kubectl(
        "run", "there", "--image=there:1", "--image-pull-policy=Never", f"--overrides={overrides}", "--", "sleep", "600"
    )
    server.kubectl("wait", "--for=condition=Ready", "pod/there", "--timeout=30s")
    assert server.kubectl("exec", "there", "--", "cat", "/word") == "from the agent"
    assert "there" in agent.do("docker", "ps", "--format", "{{.Names}}")

    # Either one is made again, under another address and another host name: same cluster, same two nodes.
    agent.docker.remove(agent.name, force=True)
    server.recreate()
    agent.options = {**agent.options, "hostname": "another"}
    agent.start()
    server.ready("all")
    agent.ready("all")
    server.kubectl("wait", "--for=condition=Ready", f"node/{agent.name}", "--timeout=30s")
    server.kubectl("wait", "--for=condition=Ready", "pod/there", "--timeout=30s")
    assert len(server.kubectl("get", "nodes", "--no-headers").splitlines()) == 2

    # One that asks with another token, or under a name that another machine has, is refused with a message.
    refusal = agent.fails("env", "K3S_TOKEN=guessed", "python3", "-I", "-S", "/usr/local/lib/dind-k3s", "join")
    where = "it is in /app/k3s/server/node-token there"
    assert refusal == f"dind-k3s: error: the server at {joins['K3S_URL']} refuses the token; {where}"
    other = token.replace(token[3:10], "0000000")
    refusal = agent.fails("env", f"K3S_TOKEN={other}", "python3", "-I", "-S", "/usr/local/lib/dind-k3s", "join")
    assert "the token is not for the server" in refusal


@pytest.mark.real_k3s
def test_an_agent_takes_the_token_of_a_server_whose_ca_is_below_a_root(
    network: str, boxes: Callable[..., Box], tmp_path: Path
) -> None:
    root = issue("my-root")
    between = issue("my-intermediate", root)
    folder = tmp_path / "server/tls"
    (folder / "etcd").mkdir(parents=True)
    for name in ("server-ca", "client-ca", "request-header-ca", "etcd/peer-ca", "etcd/server-ca"):
        ca = issue(name.replace("/", "-"), between)
        (folder / f"{name}.crt").write_bytes(ca.pem + between.pem + root.pem)
        (folder / f"{name}.key").write_bytes(ca.secret)
    server = boxes(environment={"PROFILE": "ci"}, options={"networks": [network]})
    server.create()
    server.docker.copy(tmp_path / "server", (server.name, "/app/k3s"))
    server.up(limit=400)
    token = server.do("cat", "/app/k3s/server/node-token")
    assert token.startswith(f"K10{root.digest}::")
    joins = {"K3S_URL": f"https://{server.name}:6443", "K3S_TOKEN": token}
    boxes(environment=joins, options={"networks": [network]}).up(limit=400)


def test_a_node_name_that_is_taken_and_how_to_get_it_back(network: str, boxes: Callable[..., Box]) -> None:
    """A machine that is set up again, with an empty volume: its server knows the name and another password for it."""
    server = boxes(options={"networks": [network]}).up()
    token = server.do("cat", "/app/k3s/server/node-token")
    joins = {"K3S_URL": f"https://{server.name}:6443", "K3S_TOKEN": token, "K3S_NODE_NAME": "front"}
    first = boxes(environment=joins, options={"networks": [network]}).up()
    first.docker.stop(first.name)
    again = boxes(environment=joins, options={"networks": [network]})
    again.start()
    taken = "the node name front is taken"
    again.until("the problem", lambda: taken in again.do("cat", "/run/dind-k3s/k3s.problem"), 200)
    assert taken in again.fails("doctor")
    assert taken in again.fails("wait-ready", "--for=k8s", "--timeout=2")
    assert again.log().count(taken) == 1
    server.kubectl("delete", "node", "front")
    again.ready(limit=200)
    again.until("the problem's end", lambda: not again.do("sh", "-c", "ls /run/dind-k3s/k3s.problem || true"), 10)
