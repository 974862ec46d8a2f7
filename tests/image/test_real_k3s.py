"""What only a real k3s with its system images can show: add-ons, networking, volumes, clients' streams, clusters.

`nox -s acceptance -- --k3s PATH --images PATH`. Pods run the busybox of k3s's own archive.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.image import objects
from tests.image.box import Box, Image, box

pytestmark = [pytest.mark.engine, pytest.mark.real_k3s, pytest.mark.timeout(900)]

LIMIT = 400  # seconds until everything is ready, on a machine that does other things, too
OFFLINE = {"networks": ["none"]}


@pytest.fixture(scope="module")
def cluster(image: Image) -> Iterator[Box]:
    """A box without any network, in which everything is ready, with a web server of two pods behind a Service."""
    with box(image, options=OFFLINE) as made:
        made.up("all", LIMIT)
        create(made, deployment("web", "mkdir /www; hostname >/www/index.html; exec httpd -f -p 8080 -h /www"))
        create(made, service("web", 8080))
        made.kubectl("rollout", "status", "deployment/web", "--timeout=120s")
        made.kubectl("run", "client", f"--image={busybox(made)}", "--", "sleep", "100000")
        made.kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=60s")
        yield made


def create(made: Box, *things: dict[str, Any]) -> None:
    """`kubectl create`, with the image's name filled in."""
    text = json.dumps(things).replace("BUSYBOX", busybox(made))
    objects.create(made, *json.loads(text))


def busybox(made: Box) -> str:
    """The name of the busybox that k3s's own archive has."""
    names = made.do("docker", "images", "--format", "{{.Repository}}:{{.Tag}}").split()
    return next(name for name in names if "busybox" in name)


def deployment(name: str, script: str, replicas: int = 2, **container: Any) -> dict[str, Any]:
    """Pods of one shell script, labelled app=NAME."""
    one = {"name": "one", "image": "BUSYBOX", "command": ["sh", "-c", script], **container}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [one]},
            },
        },
    }


def service(name: str, port: int, **spec: Any) -> dict[str, Any]:
    """A Service for pods labelled app=NAME, on port 80."""
    ports = [{"port": 80, "targetPort": port}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": ports, **spec},
    }


def ask(made: Box, url: str, host: str = "") -> str:
    """What a web server answers to the container itself."""
    script = (
        "import sys, urllib.request as r\n"
        "q = r.Request(sys.argv[1], headers={'Host': sys.argv[2]} if sys.argv[2] else {})\n"
        "print(r.urlopen(q, timeout=3).read().decode())"
    )
    return made.do("python3", "-c", script, url, host)


def address(made: Box) -> str:
    """The node's address."""
    return made.kubectl("get", "node", "-o", "jsonpath={.items[0].status.addresses[0].address}")


def in_client(made: Box, script: str) -> str:
    """Run a script in the pod `client`."""
    return made.kubectl("exec", "client", "--", "sh", "-c", script)


def state(made: Box) -> dict[str, Any]:
    return dict(json.loads(made.do("cat", "/run/dind-k3s/state.json")))


def test_ready_means_that_everything_of_k3s_can_be_used_without_a_network(cluster: Box) -> None:
    found = state(cluster)
    print(found["ready_after"])
    assert (found["health"], found["disabled"], found["problems"]) == ("ok", [], {})
    request = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
    assert "404 page not found" in cluster.shell(f"exec 3<>/dev/tcp/{address(cluster)}/80; {request}")
    assert cluster.kubectl("get", "storageclass", "local-path", "-o", "name")
    cluster.until("metrics", lambda: "local-node" in cluster.kubectl("top", "nodes"), 120)


def test_a_pod_made_when_k8s_is_ready_gets_its_network_at_the_first_try(image: Image) -> None:
    with box(image, options=OFFLINE) as made:
        made.up("k8s", LIMIT)
        made.kubectl("run", "first", f"--image={busybox(made)}", "--restart=Never", "--", "sleep", "1000")
        made.kubectl("wait", "--for=condition=Ready", "pod/first", "--timeout=60s")
        events = made.kubectl(
            "get", "events", "--field-selector=involvedObject.name=first", "-o", "jsonpath={.items[*].reason}"
        )
        assert "FailedCreatePodSandBox" not in events


