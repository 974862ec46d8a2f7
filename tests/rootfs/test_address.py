"""What a new address of the container changes in etcd and in the Node, and etcd's snapshots."""

from __future__ import annotations

import base64
import hashlib
import http.server
import importlib
import io
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from dind_k3s import address, etcd, restore, snapshot, versions, volume
from dind_k3s.etcd import Etcd
from dind_k3s.kube_api import Kubernetes
from dind_k3s.plan import Mistake

OLD, NEW = "10.0.0.2", "10.0.0.3"
ADDRESSES = [{"type": "InternalIP", "address": OLD}, {"type": "Hostname", "address": "local-node"}]


@dataclass
class K3s:
    """The etcd and the API server of one k3s, on one port, as far as they are asked."""

    members: list[dict[str, Any]]
    majority: bool = True
    content: bytes = b"objects" * 1000
    readyz: tuple[int, bytes] = (200, b"ok")
    node: dict[str, Any] = field(
        default_factory=lambda: {
            "metadata": {"annotations": {"k3s.io/internal-ip": OLD}},
            "status": {"addresses": ADDRESSES},
        }
    )

    def answer(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        match method, path:
            case "GET", "/readyz":
                return self.readyz
            case "GET", "/members":
                return 200, json.dumps(self.members).encode()
            case "GET", "/api/v1/nodes/local-node":
                return 200, json.dumps(self.node).encode()
            case "PATCH", "/api/v1/nodes/local-node":
                self.node["metadata"]["annotations"] |= body["metadata"]["annotations"]
                return 200, b"{}"
            case "PATCH", "/api/v1/nodes/local-node/status":
                self.node["status"] |= body["status"]
                return 200, b"{}"
            case "POST", "/v3/cluster/member/update" if self.majority:
                (member,) = (member for member in self.members if str(member["id"]) == body["ID"])
                member["peerURLs"] = body["peerURLs"]
                return 200, b"{}"
            case "POST", "/v3/maintenance/snapshot":
                parts = (self.content[:4000], self.content[4000:], hashlib.sha256(b"objects" * 1000).digest())
                lines = [{"result": {"blob": base64.b64encode(part).decode()}} for part in parts]
                return 200, "\n".join(map(json.dumps, lines)).encode()
        time.sleep(0.3)  # longer than STEADY: it is silent while it has no leader
        return 503, b"etcdserver: no leader"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's volume with etcd, whose member has the old address; k3s was started with the new one."""
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    for name, seconds in (("AGAIN", 0.01), ("STEADY", 0.2), ("MAJORITY", 0.1)):
        monkeypatch.setattr(address, name, seconds)
    tls = tmp_path / "app/k3s/server/tls/etcd"
    tls.mkdir(parents=True)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/O=system:nodes/CN=system:node:local-node", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(tls / "client.key"), "-out", str(tls / "client.crt")], check=True)
    for copy, of in (("peer-server-client.crt", "client.crt"), ("peer-server-client.key", "client.key")):
        (tls / copy).symlink_to(of)
    for authority in ("server-ca.crt", "peer-ca.crt"):
        (tls / authority).symlink_to("client.crt")
    (tmp_path / "app/k3s/server/db/etcd/member/wal").mkdir(parents=True)
    (tmp_path / "app/k3s/server/db/etcd/name").write_text("local-node-1234abcd")
    (tmp_path / "app/k3s/.dind-k3s").mkdir()
    (tmp_path / "app/k3s/.dind-k3s/address").write_text(f"{OLD}\n")
    (tmp_path / "run/dind-k3s").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def k3s(root: Path) -> Iterator[K3s]:
    """A server of one member, running."""
    made = K3s(members=[{"id": 2**63 + 1, "name": "local-node-1234abcd", "peerURLs": [f"https://{OLD}:2380"]}])

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = made.answer(self.command, self.path, json.loads(text or "{}"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PATCH = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    tls = root / "app/k3s/server/tls/etcd"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls / "client.crt"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(tls / "client.crt", tls / "client.key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        port = server.server_address[1]
        start(root, port)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        server.shutdown()


def start(root: Path, port: int) -> None:
    """Write what k3s writes when it starts with the new address."""
    (root / "app/k3s/server/db/etcd/config").write_text(
        f"listen-client-http-urls: https://127.0.0.1:{port}\nlisten-client-urls: https://127.0.0.1:1,https://{NEW}:1\n"
        f"listen-peer-urls: https://127.0.0.1:{port},https://{NEW}:2380\n"
    )
    tls = root / "app/k3s/server/tls/etcd"
    (root / "app/k3s/agent").mkdir(exist_ok=True)
    (root / "app/k3s/agent/kubelet.kubeconfig").write_text(
        f"    server: https://127.0.0.1:{port}\n    certificate-authority: {tls}/client.crt\n"
        f"    client-certificate: {tls}/client.crt\n    client-key: {tls}/client.key\n"
    )


def run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["address", NEW])
    assert address.main() == 0


def test_etcd_and_the_node_get_the_new_address(
    root: Path, k3s: K3s, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch)
    assert k3s.members[0]["peerURLs"] == [f"https://{NEW}:2380"]
    assert k3s.node["status"]["addresses"] == [{"type": "InternalIP", "address": NEW}, ADDRESSES[1]]
    assert k3s.node["metadata"]["annotations"] == {"k3s.io/internal-ip": NEW}
    assert (root / "app/k3s/.dind-k3s/address").read_text() == f"{NEW}\n"
    assert capsys.readouterr().out.splitlines() == [
        f"etcd has https://{NEW}:2380 for this member now, not https://{OLD}:2380",
        f"the node's address is {NEW} now, not {OLD}",
    ]
    run(monkeypatch)
    assert capsys.readouterr().out == ""


def test_what_the_api_server_waits_for_is_named(root: Path, k3s: K3s) -> None:
    k3s.readyz = (503, b"[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\nreadyz check failed\n")
    kubernetes = Kubernetes(root / volume.KUBELET.removeprefix("/"))
    assert kubernetes.problem() == "the API server is not ready (readyz answers 503: etcd)"
    k3s.readyz = (200, b"ok")
    assert kubernetes.problem() == ""
    kubernetes.forget()


def test_a_controller_that_still_knows_the_old_one_is_corrected(k3s: K3s, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "STEADY", 0.5)

    def write_what_it_knew() -> None:
        k3s.node["status"]["addresses"] = ADDRESSES

    timer = threading.Timer(0.3, write_what_it_knew)
    timer.start()
    run(monkeypatch)
    timer.join()
    assert k3s.node["status"]["addresses"][0] == {"type": "InternalIP", "address": NEW}


def test_an_address_that_the_user_chose_is_k3ss_matter(root: Path, k3s: K3s, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "app/k3s/config.yaml").write_text(f"node-ip: {NEW},fd00::2\n")
    run(monkeypatch)
    assert k3s.members[0]["peerURLs"] == [f"https://{NEW}:2380"]
    assert k3s.node["status"]["addresses"] == ADDRESSES


def test_members_without_a_majority_are_named_with_what_to_do(
    root: Path, k3s: K3s, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    k3s.majority = False
    k3s.members.append({"id": 1, "name": "other-9876fedc", "peerURLs": ["https://10.0.0.9:2380"]})
    timer = threading.Timer(1, lambda: setattr(k3s, "majority", True))
    timer.start()
    run(monkeypatch)
    timer.join()
    error, done, _ = capsys.readouterr().out.splitlines()
    assert "etcd has no majority of its members" in error
    assert f"local-node-1234abcd at https://{OLD}:2380, other-9876fedc at https://10.0.0.9:2380" in error
    assert "k3s server --cluster-reset" in error
    assert done.startswith("etcd has")


def test_an_etcd_that_k3s_resets_is_left_alone(root: Path, k3s: K3s) -> None:
    config = root / "app/k3s/server/db/etcd/config"
    config.write_text(config.read_text().replace(f",https://{NEW}:2380", ""))
    with pytest.raises(OSError, match="--cluster-reset"):
        Etcd().mend()
    assert k3s.members[0]["peerURLs"] == [f"https://{OLD}:2380"]


def test_a_snapshot_of_etcd_is_whole_or_none(root: Path, k3s: K3s) -> None:
    Etcd().save(root / "saved")
    assert (root / "saved").read_bytes() == k3s.content + hashlib.sha256(k3s.content).digest()
    k3s.content = k3s.content[:-1]
    with pytest.raises(Mistake, match="not complete"):
        Etcd().save(root / "saved")


def test_restore_leaves_etcd_to_the_next_start(root: Path, k3s: K3s, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda _: "v1.37.1+k3s1")
    here = root / "app/k3s"
    for live in (True, False):
        written = io.BytesIO()
        snapshot.write(written, reason="test", of={"k3s": "v1.37.1+k3s1"}, live=live)
        written.seek(0)
        restore.run(written, "cluster.tar.gz", 1)
        assert (here / volume.ETCD_SNAPSHOT).read_bytes().startswith(k3s.content) == live
        assert (here / volume.ETCD).exists() != live
        (here / volume.ETCD_SNAPSHOT).unlink()  # k3s starts
        (here / volume.ETCD / "member/wal").mkdir(parents=True, exist_ok=True)
        (here / volume.ETCD / "config").touch()
    assert (here / volume.ADDRESS).read_text() == f"{OLD}\n"


K3S = """#!/bin/sh
echo "$*" >>"$LOG"
case "$*" in *--cluster-reset*) mkdir -p "$K3S/server/tls-1" "$K3S/server/db/etcd-old-1"; echo "$SAYS" ;; esac
"""


@pytest.mark.parametrize(("content", "option"), [(b"objects", "=PATH"), (b"", "")])
def test_what_was_restored_becomes_a_cluster_of_one_before_k3s_runs(
    root: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, option: str
) -> None:
    here = root / "app/k3s"
    (here / volume.ETCD_SNAPSHOT).write_bytes(content)
    (here / "server/db/reset-flag").touch()
    program = root / "k3s"
    program.write_text(K3S)
    program.chmod(0o755)
    environment = {"K3S": str(here), "LOG": str(root / "log"), "PATH": "/usr/bin:/bin"}
    for says in ("failed", "Managed etcd cluster membership has been reset, restart"):
        command = ["python3", "-c", "from dind_k3s import etcd; etcd.main()", str(program), "server", "--docker"]
        done = subprocess.run(
            command,
            env={
                **environment,
                "SAYS": says,
                "DIND_K3S_TEST_ROOT": str(root),
                "PYTHONPATH": str(Path(etcd.__file__).parents[1]),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == (says == "failed"), done.stderr
        assert (here / volume.ETCD_SNAPSHOT).exists() == (says == "failed")
    path = f"--cluster-reset-restore-path{option.replace('PATH', str(here / volume.ETCD_SNAPSHOT))}"
    reset = f"server --docker --cluster-reset{f' {path}' if option else ''}"
    assert (root / "log").read_text().splitlines() == [reset, reset, "server --docker"]
    assert not (here / "server/db/reset-flag").exists()


@pytest.mark.parametrize(
    ("environment", "config"),
    [
        ({"K3S_DATASTORE_ENDPOINT": "postgres://me:secret@db/k3s"}, ""),
        ({"K3S_ARGS": "server --datastore-endpoint=postgres://me:secret@db/k3s"}, ""),
        ({}, "datastore-endpoint: postgres://me:secret@db/k3s\n"),
    ],
)
@pytest.mark.parametrize("command", ["snapshot", "restore", "reset"])
def test_an_external_datastore_is_refused(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    config: str,
    command: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (root / "app/k3s/config.yaml").write_text(config)
    (root / "archive").touch()
    arguments = {"snapshot": [], "restore": [str(root / "archive")], "reset": ["cluster", "--yes"]}[command]
    monkeypatch.setattr("sys.argv", [command, *arguments])
    assert importlib.import_module(f"dind_k3s.{command}").main() == 2
    error = capsys.readouterr().err
    assert "the cluster's datastore is postgres://***@db/k3s and not in /app/k3s" in error
