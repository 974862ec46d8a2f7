"""Versions that may follow one another, snapshots, and states that are swapped wholly or not at all."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import socketserver
import sqlite3
import subprocess
import tarfile
import threading
import time
import zlib
from pathlib import Path

import pytest
from dind_k3s import archive, data_root, docker_api, drain, guard, reset, restore, snapshot, versions, volume
from dind_k3s.plan import Mistake
from dind_k3s.versions import Version, refusal

HEALTHCHECK = Path(__file__).resolve().parents[2] / "rootfs/usr/local/bin/healthcheck"
OF = {"k3s": "v1.37.1+k3s1"}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The image's Python programs read and write below it; a cluster is there."""
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    server = tmp_path / "app/k3s/server"
    (server / "db").mkdir(parents=True)
    (server / "tls/etcd").mkdir(parents=True)
    (tmp_path / "app/k3s/.dind-k3s/node").mkdir(parents=True)
    (tmp_path / "var/lib/docker/.dind-k3s").mkdir(parents=True)
    (tmp_path / "run/dind-k3s").mkdir(parents=True)
    fill(tmp_path, "first")
    image(tmp_path, "v1.37.1+k3s1", "28.5.2")
    return tmp_path


def image(root: Path, k3s: str, docker: str) -> None:
    manifest = root / "usr/share/dind-k3s/manifest.json"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"component": "k3s", "version": k3s}, {"component": "docker", "version": docker}]
    manifest.write_text(json.dumps(entries))


def fill(root: Path, word: str) -> None:
    """A cluster's state of which every part says the word."""
    server = root / "app/k3s/server"
    with sqlite3.connect(server / "db/state.db") as database:
        database.execute("CREATE TABLE IF NOT EXISTS kine (value TEXT)")
        database.execute("DELETE FROM kine")
        database.execute("INSERT INTO kine VALUES (?)", (word,))
    database.close()
    for path in ("token", "tls/server-ca.crt", "tls/etcd/peer.key"):
        (server / path).write_text(word)
    (server / "token").chmod(0o600)
    (root / "app/k3s/.dind-k3s/node/password").write_text(word)
    for link in (server / "node-token", server / "agent-token"):
        link.unlink(missing_ok=True)
        link.symlink_to(server / "token")  # absolute, as k3s makes them


def words(root: Path) -> set[str]:
    """What the parts of the state say; one word when they are of one piece."""
    server = root / "app/k3s/server"
    with sqlite3.connect(server / "db/state.db") as database:
        found = {str(value) for (value,) in database.execute("SELECT value FROM kine")}
    database.close()
    files = (server / "node-token", server / "tls/server-ca.crt", root / "app/k3s/.dind-k3s/node/password")
    return found | {path.read_text() for path in files}


def packed() -> bytes:
    written = io.BytesIO()
    snapshot.write(written, reason="test", of=OF, live=True)
    return written.getvalue()


def test_versions_are_ordered_as_their_makers_do() -> None:
    texts = ["v1.36.9+k3s1", "v1.37.0-rc1+k3s1", "v1.37.0-rc2+k3s1", "v1.37.0+k3s1", "v1.37.0+k3s2", "v1.37.10+k3s1"]
    parsed = [Version.parse(text) for text in texts]
    assert parsed == sorted(parsed, key=lambda version: version or Version(0, 0, 0, False, (), 0))
    assert Version.parse("none") is None


@pytest.mark.parametrize(
    ("component", "was", "now", "output"),
    [
        ("k3s", "v1.37.1+k3s1", "v1.37.1+k3s1", ""),
        ("k3s", "v1.37.1+k3s1", "v1.38.0+k3s1", ""),
        ("k3s", "v1.37.1+k3s1", "v1.39.0+k3s1", "skips a minor"),
        ("k3s", "v1.37.1+k3s1", "v2.0.0+k3s1", "skips a minor"),
        ("k3s", "v1.37.1+k3s2", "v1.37.1+k3s1", "is older than"),
        ("k3s", "v1.37.1+k3s1", "v1.36.9+k3s1", "is older than"),
        ("docker", "28.5.2", "27.0.1", "is older than"),
        ("docker", "27.0.1", "29.7.2", ""),
        ("docker", "garbage", "29.7.2", ""),
    ],
)
def test_which_moves_are_refused(component: str, was: str, now: str, output: str) -> None:
    found = refusal(component, was, now)
    assert output in found
    assert bool(found) == bool(output)


