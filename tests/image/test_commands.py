"""The commands for people: each does what it says, whatever state the container is in, and none shows a traceback."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from python_on_whales.exceptions import DockerException

from pipeline.build import context
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent
from tests.image.box import Box, Image, box

pytestmark = pytest.mark.engine

INSIDE = {"docker": {"runc": "1.2.3"}}
SECRETS = {
    "token": "planted-token-4711",
    "proxy": "planted-proxy-pass",
    "registry": "planted/registry+password",
    "hub": "planted-hub-password",
    "user": "planted-in-config-yaml",
    "free": "K10" + "ab" * 16 + "::server:planted-elsewhere",
}
REGISTRIES = f"""\
configs:
  registry.example:
    auth:
      username: someone
      password: {SECRETS["registry"]}
"""
HUB = json.dumps({"auths": {"hub.example": {"auth": base64.b64encode(f"me:{SECRETS['hub']}".encode()).decode()}}})


@pytest.fixture(scope="module")
def known(image: Image) -> Iterator[Box]:
    """A ready box with secrets, a second name in a network of its own, and a published port."""
    network = image.engine.network.create("commands")
    environment = {
        "K3S_TOKEN": SECRETS["token"],
        "K3S_TLS_SAN": "san.example",
        "HTTPS_PROXY": f"http://someone:{SECRETS['proxy']}@proxy.invalid:3128",
        "NO_PROXY": "*",
    }
    options = {"networks": [network], "network_aliases": ["alias.example", "san.example"]}
    options["publish"] = [("127.0.0.1:16443", 6443)]
    try:
        with box(image, environment=environment, options=options) as made:
            yield made.up()
    finally:
        network.remove()


def outside(image: Image, script: str, *arguments: str, **options: Any) -> str:
    """What a shell in another container of the outer engine writes."""
    return str(image.engine.run(image.name, ["bash", "-euc", script, "-", *arguments], remove=True, **options)).strip()


ASK = 'echo "$1" >/tmp/kubeconfig; kubectl --kubeconfig /tmp/kubeconfig get nodes --output name'


def test_a_kubeconfig_for_a_name_that_the_certificate_is_for(known: Box) -> None:
    written = known.do("kubeconfig", "--server", "https://san.example:6443")
    assert "tls-server-name" not in written
    assert outside(known.image, ASK, written, networks=["commands"]) == "node/local-node"


def test_a_kubeconfig_for_another_name_says_what_to_set_and_works_all_the_same(known: Box) -> None:
    messages = known.shell("kubeconfig --server alias.example 2>&1 >/tmp/kubeconfig")
    assert "the API server's certificate is not for alias.example" in messages
    assert "K3S_TLS_SAN=alias.example" in messages
    written = known.do("cat", "/tmp/kubeconfig")
    assert outside(known.image, ASK, written, networks=["commands"]) == "node/local-node"


def test_a_kubeconfig_for_the_published_port_of_the_host(known: Box) -> None:
    written = known.do("kubeconfig", "--server=https://127.0.0.1:16443")
    assert outside(known.image, ASK, written, networks=["host"]) == "node/local-node"
    assert "server: https://127.0.0.1:6443\n" in known.do("kubeconfig")


def refused(image: Image, program: str, *arguments: str, **options: Any) -> tuple[int, str]:
    """Exit code and all that a command wrote in a container that runs nothing else."""
    command = ["-c", '"$@" 2>&1; echo "$?"', "-", program, *arguments]
    *lines, code = str(image.engine.run(image.name, command, entrypoint="bash", remove=True, **options)).split("\n")
    return int(code), "\n".join(lines)


def test_a_kubeconfig_before_there_is_one(image: Image) -> None:
    code, written = refused(image, "kubeconfig")
    assert (code, "k3s has not written /app/k3s/k3s.yaml yet; `wait-ready` waits for it" in written) == (2, True)
    code, written = refused(image, "kubeconfig", envs={"K3S_DISABLE": "1"})
    assert (code, "K3S_DISABLE is set" in written) == (2, True)


def test_collected_logs_tell_everything_but_secrets(known: Box) -> None:
    config = f"etcd-s3-secret-key: {SECRETS['user']}\n"
    known.shell(
        f"mkdir -p /etc/rancher/k3s /root/.docker; echo '{REGISTRIES}' >/etc/rancher/k3s/registries.yaml"
        f"; echo '{HUB}' >/root/.docker/config.json; echo '{config}' >>/app/k3s/config.yaml"
        f"; echo 'msg=\"joins with {SECRETS['free']} and {SECRETS['token']}\"' >>/app/logs/k3s.log"
        "; cat /app/k3s/server/tls/*.key >>/app/logs/k3s.log"
        f"; echo 'pull: {SECRETS['registry']} {SECRETS['hub']} {SECRETS['user']}' >>/app/logs/dockerd.log"
    )
    keys = known.shell("cat /app/k3s/server/tls/*.key | grep -v -- '-----'").split()
    on_disk = known.shell("cat /app/k3s/server/token /etc/rancher/node/password").split()
    packed = base64.b64decode(known.shell("collect-logs - | base64 -w0"))
    assert len(packed) < 8 << 20
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        parts = {
            member.name.removeprefix("dind-k3s/"): (archive.extractfile(member) or io.BytesIO()).read().decode()
            for member in archive
        }
    for name, text in parts.items():
        for secret in [*SECRETS.values(), *keys, *on_disk]:
            assert secret not in text, f"{name} betrays {secret}"
            assert base64.b64encode(secret.encode()).decode().rstrip("=") not in text, f"{name} betrays {secret}"
    assert "K3S_TOKEN=[redacted]" in parts["environment.txt"]
    assert "joins with [redacted] and [redacted]" in parts["files/app/logs/k3s.log"]
    assert "username: someone" in parts["files/etc/rancher/k3s/registries.yaml"]
    assert "local-node" in parts["commands/nodes.txt"]
    assert json.loads(parts["commands/doctor.json"].partition("\n")[2])
    assert "native.cgroupdriver=cgroupfs" in parts["files/run/dind-k3s/daemon.json"]
    assert "commands/docker-info.txt: " in parts["contents.txt"]


def test_logs_are_collected_where_nothing_runs(image: Image) -> None:
    messages = outside(image, "collect-logs - | tar -xzO dind-k3s/contents.txt", read_only=True)
    assert "commands/docker-info.txt: exit code 1" in messages
    assert "files/etc/hosts: " in messages


def findings(text: str) -> dict[str, dict[str, str]]:
    return {one["id"]: one for one in json.loads(text)}


def test_doctor_in_a_ready_container(known: Box) -> None:
    found = findings(known.do("doctor", "--json"))
    assert not [
        one for one in found.values() if one["state"] == "fail" or "this check itself failed" in one["evidence"]
    ]
    assert {"privileged", "kmsg", "cgroup", "cgroup-controllers", "cgroup-namespace", "ip-forward"} <= found.keys()
    assert {"file-system", "overlay", "storage-driver", "space-/app/k3s", "memory", "clock", "machine"} <= found.keys()
    assert {"iptables", "mtu", "networks", "dns", "docker", "docker-k3s-api", "ready"} <= found.keys()
    assert found["overlay"]["evidence"] == "mounted, with whiteouts"
    assert "nft: takes rules" in found["iptables"]["evidence"]
    assert "127.0.0.11, forwarded from" in found["dns"]["evidence"]
    assert all(one["remedy"] for one in found.values() if one["state"] != "ok")
    assert known.do("doctor").splitlines()[-1].endswith(", 0 failures")


def test_doctor_without_privileges_and_with_a_read_only_root(image: Image) -> None:
    with pytest.raises(DockerException) as refusal:
        image.engine.run(image.name, ["--json"], entrypoint="doctor", read_only=True, remove=True)
    found = findings(refusal.value.stdout or "")
    assert refusal.value.return_code == 1
    assert found["privileged"]["state"] == "fail"
    assert found["privileged"]["remedy"] == "run with --privileged"
    assert found["overlay"]["evidence"].startswith("not tried")
    assert not [one for one in found.values() if "this check itself failed" in one["evidence"]]


def test_doctor_while_dockerd_is_dead_and_what_was_noted_is_broken(known: Box) -> None:
    known.do("supervisorctl", "stop", "k3s", "watch", "dockerd")
    kept = known.do("cat", "/run/dind-k3s/facts")
    try:
        known.shell(
            "printf 'storage\\n=\\xff\\ndns=nonsense\\n' >/run/dind-k3s/facts; echo '[1' >/run/dind-k3s/state.json"
        )
        found = findings(known.fails("doctor", "--json"))
        assert found["docker"]["state"] == "fail"
        assert "Cannot connect to the Docker daemon" in found["docker"]["evidence"]
        assert found["dns"]["state"] == "fail"
        assert found["ready"]["state"] == "warn"
    finally:
        known.shell(f"echo '{kept}' >/run/dind-k3s/facts")
        known.do("supervisorctl", "start", "dockerd", "watch", "k3s")
    known.ready()


def test_doctor_at_once(image: Image) -> None:
    with box(image) as made:
        made.start()
        found = findings(made.shell("doctor --json || true"))
        assert not [one for one in found.values() if "this check itself failed" in one["evidence"]]


def test_verify_reports_what_is_changed_missing_and_extra(image: Image, intent: Intent, own: Lock) -> None:
    host = Platform.host()
    assert host is not None
    made = context.manifest(intent, own, host, Variant.IMAGE, INSIDE)
    files = {"/tmp/manifest.json": json.dumps(made), "/tmp/record": RECORD}
    with box(image, command=("sleep", "600"), files=files) as here:
        here.start()
        here.shell("/tmp/record")
        messages = here.do("dind-k3s", "verify")
        assert "(runc 1.2.3): 8 files as built" in messages
        assert messages.count("as built") == 6
        here.shell("echo >>/usr/local/bin/runc; rm /usr/local/bin/kubectl; touch /usr/local/sbin/other")
        written = here.fails("dind-k3s", "verify")
        assert "1 of 8 files differ" in written
        assert "changed   /usr/local/bin/runc: its sha256 is " in written
        assert "missing   /usr/local/bin/kubectl" in written
        assert "extra     /usr/local/sbin/other" in written
        assert written.count("/usr/local/") == 3
        here.shell("rm /usr/share/dind-k3s/manifest.json")
        assert "is missing, or names no files" in here.fails("dind-k3s", "verify")


# What the Dockerfile's stage `manifest` does, with the files where they are already.
RECORD = r"""#!/bin/bash
set -euo pipefail
part() { mkdir -p "/tmp/parts/$1${2%/*}" && ln -s "$2" "/tmp/parts/$1$2"; }
for name in dockerd docker-init docker-proxy docker containerd containerd-shim-runc-v2 ctr runc; do
  part docker "/usr/local/bin/$name"
