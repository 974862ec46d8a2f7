"""K3S_DISABLE=1 in the place of docker:dind: its variables, flags, ports and certificates; proxies, CAs, registries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.image.box import Box, Image

pytestmark = pytest.mark.engine

NETWORK, CA, CLIENT = "ci", "certs-ca", "certs-client"
TLS = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/certs/client"}
PROXY = {"HTTP_PROXY": "http://me:geheim@192.0.2.1:3128", "https_proxy": "http://me:geheim@192.0.2.1:3128"}
WITHOUT_CERTIFICATE = """
import socket, ssl
trusting = ssl.create_default_context(cafile='/certs/client/ca.pem')
s = trusting.wrap_socket(socket.create_connection(('docker', 2376)), server_hostname='docker')
s.send(b'GET /_ping HTTP/1.0\\r\\n\\r\\n')
s.recv(100)
"""
REGISTRIES = """
mirrors:
  docker.io:
    endpoint: ["https://mirror.example"]
  "plain.example:5000":
    endpoint: ["http://plain.example:5000"]
configs:
  private.example:
    auth: {"username": "me", "password": "geheim"}
"""


@pytest.fixture
def ci(image: Image, boxes: Callable[..., Box]) -> Iterator[Box]:
    """As docker:dind's page on Docker Hub and GitLab's documentation start it, with the alias `docker`."""
    engine = image.engine
    engine.network.create(NETWORK)
    made = boxes(
        environment={"K3S_DISABLE": "1", "DOCKER_TLS_CERTDIR": "/certs", "DOCKER_DRIVER": "overlay2", **PROXY},
        command=["dockerd", "--label", "of=user"],
        options={"networks": [NETWORK], "network_aliases": ["docker"]},
    )
    made.volumes = [*made.own_volumes.items(), (CA, "/certs/ca"), (CLIENT, "/certs/client")]
    yield made.up("docker")
    made.remove()
    engine.volume.remove([CA, CLIENT])
    engine.network.remove(NETWORK)


def client(made: Box, command: str, **environment: str) -> str:
    """What a shell command says in another container, which has the client's certificates alone."""
    return str(
        made.docker.run(
            made.image.name,
            ["-c", f"{command} 2>&1 || true"],
            entrypoint="sh",
            remove=True,
            networks=[NETWORK],
            volumes=[(CLIENT, "/certs/client", "ro")],
            envs={"DOCKER_HOST": "tcp://docker:2376", **environment},
        )
    )


def test_a_client_of_docker_dind_works_unchanged(ci: Box) -> None:
    assert client(ci, "docker info -f '{{json .Labels}} {{.Driver}}'", **TLS) == '["of=user"] overlay2'
    assert "HTTP request to an HTTPS server" in client(ci, "docker version")
    assert "certificate required" in client(ci, f'python3 -c "{WITHOUT_CERTIFICATE}"')
    authority = ci.do("cat", "/certs/ca/cert.pem")

    # An own authority, registries as for k3s, and a name more, at the next start.
    ci.shell(
        "mkdir -p /certs.d /etc/rancher/k3s; cp /certs/ca/cert.pem /certs.d/own.crt;"
        f" cat >/etc/rancher/k3s/registries.yaml <<'END'{REGISTRIES}END"
    )
    assert "unknown authority" in pull(ci)
    ci.docker.restart(ci.name)
    ci.ready("docker")
    assert "unknown authority" not in pull(ci)
    assert ci.log().count("1 certificates of /certs.d are trusted: own.crt") == 1
    config: dict[str, Any] = json.loads(ci.do("docker", "info", "-f", "{{json .RegistryConfig}}"))
    assert config["Mirrors"] == ["https://mirror.example/"]
    assert config["IndexConfigs"]["plain.example:5000"]["Secure"] is False
    assert "private.example" in ci.do("cat", "/root/.docker/config.json")

    # dockerd goes through the proxy, with a NO_PROXY of all that is inside.
    assert "192.0.2.1:3128" in ci.do("docker", "info", "-f", "{{.HTTPSProxy}}")
    known = ci.do("docker", "info", "-f", "{{.NoProxy}}").split(",")
    assert {".svc", ".cluster.local", "localhost", ci.name} <= {*known}

    ci.environment = {**ci.environment, "DOCKER_TLS_SAN": "DNS:other.example,192.0.2.7"}
    ci.recreate()
    ci.ready("docker")
    assert ci.do("cat", "/certs/ca/cert.pem") == authority
    assert client(ci, "docker version -f {{.Server.Os}}", **TLS) == "linux"
    names = ci.do("openssl", "x509", "-in", "/certs/server/cert.pem", "-noout", "-ext", "subjectAltName")
    assert "DNS:other.example" in names
    assert "IP Address:192.0.2.7" in names
    assert "geheim" not in ci.log() + ci.do("doctor", "--json")


def pull(made: Box) -> str:
    """What dockerd says of a registry that has nothing, behind the certificate of the docker API."""
    server = (
        "import http.server, ssl; s = http.server.HTTPServer(('', 5443), http.server.SimpleHTTPRequestHandler);"
        "c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER);"
        "c.load_cert_chain('/certs/server/cert.pem', '/certs/server/key.pem');"
        "s.socket = c.wrap_socket(s.socket, server_side=True); s.serve_forever()"
    )
    made.do("bash", "-c", f'cd /tmp; setsid python3 -c "{server}" >/dev/null 2>&1 &')
    made.until("the registry", lambda: made.do("bash", "-c", ": </dev/tcp/localhost/5443; echo open"))
    return made.fails("docker", "pull", "docker:5443/nothing")


def test_plain_tcp_only_when_asked_and_without_dockerds_delay(image: Image, boxes: Callable[..., Box]) -> None:
    made = boxes(environment={"K3S_DISABLE": "1"}, command=["-H", "tcp://0.0.0.0:2375"]).up("docker")
    assert made.do("docker", "-H", "tcp://127.0.0.1:2375", "version", "-f", "{{.Server.Os}}") == "linux"
    assert "intentionally being slowed down" not in made.log()
    assert "without TLS: its clients are root here" in made.log()
    exposed = image.engine.image.inspect(image.name).config.exposed_ports or {}
    assert "2375/tcp" not in exposed
    assert "2376/tcp" not in exposed