def test_a_service_is_reached_by_name_by_node_port_and_by_ingress(cluster: Box) -> None:
    assert "web-" in in_client(cluster, "wget -qO- http://web.default.svc.cluster.local")
    create(cluster, {**service("web", 8080, type="NodePort"), "metadata": {"name": "web-node"}})
    port = cluster.kubectl("get", "service", "web-node", "-o", "jsonpath={.spec.ports[0].nodePort}")
    cluster.until("the NodePort", lambda: "web-" in ask(cluster, f"http://{address(cluster)}:{port}"))
    backend = {"service": {"name": "web", "port": {"number": 80}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    ingress = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": "web"},
        "spec": {"rules": [{"host": "web.example", "http": {"paths": [path]}}]},
    }
    create(cluster, ingress)
    cluster.until("Traefik", lambda: "web-" in ask(cluster, f"http://{address(cluster)}", "web.example"))


def test_a_host_port_is_a_port_of_the_container(cluster: Box) -> None:
    ports = [{"containerPort": 8080, "hostPort": 8099}]
    create(cluster, deployment("hosted", "mkdir /w; echo here >/w/index.html; httpd -f -p 8080 -h /w", 1, ports=ports))
    cluster.until("the hostPort", lambda: ask(cluster, f"http://{address(cluster)}:8099").strip() == "here")


def test_a_network_policy_is_enforced(cluster: Box) -> None:
    script = "mkdir /w; echo in >/w/index.html; httpd -f -p 8080 -h /w"
    create(cluster, deployment("shut", script, 1), service("shut", 8080))
    cluster.until("the service", lambda: in_client(cluster, "wget -qO- -T 5 http://shut") == "in", 180)
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "shut"},
        "spec": {"podSelector": {"matchLabels": {"app": "shut"}}, "policyTypes": ["Ingress"]},
    }
    create(cluster, policy)
    shut = "wget -qO- -T 2 http://shut >/dev/null 2>&1 && echo open || echo shut"
    cluster.until("the policy", lambda: in_client(cluster, shut) == "shut", 180)