done
for name in buildx compose; do part "$name" "/usr/local/libexec/docker/cli-plugins/docker-$name"; done
for name in k3s kubectl; do part "$name" "/usr/local/bin/$name"; done
cd /usr/local
for file in bin/{dind-k3s,healthcheck,wait-ready} $(find bin -lname dind-k3s) sbin/* $(find lib/dind-k3s -type f); do
  part dind-k3s "/usr/local/$file"
done
python3 -I -S /usr/local/lib/dind-k3s record /tmp/manifest.json /tmp/parts >/usr/share/dind-k3s/manifest.json
"""


def test_every_command_is_told_and_knows_when_it_is_called_wrongly(known: Box) -> None:
    messages = known.do("dind-k3s")
    for command in ("doctor", "kubeconfig", "collect-logs", "verify"):
        assert f"  {command} " in messages
        assert known.do("dind-k3s", command, "--help").startswith("usage: ")
        assert known.shell(f"dind-k3s {command} --nonsense 2>&1 || echo $?").endswith("2")


# What a CI system hands to every container of a job; none of it is meant for this one.
JOB = {
    "DOCKER_HOST": "tcp://docker:2375",
    "DOCKER_CONTEXT": "nowhere",
    "DOCKER_TLS_VERIFY": "1",
    "DOCKER_CERT_PATH": "/certs/client",
    "DOCKER_API_VERSION": "1.99",
    "DOCKER_CONFIG": "/builds/.docker",
    "BUILDX_BUILDER": "nobodys",
    "KUBECONFIG": "/builds/project.tmp/KUBECONFIG",
    "K3S_KUBECONFIG_OUTPUT": "/root/kubeconfig.yaml",
    "K3S_CONFIG_FILE": "/builds/k3s.yaml",
}


def test_a_jobs_variables_lead_nobody_in_here_elsewhere(boxes: Callable[..., Box]) -> None:
    made = boxes(environment=JOB).up("all")
    log = made.log()
    assert "not used in here: DOCKER_HOST, DOCKER_CONTEXT" in log
    assert "warning: not used: K3S_CONFIG_FILE" in log
    assert made.kubectl("get", "nodes", "-o", "name") == "node/local-node"
    made.build("mine:1")  # also with the builder of docker itself
    assert made.do("docker", "run", "--rm", "mine:1") == "hello"
    findings = {one["id"]: one["state"] for one in json.loads(made.shell("doctor --json || true"))}
    assert findings["docker"] == "ok"
    # k3s writes the user's file, which somebody may edit for use from outside.
    made.shell("sed -i s/127.0.0.1/host.example/ /root/kubeconfig.yaml")
    made.do("supervisorctl", "restart", "k3s")
    made.ready("all")
    assert "sbin/docker" not in made.shell("dind-k3s verify 2>&1 || true")
    made.do("reset", "cluster", "--yes")
    made.ready("all")
    assert made.kubectl("get", "nodes", "-o", "name") == "node/local-node"
    assert "127.0.0.1:1" in made.fails("env", "DOCKER_HOST=tcp://127.0.0.1:1", "DOCKER_TLS_VERIFY=", "docker", "ps")