def test_the_guard_stamps_refuses_and_is_overruled_by_name(root: Path) -> None:
    assert guard.check({})[0] == "docker 28.5.2, first on its volume"
    (kept,) = guard.commit({})
    assert "the cluster of k3s unknown is kept in" in kept
    assert guard.commit({}) == []
    image(root, "v1.35.0+k3s1", "27.0.0")
    with pytest.raises(Mistake) as refused:
        guard.check({"DIND_K3S_ALLOW_VERSION": "v1.34.0+k3s1"})
    docker, k3s = str(refused.value).splitlines()
    assert docker.endswith("or take the risk with DIND_K3S_ALLOW_VERSION=27.0.0")
    assert "restore " in k3s
    assert guard.check({"K3S_DISABLE": "1", "DIND_K3S_ALLOW_VERSION": "27.0.0"})[0].startswith("warning: docker 27.0.0")
    assert len(guard.check({"DIND_K3S_ALLOW_VERSION": "v1.35.0+k3s1, 27.0.0"})) == 2


def test_three_snapshots_before_upgrades_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        monkeypatch.setattr(snapshot, "default_name", lambda what, n=number: root / f"{what}-{n}.tar.gz")
        snapshot.keep_before("upgrade", OF)
    assert sorted(path.name for path in root.glob("before-*")) == [f"before-upgrade-{n}.tar.gz" for n in (2, 3, 4)]


def test_an_upgrade_without_room_for_a_snapshot_is_refused_or_allowed(root: Path) -> None:
    versions.write_stamp(volume.ours(), {"k3s": "v1.36.1+k3s1"})
    (root / "app/k3s/server/db/state.db").write_bytes(b"no database at all, but more than a few bytes" * 200)
    with pytest.raises(Mistake, match=r"no snapshot can be made .* DIND_K3S_ALLOW_VERSION=v1\.37\.1\+k3s1 continues"):
        guard.commit({})
    assert guard.commit({"DIND_K3S_ALLOW_VERSION": "v1.37.1+k3s1"})[0].startswith("warning: no snapshot")


def test_a_snapshot_comes_back_as_it_was(root: Path) -> None:
    data = packed()
    fill(root, "second")
    messages = restore.run(io.BytesIO(data), "cluster.tar.gz", 1)
    assert words(root) == {"first"}
    assert "v1.37.1+k3s1" in messages[-1]
    assert (root / "app/k3s/server/token").stat().st_mode & 0o777 == 0o600
    (kept,) = (root / "app/k3s/snapshots").glob("before-restore-*")
    restore.run(io.BytesIO(kept.read_bytes()), kept.name, 1)
    assert words(root) == {"second"}
    assert not (root / "app/k3s/.dind-k3s/restore").exists()
    assert not list((root / "app/k3s/.dind-k3s").glob("tmp-*"))


def with_links(links: dict[str, str]) -> bytes:
    """An archive as earlier images made them: a cluster's state, of which some are links."""
    plain = io.BytesIO()
    state = {"server/token": b"old"}
    digests = {
        name: {"size": 3, "sha256": hashlib.sha256(data).hexdigest(), "mode": 0o600} for name, data in state.items()
    }
    head = {"format": 1, "created": "once", "reason": "test", "versions": OF}
    head["files"] = {**digests, **{name: {"link": target} for name, target in links.items()}}
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, data in {archive.CONTENTS: json.dumps(head).encode(), **state}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return gzip.compress(plain.getvalue())


@pytest.mark.parametrize("target", ["/app/k3s/server/token", "token"])
def test_an_archive_with_the_links_that_k3s_makes_is_restored(root: Path, target: str) -> None:
    data = with_links({"server/node-token": target, "server/agent-token": target})
    restore.run(io.BytesIO(data), "old.tar.gz", 1)
    assert (root / "app/k3s/server/token").read_text() == "old"
    assert (root / "app/k3s/server/node-token").readlink() == Path(target)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("server/node-token", "/etc/shadow"),
        ("server/node-token", "../token"),
        ("server/node-token", "/app/k3s/server/../../../etc/shadow"),
        ("server/tls/server-ca.crt", "token"),
        ("server/tls", "/app/k3s/server/token"),
    ],
)
def test_an_archive_with_another_link_is_refused(root: Path, name: str, target: str) -> None:
    with pytest.raises(Mistake, match=f"{name}: a link to {target}"):
        restore.run(io.BytesIO(with_links({name: target})), "evil.tar.gz", 1)
    assert words(root) == {"first"}


def test_a_snapshot_has_no_links_whatever_the_cluster_has(root: Path) -> None:
    (root / "ca.pem").write_text("my own")
    server_ca = root / "app/k3s/server/tls/server-ca.crt"
    server_ca.unlink()
    server_ca.symlink_to(root / "ca.pem")
    (root / "app/k3s/server/tls/dangling").symlink_to("nowhere")
    restore.run(io.BytesIO(packed()), "cluster.tar.gz", 1)
    assert not server_ca.is_symlink()
    assert server_ca.read_text() == "my own"
    assert (root / "app/k3s/server/node-token").read_text() == "first"


def content(data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return b""


def test_every_cut_and_every_flip_is_noticed_before_anything_is_touched(root: Path) -> None:
    data = packed()
    fill(root, "second")
    some = random.Random(1)
    plain = gzip.decompress(data)
    broken = [data[: some.randrange(len(data) - 8)] for _ in range(60)]
    for _ in range(60):
        changed = bytearray(data)
        changed[some.randrange(10, len(data) - 8)] ^= 1 << some.randrange(8)
        broken.append(bytes(changed))
    for part in (plain[: len(plain) // 2], plain.replace(b"server/token", b"server/../xx"), b"", b"text"):
        broken.append(gzip.compress(part))
    for one in broken:
        # Some other bits say the same: a run of zeros can be taken from here or from there.
        if content(one) == plain:
            continue
        with pytest.raises(Mistake):
            restore.run(io.BytesIO(one), "cluster.tar.gz", 1)
        assert words(root) == {"second"}


def test_an_archive_cannot_write_elsewhere(root: Path) -> None:
    folder = root / "made"
    for path in ("server/db/../../../../etc/passwd", "etc/passwd", "../x"):
        target = folder / "server"
        target.mkdir(parents=True, exist_ok=True)
        written = io.BytesIO()
        archive.write(folder, written, created="", reason="", versions=OF)
        data = gzip.decompress(written.getvalue()).replace(b'"files": {}', f'"files": {{"{path}": {{}}}}'.encode())
        with pytest.raises(Mistake):
            restore.run(io.BytesIO(gzip.compress(data)), "evil.tar.gz", 1)
    assert words(root) == {"first"}


@pytest.mark.parametrize("killed", [False, True])
def test_a_swap_that_ends_half_way_is_undone(root: Path, monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    (root / "app/k3s/server/agent-token").write_text("first")  # the other state has none
    moved: list[int] = []
    rename, undo = Path.rename, volume.Swap.undo

    def ends_at(limit: int) -> bool:
        moved.clear()

        def counting(path: Path, target: Path) -> Path:
            moved.append(1)
            if len(moved) == limit:
                monkeypatch.setattr(Path, "rename", rename)
                if killed:  # it cannot do anything any more
                    monkeypatch.setattr(volume.Swap, "undo", lambda _: False)
                raise KeyboardInterrupt
            return rename(path, target)

        other = root / "other/server"
        (other / "cred").mkdir(parents=True)
        (other / "db").mkdir()
        (other / "token").write_text("other")
        swap = volume.Swap()
        monkeypatch.setattr(Path, "rename", rename)
        swap.prepare(root / "other")
        monkeypatch.setattr(Path, "rename", counting)
        try:
            swap.do()
        except KeyboardInterrupt:
            return True
        finally:
            monkeypatch.setattr(Path, "rename", rename)
            monkeypatch.setattr(volume.Swap, "undo", undo)
        return False

    limit = 0
    while ends_at(limit := limit + 1):
        # Twice, as if the first one were killed, too; then nothing is left to undo.
        assert volume.Swap().undo() == killed
        assert not volume.Swap().undo()
        assert words(root) == {"first"}
        assert (root / "app/k3s/server/agent-token").exists()
        assert not (root / "app/k3s/server/cred").exists()
    assert limit > 7
    assert guard.check({})[0].startswith("a restore or reset was interrupted")
    assert words(root) == {"first"}


def test_a_snapshot_holds_what_was_committed_while_somebody_writes(root: Path) -> None:
    path = root / "app/k3s/server/db/state.db"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("INSERT INTO kine VALUES ('committed')")
    database.execute("BEGIN")
    database.execute("INSERT INTO kine VALUES ('not yet')")
    copy = root / "copy.db"
    snapshot.copy_database(path, copy)
    database.execute("ROLLBACK")
    database.close()
    with sqlite3.connect(copy) as found:
        assert found.execute("SELECT value FROM kine").fetchall() == [("first",), ("committed",)]
    found.close()


def test_reset_removes_the_cluster_and_keeps_what_is_the_users(root: Path) -> None:
    here = root / "app/k3s"
    kept = ("config.yaml", "server/manifests/mine.yaml", "agent/etc/kubelet.conf.d/10-dind-k3s.conf")
    gone = ("k3s.yaml", "agent/client-ca.crt", "storage/pvc-1/file", ".dind-k3s/kubelet/pods/1/file")
    for name in (*kept, *gone):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).touch()
    *_, last = reset.run("cluster", sure=True)
    assert last == "the next start makes a new cluster"
    assert all((here / name).exists() for name in kept)
    assert not any((here / name).exists() for name in (*gone, "server/db", "server/token", ".dind-k3s/node/password"))
    (kept_snapshot,) = (here / "snapshots").iterdir()
    restore.run(io.BytesIO(kept_snapshot.read_bytes()), "x", 1)
    assert words(root) == {"first"}


def test_reset_wants_to_be_sure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status, output in (
        (["cluster"], 2, "say --yes"),
        ([], 2, "/usr/bin/reset"),
        (["images", "--yes"], 2, "needs a running container"),
    ):
        monkeypatch.setattr("sys.argv", ["reset", *arguments])
        assert reset.main() == status
        assert output in capsys.readouterr().err
    assert volume.has_cluster()


@pytest.mark.parametrize(
    ("arguments", "daemon_json", "found"),
    [
        ("", "{}", "/var/lib/docker"),
        ("--data-root /mnt/x", "{}", "/mnt/x"),
        ("--data-root=/mnt/x -D", "{}", "/mnt/x"),
        ("-g /mnt/x", "{}", "/mnt/x"),
        ("--log-level debug", '{"data-root": "/mnt/y"}', "/mnt/y"),
        ("--config-file /etc/other.json", '{"data-root": "/mnt/y"}', "/var/lib/docker"),
        ("--data-root 'open", "{}", "/var/lib/docker"),
        ("--data-root", "no json", "/var/lib/docker"),
    ],
)
def test_the_data_root_is_where_dockerd_will_put_it(root: Path, arguments: str, daemon_json: str, found: str) -> None:
    (root / "etc/docker").mkdir(parents=True)
    (root / "etc/docker/daemon.json").write_text(daemon_json)
    assert data_root.find({"DOCKER_ARGS": arguments}, []) == found
    assert data_root.find({}, ["--data-root=/a/b"]) == ("/a/b" if daemon_json != "no json" else "/var/lib/docker")


@pytest.mark.parametrize(("silent", "status"), [(5, 0), (65, 1), (-1000, 0)])
def test_the_health_check_goes_by_a_clock_that_nobody_sets(root: Path, silent: int, status: int) -> None:
    now = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    (root / "run/dind-k3s/health").write_text(f"ok {now - silent} docker ready after 1 s\n")
    done = subprocess.run(
        [HEALTHCHECK],
        env={"PATH": os.environ["PATH"], "DIND_K3S_TEST_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert ("has said nothing for 6" in done.stdout) == bool(status)


def test_drain_gives_each_container_its_own_time_and_the_pods_networks_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [
        {"Id": "database", "Labels": {drain.GRACE: "60"}},
        {"Id": "plain", "Labels": {}},
        {"Id": "pause", "Labels": dict([drain.SANDBOX])},
    ]
    asked: list[str] = []

    class Dockerd(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline().decode().strip():  # the connection stays open after an answer
                while self.rfile.readline().strip():
                    pass
                asked.append(line.rpartition(" ")[0])
                body = json.dumps(listed).encode() if line.startswith("GET") else b""
                status = f"200 OK\r\nContent-Length: {len(body)}" if body else "204 No Content"
                self.wfile.write(f"HTTP/1.1 {status}\r\n\r\n".encode() + body)

    path = str(tmp_path / "s")
    monkeypatch.setattr(docker_api, "SOCKET", path)
    with socketserver.ThreadingUnixStreamServer(path, Dockerd) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        assert drain.main() == 0
        server.shutdown()
    stops = ["POST /containers/database/stop?t=60", "POST /containers/plain/stop"]
    assert sorted(asked) == ["GET /containers/json", *stops]
