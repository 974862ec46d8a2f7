"""Where the docker API listens, its certificates, and what both daemons get of the user's proxies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from dind_k3s import dockerd, proxy
from dind_k3s.redact import redacted

LIBRARY = Path(__file__).resolve().parents[2] / "rootfs/usr/local/lib/dind-k3s"
FACTS = {"storage": "overlay2"}
SOCKET = "unix:///var/run/docker.sock"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    for folder in ("etc/docker", "run/dind-k3s"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/hostname").write_text("box\n")
    return tmp_path


@pytest.mark.parametrize(
    ("args", "file", "tls", "hosts", "more"),
    [
        ([], {}, "", None, []),
        ([], {}, "/certs", ["tcp://0.0.0.0:2376", SOCKET], []),
        (["-H", "tcp://0.0.0.0:2375"], {}, "", None, [f"--host={SOCKET}", "--tls=false"]),
        (["-Htcp://:2375", "-H=unix:///run/docker.sock"], {}, "", None, ["--tls=false"]),
        (["--host=tcp://:2375"], {}, "/certs", None, ["--host=tcp://0.0.0.0:2376", f"--host={SOCKET}"]),
        (["--host=tcp://:2376"], {}, "/certs", None, [f"--host={SOCKET}"]),
        (["--host=tcp://:2375", "--tls=false"], {}, "/certs", None, [f"--host={SOCKET}"]),
        ([], {"hosts": ["tcp://:2375"]}, "", ["tcp://:2375", SOCKET], ["--tls=false"]),
        ([], {"hosts": [SOCKET]}, "/certs", [SOCKET, "tcp://0.0.0.0:2376"], []),
    ],
)
def test_tcp_is_there_only_when_asked_and_the_socket_always(
    root: Path, args: list[str], file: dict[str, object], tls: str, hosts: list[str] | None, more: list[str]
) -> None:
    (root / "etc/docker/daemon.json").write_text(json.dumps(file))
    plan = dockerd.plan({}, args, {**FACTS, "tls": tls}, (29, 7), "dev")
    config = json.loads(plan.files["/run/dind-k3s/daemon.json"])
    assert config.get("hosts") == hosts
    assert sorted(plan.files["/run/dind-k3s/dockerd.args"].split("\0")[:-1]) == sorted([*args, *more])
    assert config.get("tlsverify") == (True if tls and "--tls=false" not in args else None)


def test_facts_of_the_network_become_settings() -> None:
    facts = {**FACTS, "docker-pools": "172.18.0.0/15:16 192.168.0.0/16:20", "ip6tables": "off", "dns": "169.254.53.53"}
    config = json.loads(dockerd.plan({}, [], facts, (29, 7), "dev").files["/run/dind-k3s/daemon.json"])
    pools = [{"base": "172.18.0.0/15", "size": 16}, {"base": "192.168.0.0/16", "size": 20}]
    assert (config["default-address-pools"], config["ip6tables"], config["dns"]) == (pools, False, ["169.254.53.53"])


@pytest.mark.parametrize(
    ("args", "file", "profile", "disabled", "opts", "more"),
    [
        ([], {}, "dev", "", {"max-size": "10m", "max-file": "3"}, []),
        ([], {}, "ci", "", {"max-size": "10m", "max-file": "3"}, []),
        ([], {}, "edge", "1", {"max-size": "10m", "max-file": "3"}, []),
        ([], {}, "dev", "1", None, []),
        (
            [],
            {"log-opts": {"max-size": "50m", "labels": "a"}},
            "dev",
            "",
            {"max-size": "50m", "max-file": "3", "labels": "a"},
            [],
        ),
        ([], {"log-driver": "journald"}, "dev", "", None, []),
        ([], {"log-driver": "local", "log-opts": {"max-size": "1m"}}, "dev", "", {"max-size": "1m"}, []),
        (["--log-driver", "none"], {}, "dev", "", None, []),
        (["--log-driver=json-file"], {}, "dev", "", {"max-size": "10m", "max-file": "3"}, []),
        (["--log-opt", "labels=a"], {}, "dev", "", None, ["--log-opt=max-size=10m", "--log-opt=max-file=3"]),
        (["--log-opt", "max-size=1m"], {}, "dev", "", None, ["--log-opt=max-file=3"]),
    ],
)
def test_logs_of_containers_have_a_limit_below_kubelets(
    root: Path, args: list[str], file: dict[str, object], profile: str, disabled: str, opts: object, more: list[str]
) -> None:
    (root / "etc/docker/daemon.json").write_text(json.dumps(file))
    plan = dockerd.plan({"K3S_DISABLE": disabled}, args, FACTS, (29, 7), profile)
    assert json.loads(plan.files["/run/dind-k3s/daemon.json"]).get("log-opts") == opts
    assert plan.files["/run/dind-k3s/dockerd.args"].split("\0")[:-1] == [*args, *more]
    other = any(word in str([args, file]) for word in ("journald", "local", "none"))
    assert any("kubectl logs works with the log driver json-file only" in line for line in plan.messages) == other


@pytest.mark.parametrize(
    ("version", "args", "file", "disabled", "routing"),
    [
        ((28, 1), [], {}, "", None),
        ((28, 2), [], {}, "", True),
        ((29, 7), [], {}, "", True),
        ((29, 7), [], {}, "1", None),
        ((29, 7), [], {"allow-direct-routing": False}, "", False),
        ((29, 7), ["--allow-direct-routing=false"], {}, "", None),
    ],
)
def test_pods_reach_containers_where_dockerd_has_a_setting_for_it(
    root: Path, version: tuple[int, ...], args: list[str], file: dict[str, object], disabled: str, routing: object
) -> None:
    (root / "etc/docker/daemon.json").write_text(json.dumps(file))
    plan = dockerd.plan({"K3S_DISABLE": disabled}, args, FACTS, version, "dev")
    assert json.loads(plan.files["/run/dind-k3s/daemon.json"]).get("allow-direct-routing") == routing


def make(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the step, with a fake `ip`."""
    (root / "bin").mkdir(exist_ok=True)
    (root / "bin/ip").write_text("#!/bin/sh\necho '1: lo    inet 127.0.0.1/8 scope host lo'\n")
    (root / "bin/ip").chmod(0o755)
    script = f'set -euo pipefail; for part in say tls; do source "{LIBRARY}/$part.sh"; done; step tls make_certificates'
    path = f"{root}/bin:{os.environ['PATH']}"
    env = {"PATH": path, "DIND_K3S_TEST_ROOT": str(root), **environment}
    return subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=False)


def openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True).stdout


def test_certificates_are_made_anew_below_an_authority_that_stays(root: Path) -> None:
    before = None
    for san in ("", "DNS:a.example, 192.0.2.7 b.example\n*.c.example,fd00::1"):
        done = make(root, DOCKER_TLS_CERTDIR="/certs", DOCKER_TLS_SAN=san)
        assert done.returncode == 0, done.stderr
        certs = root / "certs"
        names = openssl("x509", "-in", str(certs / "server/cert.pem"), "-noout", "-ext", "subjectAltName")
        assert {"DNS:box", "DNS:docker", "DNS:localhost"} <= {*names.replace(",", "").split()}
        assert ("IP Address:192.0.2.7" in names) == ("DNS:b.example" in names) == (san != "")
        for whose, purpose in (("server", "sslserver"), ("client", "sslclient")):
            folder = certs / whose
            openssl("verify", "-purpose", purpose, "-CAfile", str(folder / "ca.pem"), str(folder / "cert.pem"))
        for key in certs.glob("*/key.pem"):
            assert key.stat().st_mode & 0o777 == 0o600
        authority = (certs / "ca/cert.pem").read_bytes()
        assert before in (None, authority)
        before = authority


@pytest.mark.parametrize(
    ("folder", "san", "sentence"),
    [
        ("certs", "", "DOCKER_TLS_CERTDIR is 'certs', but it has to be an absolute path"),
        ("/certs", "IP:no.address", "is there a mistake in DOCKER_TLS_SAN (IP:no.address)?"),
    ],
)
def test_a_mistake_in_its_variables_is_a_sentence(root: Path, folder: str, san: str, sentence: str) -> None:
    done = make(root, DOCKER_TLS_CERTDIR=folder, DOCKER_TLS_SAN=san)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_no_certificates_unless_asked(root: Path) -> None:
    assert "its unix socket alone" in make(root).stderr
    assert "tcp://0.0.0.0:2375" in make(root, DOCKER_TLS_CERTDIR="").stderr
    assert not (root / "certs").exists()


@pytest.mark.parametrize(
    ("value", "warned"),
    [
        ("http://127.0.0.1:1", True),
        ("http://me:secret@localhost:1/", True),
        ("[::1]:1", True),
        ("http://127.0.0.1.example:1", False),
        ("http://192.0.2.1:1", False),
        ("http://127.0.0.1:99999", True),
    ],
)
def test_a_proxy_on_a_loopback_address_is_this_container_itself(value: str, warned: bool) -> None:
    lines = proxy.dead({"HTTPS_PROXY": value, "https_proxy": value})
    assert [line.startswith("warning: HTTPS_PROXY is") for line in lines] == [True] * warned
    assert "secret" not in "".join(lines)
    with socket.create_server(("127.0.0.1", 0)) as server:  # one that shares this container's network
        assert proxy.dead({"HTTP_PROXY": f"http://127.0.0.1:{server.getsockname()[1]}"}) == []


def test_a_proxy_in_either_spelling_reaches_both_daemons_with_what_is_inside() -> None:
    facts = {"cluster-cidr": "10.42.0.0/16", "service-cidr": "10.43.0.0/16", "addresses": "172.17.0.2 fd00::2"}
    made = proxy.environment({"https_proxy": "http://p:3128", "NO_PROXY": "mine.example, localhost"}, facts)
    assert made["HTTPS_PROXY"] == made["https_proxy"] == "http://p:3128"
    assert "HTTP_PROXY" not in made
    inside = (
        "127.0.0.0/8,::1,.svc,.cluster.local,docker,kubernetes,local-node,172.17.0.2,fd00::2,10.42.0.0/16,10.43.0.0/16"
    )
    assert made["NO_PROXY"] == made["no_proxy"] == f"mine.example,localhost,{inside}"
    assert proxy.environment({"NO_PROXY": "x"}, facts) == {}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--http-proxy=http://me:geheim@p:3128 x", "--http-proxy=http://***@p:3128 x"),
        ("--http-proxy 'http://me:ge@heim@p'", "--http-proxy 'http://***@p'"),
        ("k3s server --token geheim --agent-token=geheim -v 1", "k3s server --token *** --agent-token=*** -v 1"),
        ("see /app/k3s/server/node-token there", "see /app/k3s/server/node-token there"),
        ("--token-file /a https://x.example/@b", "--token-file /a https://***@b"),
    ],
)
def test_no_password_is_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown
