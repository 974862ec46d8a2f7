"""snapshot, restore, reset, and the guard over versions, as a user meets them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.image.box import Box, Image, box
from tests.image.objects import config_map, create, pod, wait_for_pods

pytestmark = pytest.mark.engine

MEMORY = {"emptyDir": {"medium": "Memory"}}
PODS_CONTAINERS = ("docker", "ps", "--all", "--quiet", "--filter", "name=k8s_one_.*_default_")
# As CNI plugins leave it when nobody asks them to remove a pod's network.
CNI_STATE = """
mkdir -p /var/lib/cni/networks/cbr0; echo x >/var/lib/cni/networks/cbr0/10.42.9.9
ip link add cni0 type bridge 2>/dev/null || true
iptables -t nat -N CNI-HOSTPORT-DNAT 2>/dev/null || true
iptables -t nat -A CNI-HOSTPORT-DNAT -p tcp --dport 8080 -j DNAT --to-destination 10.42.9.9:80
"""
MANIFEST = "/usr/share/dind-k3s/manifest.json"


def has(made: Box, name: str) -> bool:
    return name in made.kubectl("get", "configmaps", "-o", "name")


@pytest.fixture(scope="module")
def cluster(image: Image) -> Iterator[Box]:
    """A box whose cluster these tests snapshot, lose and get back."""
    with box(image) as made:
        yield made.up()


def test_a_snapshot_of_a_running_cluster_is_restored_elsewhere(cluster: Box, boxes: Callable[..., Box]) -> None:
    create(cluster, config_map("one"))
    written = cluster.do("snapshot", "/tmp/cluster.tar.gz")
    assert written.startswith("/tmp/cluster.tar.gz (")
    assert cluster.do("stat", "-c", "%a", "/tmp/cluster.tar.gz") == "600"
    create(cluster, config_map("two"))
    # On another machine: nothing but the file gets there.
    other = boxes()
    other.create()
    cluster.docker.copy((cluster.name, "/tmp/cluster.tar.gz"), other.image.folder)
    other.docker.copy(other.image.folder / "cluster.tar.gz", (other.name, "/tmp/cluster.tar.gz"))
    other.up()
    create(other, config_map("elsewhere"))
    output = other.do("restore", "/tmp/cluster.tar.gz")
    assert "is ready" in output
    assert has(other, "one")
    assert not has(other, "two")
    assert not has(other, "elsewhere")
    for path in ("/app/k3s/server/token", "/app/k3s/server/tls/server-ca.crt", "/etc/rancher/node/password"):
        assert other.do("cat", path) == cluster.do("cat", path), path
    assert other.shell("ls /app/k3s/.dind-k3s/restore 2>/dev/null || echo none") == "none"
    # The one that was there is not lost either.
    (kept,) = other.shell("ls /app/k3s/snapshots/before-restore-*").splitlines()
    # A snapshot is a stream, too; what fails at one end of the pipe is reported at the other.
    other.shell(f"cat {kept} | restore -")
    assert has(other, "elsewhere")
    assert "not a snapshot" in other.fails("bash", "-c", "snapshot /nowhere/x | restore -")


def test_what_is_no_whole_snapshot_is_refused_before_anything_is_touched(cluster: Box) -> None:
    before = cluster.pid("k3s")
    cluster.shell(
        "snapshot /tmp/whole.tar.gz; cd /tmp; head -c 3000 whole.tar.gz >part; tar -czf other /etc/hostname; >empty"
    )
    for name, output in (
        ("part", "part of"),
        ("other", "something else"),
        ("empty", "not a snapshot"),
        ("gone", "No such"),
    ):
        assert output in cluster.fails("restore", f"/tmp/{name}")
    cluster.shell(
        """python3 - <<'END'
import gzip
data = bytearray(gzip.open("/tmp/whole.tar.gz").read())
data[data.index(b'BEGIN CERTIFICATE') + 60] ^= 1
gzip.open("/tmp/changed", "wb").write(data)
END"""
    )
    assert "is not what it was" in cluster.fails("restore", "/tmp/changed")
    assert cluster.pid("k3s") == before
    cluster.ready()


def test_a_cluster_that_does_not_come_up_is_put_back(cluster: Box) -> None:
    create(cluster, config_map("stays"))
    # Whole, and a database, but none that this k3s can work with.
    cluster.shell(
        """mkdir -p /tmp/bad/server/db; cd /usr/local/lib/dind-k3s; python3 - <<'END'
import sqlite3
from pathlib import Path
from dind_k3s import archive
sqlite3.connect("/tmp/bad/server/db/state.db").execute("CREATE TABLE version (other)")
with open("/tmp/bad.tar.gz", "wb") as file:
    archive.write(Path("/tmp/bad"), file, created="once", reason="test", versions={})
END"""
    )
    output = cluster.fails("restore", "/tmp/bad.tar.gz", "--timeout", "3")
    assert "the cluster before it is put back" in output
    cluster.until("the cluster", lambda: has(cluster, "stays"))
    cluster.ready()


def test_a_restore_that_was_killed_is_undone_by_the_next_start(boxes: Callable[..., Box]) -> None:
    made = boxes().up()
    create(made, config_map("stays"))
    # The new state is in place, its proof is not there yet.
    made.shell(
        """supervisorctl stop k3s >/dev/null; cd /app/k3s; mkdir -p .dind-k3s/restore/old/server
echo '["server/db", "server/token"]' >.dind-k3s/restore/had
mv server/db .dind-k3s/restore/old/server/db; mkdir server/db; echo new >server/db/state.db; mkdir -p server/cred"""
    )
    made.docker.kill(made.name)
    made.up()
    assert "a restore or reset was interrupted: the cluster before it is back" in made.log()
    assert has(made, "stays")
    assert made.shell("ls server/cred 2>/dev/null || echo none") == "none"


def test_reset_begins_anew_and_keeps_a_way_back(boxes: Callable[..., Box]) -> None:
    made = boxes().up()
    create(made, config_map("gone"))
    made.build("mine:1")
    create(made, pod("pod", "/bin/sleep", "600"), pod("memory", "/bin/sleep", "600", volume=MEMORY))
    wait_for_pods(made)
    uid = made.kubectl("get", "pod", "memory", "-o", "jsonpath={.metadata.uid}")
    assert made.shell(f"grep -c /var/lib/kubelet/pods/{uid}/ /proc/self/mountinfo") == "2"
    made.shell(CNI_STATE)
    token = made.do("cat", "/app/k3s/server/token")
    for wrong in ([], ["what"], ["cluster", "images"]):
        assert "usage: reset" in made.fails("reset", *wrong)
    assert "say --yes" in made.fails("reset", "cluster")
    assert has(made, "gone")
    assert "the cluster is new and ready" in made.do("reset", "cluster", "--yes")
    assert not has(made, "gone")
    assert made.kubectl("get", "pods", "-o", "name") == ""
    assert made.do("cat", "/app/k3s/server/token") != token
    assert made.do(*PODS_CONTAINERS) == ""
    assert made.shell(f"grep {uid} /proc/self/mountinfo || find /var/lib/kubelet -name {uid}") == ""
    assert "10.42.9.9" not in made.shell("find /var/lib/cni || true; iptables-save")
    assert "DOCKER" in made.do("iptables-save")
    assert made.do("docker", "image", "ls", "--quiet", "mine")
    made.do("reset", "images", "--yes")
    assert made.do("docker", "image", "ls", "--quiet", "mine") == ""
    made.do("docker", "volume", "create", "inner")
    made.build("mine:1")
    made.shell("restore /app/k3s/snapshots/before-reset-*")
    assert has(made, "gone")
    assert made.do("cat", "/app/k3s/server/token") == token
    made.until("the pods", lambda: made.kubectl("get", "pods", "-o", "name") == "pod/memory\npod/pod")
    made.until("their containers", lambda: len(made.do(*PODS_CONTAINERS).split()) >= 2)
    assert "both volumes are as new" in made.do("reset", "all", "--yes")
    assert not has(made, "gone")
    assert made.do("docker", "volume", "ls", "--quiet") == ""
    assert made.do("docker", "image", "ls", "--quiet", "mine") == ""
    assert made.shell("test -e /app/k3s/snapshots && echo yes || echo no") == "no"


def with_versions(made: Box, **versions: str) -> None:
    """Another image as far as its manifest goes; the container is not started yet."""
    entries = [{"component": name, "version": version} for name, version in versions.items()]
    file = made.image.folder / f"{made.name}.json"
    file.write_text(json.dumps(entries))
    made.docker.copy(file, (made.name, MANIFEST))


def test_versions_may_go_up_one_minor_with_a_snapshot_and_not_down(boxes: Callable[..., Box]) -> None:
    made = boxes().up()
    create(made, config_map("kept"))
    stamps = made.do("cat", "/app/k3s/.dind-k3s/versions", "/var/lib/docker/.dind-k3s/versions").splitlines()
    was = dict(line.split("=") for line in stamps)
    major, minor, _ = was["k3s"].split(".", 2)
    next_one, skipped_to = (f"{major}.{int(minor) + number}.0+k3s1" for number in (1, 2))

    def again(environment: dict[str, str], **versions: str) -> None:
        made.docker.remove(made.name, force=True)
        made.environment = environment
        made.create()
        with_versions(made, **versions)
        made.start()

    again({}, k3s=skipped_to, docker="20.10.0")
    code, _ = made.ends()
    assert code == 2
    older, skipped = made.errors()
    assert older.startswith(f"docker 20.10.0 is older than {was['docker']}, which wrote this volume")
    assert skipped.startswith(f"k3s {skipped_to} skips a minor version: {was['k3s']} wrote this volume")
    assert f"take the risk with DIND_K3S_ALLOW_VERSION={skipped_to}" in skipped

    again({}, k3s=next_one, docker="29.0.0")
    made.ready()
    assert has(made, "kept")
    assert f"k3s {next_one} after {was['k3s']}" in made.log()
    (kept,) = made.shell("ls /app/k3s/snapshots/before-upgrade-*").splitlines()
    assert f"the cluster of k3s {was['k3s']} is kept in {kept}" in made.log()
    create(made, config_map("newer"))

    again({}, **was)
    code, _ = made.ends()
    assert code == 2
    assert f"k3s {was['k3s']} is older than {next_one}" in made.errors()[1]
    assert f"restore {kept}" in made.errors()[1]

    # The way back that the error names.
    made.docker.remove(made.name, force=True)
    output = made.docker.run(
        made.image.name, ["restore", kept], volumes=[(f"{made.name}-k3s", "/app/k3s")], remove=True
    )
    assert "is what the next start finds" in str(output)
    again({"DIND_K3S_ALLOW_VERSION": was["docker"]}, **was)
    made.ready()
    assert f"warning: docker {was['docker']} is older than 29.0.0" in made.log()
    assert has(made, "kept")
    assert not has(made, "newer")


@pytest.mark.real_k3s
@pytest.mark.earlier_k3s
def test_a_cluster_of_an_earlier_k3s_is_upgraded_and_brought_back(boxes: Callable[..., Box], earlier: Image) -> None:
    made = boxes()
    latest, made.image = made.image, earlier
    made.up(limit=180)
    before = made.kubectl("get", "--raw=/version")
    create(made, config_map("kept"))

    made.image = latest
    made.recreate()
    made.ready(limit=180)
    assert has(made, "kept")
    assert made.kubectl("get", "--raw=/version") != before
    (kept,) = made.shell("ls /app/k3s/snapshots/before-upgrade-*").splitlines()
    count = "ls /app/k3s/data | grep -Ec '^[0-9a-f]{64}$'"
    made.until("what the earlier k3s unpacked to be gone", lambda: made.shell(count) == "1")
    create(made, config_map("newer"))

    made.image = earlier
    made.recreate()
    assert made.ends()[0] == 2
    assert f"restore {kept}" in made.errors()[-1]
    made.docker.remove(made.name, force=True)
    made.docker.run(earlier.name, ["restore", kept], volumes=[(f"{made.name}-k3s", "/app/k3s")], remove=True)
    made.up(limit=180)
    assert made.kubectl("get", "--raw=/version") == before
    assert has(made, "kept")
    assert not has(made, "newer")