def test_a_persistent_volume_outlives_its_pod(cluster: Box) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "kept"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}},
    }
    create(cluster, claim)
    for number in (1, 2):
        name = f"writer-{number}"
        one = {
            "name": "one",
            "image": "BUSYBOX",
            "command": ["sh", "-c", "echo line >>/d/file; wc -l </d/file"],
            "volumeMounts": [{"name": "d", "mountPath": "/d"}],
        }
        volume = {"name": "d", "persistentVolumeClaim": {"claimName": "kept"}}
        spec = {"restartPolicy": "Never", "containers": [one], "volumes": [volume]}
        create(cluster, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
        cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=120s")
        assert cluster.kubectl("logs", name).strip() == str(number)


def test_the_streams_of_kubectl(cluster: Box) -> None:
    assert in_client(cluster, "echo in the pod") == "in the pod"
    cluster.shell("echo copied >/tmp/a; kubectl cp /tmp/a client:/tmp/a; kubectl cp client:/tmp/a /tmp/b")
    assert cluster.do("cat", "/tmp/b") == "copied"
    attach = f"kubectl run reads --image={busybox(cluster)} --restart=Never -i --rm --quiet"
    assert "output" in cluster.shell(f"{attach} -- sh -c 'cat; echo end' <<<said")
    cluster.shell(
        "kubectl port-forward service/web 18080:80 >/tmp/forward 2>&1 & trap 'kill %1' EXIT;"
        " until grep -q Forwarding /tmp/forward; do read -r -t 0.1 <> <(:) || true; done;"
        " exec 3<>/dev/tcp/127.0.0.1/18080; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3 | grep web-"
    )
    cluster.shell(f"kubectl debug client --image={busybox(cluster)} --target=client -q -- sh -c 'echo debugged'")
    name = cluster.kubectl("get", "pod", "client", "-o", "jsonpath={.spec.ephemeralContainers[0].name}")
    cluster.until("the debug container", lambda: "debugged" in cluster.kubectl("logs", "client", "-c", name))


def test_a_pod_reaches_containers_by_their_addresses_whichever_daemon_came_last(cluster: Box) -> None:
    serve = "mkdir /w; hostname >/w/index.html; exec httpd -f -p 80 -h /w"
    create(cluster, deployment("asker", "trap exit TERM; while :; do sleep 1; done", 1))
    cluster.do("docker", "network", "create", "beside")
    for network in ("bridge", "beside"):
        name = f"in-{network}"
        options = ("--detach", "--restart=always", f"--network={network}", f"--hostname={name}", f"--name={name}")
        cluster.do("docker", "run", *options, busybox(cluster), "sh", "-c", serve)

    def answers() -> bool:
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        names = ("in-bridge", "in-beside")
        addresses = [cluster.do("docker", "inspect", "--format", form, name) for name in names]
        ask = ("exec", "deployment/asker", "--", "wget", "-qO-", "-T", "3")
        return [cluster.kubectl(*ask, f"http://{one}") for one in addresses] == [*names]

    cluster.until("the containers", answers)
    for program in ("dockerd", "k3s"):
        cluster.shell(f"kill -9 $(supervisorctl pid {program})")
        cluster.until(f"the loss of {program}", lambda: "all" not in state(cluster)["ready_after"])
        cluster.ready("all", LIMIT)
        cluster.until(f"the containers after {program} was killed", answers, 120)


def test_the_log_of_a_container_is_rotated_and_followed_without_a_gap(cluster: Box) -> None:
    lines = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); echo line $i 0123456789012345678901234567890123456789; done"
    create(cluster, deployment("writer", f"sleep 5; {lines}; sleep 100000", 1))
    cluster.kubectl("rollout", "status", "deployment/writer", "--timeout=120s")
    gap = """$2 != NR { print "a gap before line " $2; exit } NR == 300000 { exit } END { print NR }"""
    last = cluster.shell(f"awk '{gap}' < <(timeout 120 kubectl logs --follow deployment/writer)")
    assert last == "300000"
    assert cluster.kubectl("logs", "deployment/writer", "--tail=1").startswith("line 300000 ")
    sizes = cluster.shell("stat -c %s /var/lib/docker/containers/*/*-json.log*").split()
    assert max(map(int, sizes)) < 10 << 20
    assert "Failed to rotate log" not in cluster.shell("cat /app/logs/k3s.log*")
    cluster.kubectl("delete", "deployment", "writer", "--now")


def test_what_an_earlier_k3s_unpacked_goes_when_the_next_one_is_ready(image: Image) -> None:
    with box(image, options=OFFLINE) as made:
        made.up("k8s", LIMIT)
        old = "a" * 64
        made.shell(f"cd /app/k3s/data; cp -a $(readlink current) {old}; ln -s $PWD/{old} previous; mkdir {old}-tmp")
        made.recreate()
        made.ready("k8s", LIMIT)
        made.until("the removal", lambda: old not in made.do("ls", "-l", "/app/k3s/data"), 20)
        made.kubectl("run", "after", f"--image={busybox(made)}", "--restart=Never", "--", "sleep", "1000")
        made.kubectl("wait", "--for=condition=Ready", "pod/after", "--timeout=60s")


def test_pods_outlive_a_k3s_that_is_killed_and_come_back_after_dockerd(cluster: Box) -> None:
    before = in_client(cluster, "date >/tmp/alive; cat /tmp/alive")
    cluster.shell("kill -9 $(supervisorctl pid k3s)")
    cluster.until("the loss of k3s", lambda: "all" not in state(cluster)["ready_after"])
    cluster.ready("all", LIMIT)
    cluster.until("the pod, as it was", lambda: in_client(cluster, "cat /tmp/alive") == before)
    # dockerd stops the containers that it finds when it starts; kubelet starts those of its pods again.
    cluster.shell("kill -9 $(supervisorctl pid dockerd)")
    cluster.until("the loss of dockerd", lambda: "all" not in state(cluster)["ready_after"])
    cluster.until("the pod, again", lambda: in_client(cluster, "cat /tmp/alive || echo new").endswith("new"), LIMIT)
    cluster.ready("all", LIMIT)


def test_images_that_were_pruned_come_back_at_the_next_start(image: Image) -> None:
    with box(image, options=OFFLINE) as made:
        made.up("all", LIMIT)
        made.shell("docker system prune -af >/dev/null")
        assert "klipper-helm" not in made.do("docker", "images")  # no container uses it any more
        made.recreate()
        made.ready("all", LIMIT)
        assert "klipper-helm" in made.do("docker", "images")


def test_stop_is_quick_and_the_next_container_has_all_of_it(cluster: Box) -> None:
    create(cluster, deployment("stubborn", "trap '' TERM; while :; do sleep 1; done", 12))
    cluster.kubectl("rollout", "status", "deployment/stubborn", "--timeout=120s")
    began = time.monotonic()
    cluster.docker.stop(cluster.name, time=10)
    took = time.monotonic() - began
    print(f"stop with 12 pods that ignore SIGTERM: {took:.1f} s")
    assert cluster.state()["exit_code"] == 0
    cluster.recreate()
    cluster.ready("all", LIMIT)
    cluster.until("the service", lambda: "web-" in in_client(cluster, "wget -qO- -T 2 http://web"), 120)
    cluster.kubectl("delete", "deployment", "stubborn", "--now")


def test_pods_of_two_machines_reach_each_other(network: str, boxes: Callable[..., Box]) -> None:
    server = boxes(options={"networks": [network]}).up("all", LIMIT)
    token = server.do("cat", "/app/k3s/server/node-token")
    joins = {"K3S_URL": f"https://{server.name}:6443", "K3S_TOKEN": token}
    agent = boxes(environment=joins, options={"networks": [network]}).up("all", LIMIT)
    for node in (agent.name, "local-node"):
        spec = {
            "nodeName": node,
            "containers": [{"name": "one", "image": busybox(server), "command": ["sleep", "10000"]}],
        }
        create(server, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"on-{node}"}, "spec": spec})
        server.kubectl("wait", "--for=condition=Ready", f"pod/on-{node}", "--timeout=120s")
    there = server.kubectl("get", "pod", f"on-{agent.name}", "-o", "jsonpath={.status.podIP}")
    assert "1 packets received" in server.kubectl("exec", "on-local-node", "--", "ping", "-c", "1", "-W", "5", there)
    # The other direction, and the DNS server, which runs on the server's node.
    looked_up = server.kubectl("exec", f"on-{agent.name}", "--", "nslookup", "kubernetes.default.svc.cluster.local")
    assert re.search(r"Address.*10\.43\.0\.1", looked_up)


def test_three_servers_survive_the_loss_of_one(network: str, boxes: Callable[..., Box]) -> None:
    options = {"networks": [network]}
    token = {"K3S_TOKEN": "three-servers", "PROFILE": "ci"}
    first = boxes(environment={**token, "K3S_ARGS": "--cluster-init"}, options=options).up("k8s", LIMIT)
    joins = {**token, "K3S_ARGS": f"server --server https://{first.name}:6443"}
    others = [boxes(environment=joins, options=options).up("k8s", LIMIT) for _ in range(2)]
    assert first.kubectl("get", "nodes", "--no-headers").count(" Ready ") == 3  # at once: each waited for its own
    first.docker.kill(first.name)
    made = ("create", "configmap", "after", "-o", "name")
    others[0].until("the two that are left", lambda: others[0].kubectl(*made), 120)
