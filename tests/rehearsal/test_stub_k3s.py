"""The stub k3s: reproducible, marked as a stub, and usable with the real kubectl."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from python_on_whales import DockerClient

from pipeline.core.stub import MARKER
from pipeline.rehearsal.stub_k3s_build import build

VERSION = "v1.37.1+standin"
PLATFORM = "linux/amd64"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stub") / "k3s"
    path.write_bytes(build(VERSION, PLATFORM))
    path.chmod(0o755)
    return path


def run(program: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(program), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, **environment},
    )


def test_stub_is_reproducible_and_has_its_version_in_plain_text() -> None:
    data = build(VERSION, PLATFORM)
    assert data == build(VERSION, PLATFORM)
    assert data != build(VERSION, "linux/arm64")
    assert f"{MARKER} {VERSION} {PLATFORM}".encode() in data
    assert data.startswith(b"#!/usr/bin/env python3\n")


def test_version_without_the_stubs_suffix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\+standin"):
        build("v1.37.1+k3s1", PLATFORM)


def test_version(program: Path) -> None:
    assert run(program, "--version").stdout.startswith(f"k3s version {VERSION} (stub)\n")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["server", "--no-such-flag"], "no-such-flag"),
        (["kubectl", "get", "pods"], "k3s stub"),
        (["agent", "--docker"], "--server is required"),
        (["agent", "--docker", "--server=https://x:1"], "--token is required"),
        (["server", "--docker", "--config", "/nonexistent.yaml"], "/nonexistent.yaml"),
    ],
)
def test_unsupported_command_is_an_error_message(program: Path, arguments: list[str], reason: str) -> None:
    done = run(program, *arguments, DOCKER_HOST="unix:///nonexistent.sock")
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


class Cluster:
    """A running stub and a kubectl for it."""

    def __init__(self, program: Path, folder: Path, engine: DockerClient) -> None:
        self.program = program
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self.host = str(engine.client_config.host)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, str(self.program), "server", "--docker", "--node-name=node"]
        command += [f"--data-dir={self.folder}/data", f"--https-listen-port={self.port}", "--bind-address=127.0.0.1"]
        command += [f"--write-kubeconfig={self.kubeconfig}"]
        # /etc/rancher is the machine's, so the stub has another folder for the node password.
        environment = {"DOCKER_HOST": self.host, "DIND_K3S_STUB_ETC": f"{self.folder}/etc"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
            )
        self.until("get", "--raw", "/readyz")

    def kubectl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)

    def output(self, *arguments: str) -> str:
        done = self.kubectl(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def run_pod(self, image: str, *command: str) -> None:
        """Start the pod `one` and wait until it is Ready."""
        self.output("run", "one", f"--image={image}", "--image-pull-policy=Never", "--command", "--", *command)
        self.output("wait", "--for=condition=Ready", "pod/one", "--timeout=30s")

    def until(self, *arguments: str) -> str:
        deadline = time.monotonic() + 20
        while True:
            done = self.kubectl(*arguments)
            if done.returncode == 0 and done.stdout.strip():
                return done.stdout
            assert self.process is not None
            log = (self.folder / "log").read_text()
            assert self.process.poll() is None, log
            assert time.monotonic() < deadline, f"{arguments}: {done.stderr}\n{log[-2000:]}"
            time.sleep(0.1)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(10)


@pytest.fixture
def cluster(program: Path, engine: DockerClient, tmp_path: Path) -> Iterator[Cluster]:
    running = Cluster(program, tmp_path, engine)
    running.start()
    yield running
    if running.process and running.process.poll() is None:
        running.stop()
    for container in engine.container.list(all=True):
        container.remove(force=True)


@pytest.mark.engine
def test_kubectl_runs_a_pod_in_a_real_engine(cluster: Cluster, engine: DockerClient, busybox: str) -> None:
    assert VERSION in cluster.output("version")
    cluster.output("wait", "--for=condition=Ready", "node/node", "--timeout=20s")
    runtime = cluster.output("get", "node", "node", "-o", "jsonpath={.status.nodeInfo.containerRuntimeVersion}")
    assert runtime == f"docker://{engine.system.info().server_version}"
    cluster.run_pod(busybox, "/bin/sh", "-c", "cat /proc/1/comm; exec sleep 1000")
    assert cluster.output("logs", "one") == "sh\n"
    assert cluster.output("get", "pods").splitlines()[1].split() == ["one", "1/1", "Running", "0"]
    status = json.loads(cluster.output("get", "pod", "one", "-o", "jsonpath={.status}"))
    assert status["phase"] == "Running"
    assert [(one["ready"], one["restartCount"]) for one in status["containerStatuses"]] == [(True, 0)]
    names = [container.name for container in engine.container.list()]
    assert [name.split("_")[:4] for name in names] == [["k8s", "one", "one", "default"]]
    cluster.output("delete", "pod", "one", "--grace-period=1", "--timeout=30s")
    assert engine.container.list(all=True) == []


@pytest.mark.engine
def test_exec_returns_output_and_exit_code(cluster: Cluster, busybox: str) -> None:
    cluster.run_pod(busybox, "/bin/sleep", "1000")
    # More than all buffers between kubectl and the process.
    script = "i=0; while [ $i -lt 300 ]; do printf %010000d 0; i=$((i + 1)); done"
    assert cluster.kubectl("exec", "one", "--", "/bin/sh", "-c", script).stdout == "0" * 3_000_000
    failed = cluster.kubectl("exec", "one", "--", "/bin/sh", "-c", "echo no >&2; exit 4")
    assert (failed.returncode, failed.stdout) == (4, "")
    assert "no\n" in failed.stderr


@pytest.mark.engine
def test_missing_image_has_kubernetes_reason(cluster: Cluster) -> None:
    cluster.output("run", "none", "--image=nothing:1", "--image-pull-policy=Never")
    path = "jsonpath={.status.containerStatuses[0].state.waiting.reason}"
    assert cluster.until("get", "pod", "none", "-o", path) == "ErrImageNeverPull"


@pytest.mark.engine
def test_state_and_pods_survive_sigkill(cluster: Cluster, engine: DockerClient, busybox: str) -> None:
    document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}, "data": {"a": "b"}}
    (cluster.folder / "kept.json").write_text(json.dumps(document))
    cluster.output("apply", "-f", str(cluster.folder / "kept.json"))
    cluster.run_pod(busybox, "/bin/sleep", "1000")
    before = [container.id for container in engine.container.list()]
    assert cluster.stop(signal.SIGKILL) == -signal.SIGKILL
    cluster.start()
    assert cluster.output("get", "configmap", "kept", "-o", "jsonpath={.data.a}") == "b"
    cluster.output("wait", "--for=condition=Ready", "pod/one", "--timeout=30s")
    assert [container.id for container in engine.container.list()] == before


@pytest.mark.engine
def test_sigterm_ends_it_and_leaves_pods_running(cluster: Cluster, engine: DockerClient, busybox: str) -> None:
    cluster.run_pod(busybox, "/bin/sleep", "1000")
    assert cluster.stop() == 0
    assert len(engine.container.list()) == 1


@pytest.mark.engine
def test_client_without_a_certificate_is_refused(cluster: Cluster) -> None:
    answer = httpx.get(f"https://127.0.0.1:{cluster.port}/api/v1/pods", verify=False)
    assert answer.status_code in (401, 403)
    assert answer.json()["kind"] == "Status"
