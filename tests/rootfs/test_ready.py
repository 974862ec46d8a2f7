"""Readiness: the board, what waits for it, and what feeds it."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dind_k3s import board, certificates, cluster_dns, manifests, preload
from dind_k3s.board import Board
from dind_k3s.http_api import Connection

ROOTFS = Path(__file__).resolve().parents[2] / "rootfs"


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image's Python programs read and write below `tmp_path`."""
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))


def run(root: Path, program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOTFS / "usr/local/bin" / program), *arguments],
        env={"PATH": os.environ["PATH"], "DIND_K3S_TEST_ROOT": str(root), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def state(root: Path) -> dict[str, object]:
    return dict(json.loads((root / "run/dind-k3s/state.json").read_text()))


def test_a_stage_is_ready_when_all_of_its_sources_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Board(board.STAGES, "server")
    ready = tmp_path / "run/dind-k3s/ready"
    for source in ("docker", "containerd", "container", "api", "node", "account", "kubelet"):
        found.report(source, "")
    found.report("network", "flannel has not written its subnet")
    assert {file.name for file in ready.iterdir()} == {"docker"}
    found.report("network", "")
    assert {file.name for file in ready.iterdir()} == {"docker", "k8s"}
    found.report("dns", "", disabled=True)
    found.report("images", "")
    found.report("manifests", "not applied yet: app-x")
    assert {file.name for file in ready.iterdir()} == {"docker", "k8s", "dns"}
    found.report("local-storage", "")
    found.report("metrics-server", "", disabled=True)
    found.report("traefik", "traefik is not ready: Pending")
    assert {file.name for file in ready.iterdir()} == {"docker", "k8s", "dns", "local-storage", "metrics-server"}
    found.report("traefik", "")
    assert state(tmp_path)["health"] == "starting"
    found.report("manifests", "")
    assert (state(tmp_path)["health"], state(tmp_path)["disabled"]) == ("ok", ["dns", "metrics-server"])
    found.report("api", "the API server does not answer")
    assert {file.name for file in ready.iterdir()} == {"docker"}
    assert state(tmp_path)["health"] == "failing"
    found.report("api", "")
    messages = [line.partition(" after")[0] for line in capsys.readouterr().out.splitlines()]
    assert messages == [
        "docker is ready",
        "k8s is ready",
        "dns is ready",
        "local-storage is ready",
        "metrics-server is ready",
        "traefik is ready",
        "addons is ready",
        "everything is ready",
        "k8s, dns, local-storage, metrics-server, traefik, addons are not ready any more:"
        " the API server does not answer",
        "k8s, dns, local-storage, metrics-server, traefik, addons are ready again",
    ]
    (ready / "k8s").unlink()  # as keeper.py does
    found.heartbeat()
    assert (ready / "k8s").exists()


def test_wait_ready(tmp_path: Path) -> None:
    ready = tmp_path / "run/dind-k3s/ready"
    ready.mkdir(parents=True)
    (tmp_path / "run/dind-k3s/health").write_text("starting 1 dockerd does not answer yet\n")
    late = run(tmp_path, "wait-ready", "--for", "docker", "--timeout", "0")
    assert (late.returncode, "dockerd does not answer yet" in late.stderr) == (1, True)
    (ready / "docker").touch()
    assert run(tmp_path, "wait-ready", "--for=docker", "--timeout=5").stdout == "docker is ready\n"
    assert run(tmp_path, "wait-ready", "--timeout", "0").returncode == 1
    (ready / "all").touch()
    assert run(tmp_path, "wait-ready", "--timeout", "0").stdout == "everything is ready\n"
    for wrong in (("--for", "nothing"), ("--timeout", "soon"), ("--for",), ("--what",)):
        assert run(tmp_path, "wait-ready", *wrong).returncode == 2
    none = run(tmp_path, "wait-ready", "--for", "k8s", K3S_DISABLE="1")
    assert (none.returncode, "there is no Kubernetes" in none.stderr) == (2, True)


def test_waiting_in_vain_ends_at_once_with_the_reason(tmp_path: Path) -> None:
    found = Board(board.ALONE, "none")
    found.report("docker", "")
    found.report("containerd", "")
    found.report("container", "")
    found.report("images", "images that cannot be loaded: a.tar (no space)", failed=True)
    done = run(tmp_path, "wait-ready", "--for", "addons", "--timeout", "30")
    assert (done.returncode, "a.tar (no space)" in done.stderr) == (1, True)
    assert run(tmp_path, "wait-ready", "--for", "docker").returncode == 0
    found.report("images", "")
    assert run(tmp_path, "wait-ready", "--for", "addons", "--timeout", "0").returncode == 0


def test_the_health_check_believes_nothing_old(tmp_path: Path) -> None:
    assert run(tmp_path, "healthcheck").returncode == 1
    (tmp_path / "run/dind-k3s").mkdir(parents=True)
    health = tmp_path / "run/dind-k3s/health"
    now = int(board.since_boot())
    for text, code in ((f"ok {now} fine\n", 0), (f"failing {now} no\n", 1), (f"ok {now - 90} fine\n", 1)):
        health.write_text(text)
        assert run(tmp_path, "healthcheck").returncode == code
    assert "has said nothing for 9" in run(tmp_path, "healthcheck").stdout


def pem(end: str) -> bytes:
    der = b"0\x82..." + b"\x17\r250101000000Z\x17\r" + end.encode() + b"Z" + b"...\x0c\x11system:node:box-10\x82"
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def test_certificates_that_end_soon_are_told() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert certificates.days_left(pem("260301000000"), now) == 59
    assert "supervisorctl restart k3s" in certificates.warning(59)
    assert certificates.warning(60) == certificates.warning(None) == ""
    assert certificates.days_left(b"nothing") is None
    assert certificates.node_of(pem("260301000000")) == "box-1"
    inside = [hour for hour in range(24) if certificates.in_window("22-3", hour)]
    assert inside == [0, 1, 2, 22, 23]
    assert not certificates.in_window("", 3)


def test_manifests_are_copied_under_names_that_kubernetes_takes(tmp_path: Path) -> None:
    source, target = tmp_path / "app/manifests", tmp_path / "app/k3s/server/manifests/app"
    assert manifests.sync() == []
    source.mkdir(parents=True)
    for name in ("My_App.v2.yaml", "my-app-v2.yml", "b.json", "off.yaml", "off.yaml.skip", "read.me"):
        (source / name).write_text(f"# {name}\n")
    messages = " | ".join(manifests.sync())
    assert {file.name for file in target.iterdir()} == {"app-my-app-v2.yaml", "app-b.json"}
    assert "my-app-v2.yml is left out: its name comes to app-my-app-v2" in messages
    assert "off.yaml is left out" in messages
    assert list(manifests.expected()) == ["app-b", "app-my-app-v2"]
    before = manifests.expected()
    (source / "b.json").write_text("{}")
    assert "b.json is handed to k3s" in manifests.sync()
    assert manifests.expected()["app-b"] != before["app-b"]
    (source / "b.json").unlink()
    assert any("app-b.json is not in /app/manifests any more; its objects stay" in line for line in manifests.sync())
    assert list(manifests.expected()) == ["app-my-app-v2"]


def test_images_that_every_pod_waits_for_come_first(tmp_path: Path) -> None:
    folder = tmp_path / "app/images"
    folder.mkdir(parents=True)
    for name in ("a.tar", "z-coredns.tar.zst", "x-pause.tar.gz", "note.txt"):
        (folder / name).touch()
    assert [file.name for file in preload.files()] == ["x-pause.tar.gz", "z-coredns.tar.zst", "a.tar"]


@pytest.mark.parametrize("answers", [True, False])
def test_dns_is_asked_for_real(answers: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            query, client = server.recvfrom(512)
            server.sendto(query[:2] + b"\x81\x83" + query[4:], client)

        if answers:
            threading.Thread(target=serve, daemon=True).start()
            cluster_dns.ask("127.0.0.1", server.getsockname()[1])
        else:
            with pytest.raises(TimeoutError):
                cluster_dns.ask("127.0.0.1", server.getsockname()[1])


def test_answers_may_come_in_chunks_with_a_length_or_until_the_end() -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, "x")
    theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    first = connection.get("/")
    assert (first.status, first.read(), first.reusable) == (200, b"ok", True)
    theirs.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{}\n{\r\n2\r\n}\n\r\n0\r\n\r\n")
    assert list(connection.get("/").lines()) == [b"{}", b"{}"]
    theirs.sendall(b"HTTP/1.1 404 Not Found\r\n\r\nno")
    theirs.shutdown(socket.SHUT_WR)
    last = connection.get("/")
    assert (last.status, last.read(), last.reusable) == (404, b"no", False)
    connection.close()
    theirs.close()
