"""The image's own programs: shell functions with fake commands first on PATH, Python by its functions."""

from __future__ import annotations

import configparser
import fcntl
import json
import os
import subprocess
from pathlib import Path

import pytest
from dind_k3s import configure, dockerd
from dind_k3s.plan import Mistake, Plan

ROOT = Path(__file__).resolve().parents[2]
ROOTFS = ROOT / "rootfs"
LIBRARY = ROOTFS / "usr/local/lib/dind-k3s"


class Box:
    """A root for the shell functions, with commands of our own in front of the real ones."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for below in ("run/dind-k3s", "var/lib/docker/.dind-k3s", "app/k3s/.dind-k3s", "proc/sys/net/ipv4", "proc/net"):
            (self.root / below).mkdir(parents=True)
        for below in ("etc/alternatives", "usr/sbin", "sys/fs/cgroup", "sys/class/net/eth0", "proc/self"):
            (self.root / below).mkdir(parents=True, exist_ok=True)
        (self.root / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
        (self.root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\nfe00:: ip6-localnet\n")

    def fake(self, name: str, script: str = "exit 0") -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def run(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run shell text after the library's parts were sourced."""
        parts = "say volumes preflight cgroup leftovers sysctl iptables storage network tls"
        text = f'set -euo pipefail\nfor part in {parts}; do source "{LIBRARY}/$part.sh"; done\n{script}\n'
        return subprocess.run(
            ["bash", "-c", text],
            env={"PATH": f"{self.bin}:{os.environ['PATH']}", "DIND_K3S_TEST_ROOT": str(self.root), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def facts(self) -> dict[str, str]:
        path = self.root / "run/dind-k3s/facts"
        return dict(line.split("=", 1) for line in path.read_text().splitlines()) if path.exists() else {}


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def capabilities(box: Box, mask: str) -> None:
    (box.root / "proc/self/status").write_text(f"Name:\tbash\nCapEff:\t{mask}\n")


def test_a_container_without_privileges_is_told_what_to_add(box: Box) -> None:
    capabilities(box, "00000000a80425fb")  # docker's default set
    done = box.run("step privileges require_privileges")
    assert done.returncode == 2
    assert "add --privileged" in done.stderr


def test_a_missing_cap_sys_resource_is_told_and_no_obstacle(box: Box) -> None:
    capabilities(box, "000001fffeffffff")
    (box.root / "dev").mkdir()
    (box.root / "dev/kmsg").touch()
    done = box.run("step privileges require_privileges")
    assert done.returncode == 0
    assert "CAP_SYS_RESOURCE" in done.stderr


def test_a_limit_of_open_files_is_raised_or_refused(box: Box) -> None:
    capabilities(box, "000001ffffffffff")
    (box.root / "dev").mkdir()
    (box.root / "dev/kmsg").touch()
    done = box.run("ulimit -n 512; step privileges require_privileges; ulimit -Hn")
    if done.returncode == 0:  # root that has CAP_SYS_RESOURCE
        assert ("it was limited to 512 open files, which are 65536 now" in done.stderr, done.stdout) == (
            True,
            "65536\n",
        )
    else:
        assert "this container may hold 512 files open" in done.stderr
        assert "--ulimit nofile=65536:65536" in done.stderr


def iptables(box: Box, *, nft: bool, legacy: bool) -> None:
    for backend, works in {"nft": nft, "legacy": legacy}.items():
        for name in (f"iptables-{backend}-restore", f"iptables-{backend}"):
            box.fake(name, "exit 0" if works else 'echo "no such protocol" >&2; exit 1')


@pytest.mark.parametrize(
    ("nft", "legacy", "chosen"), [(True, True, "nft"), (True, False, "nft"), (False, True, "legacy")]
)
def test_the_iptables_backend_is_the_one_that_takes_rules(box: Box, nft: bool, legacy: bool, chosen: str) -> None:
    iptables(box, nft=nft, legacy=legacy)
    done = box.run("step iptables choose_iptables; echo mode=$IPTABLES_MODE")
    assert done.returncode == 0, done.stderr
    assert box.facts["iptables"] == chosen
    assert f"mode={chosen}" in done.stdout
    assert str((box.root / "etc/alternatives/ip6tables-save").readlink()) == f"/usr/sbin/ip6tables-{chosen}-save"


def test_rules_that_are_there_already_decide_for_their_backend(box: Box) -> None:
    iptables(box, nft=True, legacy=True)
    (box.root / "proc/net/ip_tables_names").write_text("nat\n")
    box.run("step iptables choose_iptables")
    assert box.facts["iptables"] == "legacy"


def test_no_backend_ends_with_the_kernels_own_words(box: Box) -> None:
    iptables(box, nft=False, legacy=False)
    done = box.run("step iptables choose_iptables")
    assert done.returncode == 2
    assert "no such protocol" in done.stderr


STORAGE = """
try_overlay2() { [[ $WORKS == *overlay2* ]] || { WHY="whiteouts fail"; return 1; }; }
try_fuse_overlayfs() { [[ $WORKS == *fuse* ]] || { WHY="no fuse"; return 1; }; }
try_loop() { [[ $WORKS == *loop* ]]; }
step storage choose_storage
"""


@pytest.mark.parametrize(
    ("works", "driver", "output"),
    [
        ("overlay2 fuse loop", "overlay2", "proved"),
        ("fuse loop", "fuse-overlayfs", "a named volume does"),
        ("none", "vfs", "slow"),
    ],
)
def test_the_storage_driver_is_the_first_that_works_and_is_remembered(
    box: Box, works: str, driver: str, output: str
) -> None:
    done = box.run(STORAGE, WORKS=works)
    assert done.returncode == 0, done.stderr
    assert box.facts["storage"] == driver
    assert output in done.stderr
    again = box.run(STORAGE, WORKS=works)
    assert "as before" in again.stderr or driver != "overlay2"


def test_a_volume_filled_with_another_driver_is_refused_with_a_way_out(box: Box) -> None:
    (box.root / "var/lib/docker/overlay2").mkdir()
    done = box.run(STORAGE, WORKS="fuse")
    assert done.returncode == 2
    assert "whiteouts fail" in done.stderr
    assert "DOCKER_DRIVER" in done.stderr


def images_of(box: Box, *stores: str) -> None:
    """Image stores of these drivers with something in them, as dockerd has them."""
    containerd = "containerd/daemon/io.containerd"
    for store in stores:
        for folder in (
            (f"{containerd}.content.v1.content/blobs/sha256", f"{containerd}.snapshotter.v1.{store}/snapshots")
            if store == "overlayfs"
            else (f"image/{store}/imagedb/content/sha256",)
        ):
            (box.root / "var/lib/docker" / folder / "1").mkdir(parents=True)


@pytest.mark.parametrize(
    ("stores", "asked", "works", "driver", "messages"),
    [
        (["vfs"], "", "overlay2", "vfs", "as before"),
        (["vfs"], "overlay2", "overlay2", "vfs", "DOCKER_DRIVER=overlay2 is not used"),
        (["vfs", "overlay2"], "overlay2", "overlay2", "overlay2", "DOCKER_DRIVER=vfs shows them"),
        (["overlayfs"], "", "overlay2", "overlayfs", "containerd's image store"),
        (["overlayfs"], "overlay2", "overlay2", "overlayfs", "DOCKER_DRIVER=overlay2 is not used"),
        (["overlay2"], "vfs", "none", "vfs", "images of overlay2, which vfs does not show: DOCKER_DRIVER=overlay2"),
        (["overlay2"], "overlay2", "none", "overlay2", "untried"),
        ([], "vfs", "overlay2", "vfs", "as DOCKER_DRIVER asks"),
    ],
)
def test_a_driver_that_would_hide_images_is_not_used_or_named(
    box: Box, stores: list[str], asked: str, works: str, driver: str, messages: str
) -> None:
    images_of(box, *stores)
    done = box.run(STORAGE, DOCKER_DRIVER=asked, WORKS=works)
    assert done.returncode == 0, done.stderr
    assert box.facts["storage"] == driver
    assert sorted(box.facts["stores"].split()) == sorted(stores)
    assert messages in done.stderr


def test_a_containerd_store_that_does_not_work_here_is_refused_by_name(box: Box) -> None:
    images_of(box, "overlayfs")
    done = box.run(STORAGE, WORKS="fuse")
    assert done.returncode == 2
    assert "this volume was filled with overlayfs, which does not work on this host" in done.stderr


@pytest.mark.parametrize(
    ("args", "file", "hidden"),
    [
        ("-s vfs", "{}", "vfs"),
        ("--storage-driver=overlay2", "{}", ""),
        ("", '{"storage-driver": "vfs"}', "vfs"),
        ("", '{"features": {"containerd-snapshotter": true}}', "overlayfs"),
        ("--feature=containerd-snapshotter=true", "{}", "overlayfs"),
    ],
)
def test_a_setting_that_hides_images_is_named(tmp_path: Path, args: str, file: str, hidden: str) -> None:
    (tmp_path / "etc/docker").mkdir(parents=True)
    (tmp_path / "etc/docker/daemon.json").write_text(file)
    messages = dockerd.plan({"DOCKER_ARGS": args}, [], {**FACTS, "stores": "overlay2"}, (29, 7), "dev").messages
    assert [line for line in messages if "which" in line and "does not show" in line] == (
        [f"warning: this volume has images of overlay2, which {hidden} does not show: leave {hidden} out"]
        if hidden
        else []
    )


def test_the_containerd_store_of_the_volume_is_switched_on() -> None:
    config = daemon_json(dockerd.plan({}, [], {**FACTS, "storage": "overlayfs"}, (29, 7), "dev"))
    assert config["features"] == {"containerd-snapshotter": True}
    assert config["storage-driver"] == "overlayfs"


def test_two_containers_on_one_volume(box: Box) -> None:
    first = subprocess.Popen(
        ["flock", str(box.root / "var/lib/docker/.dind-k3s/lock"), "sleep", "60"], stdin=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            done = box.run("step lock lock_volumes")
            if done.returncode:
                break
        assert done.returncode == 2
        assert "/var/lib/docker is in use by another container" in done.stderr
    finally:
        first.kill()
        first.wait()


def test_cgroup_v2_is_nested_in_a_bounded_loop(box: Box) -> None:
    cgroup = box.root / "sys/fs/cgroup"
    (cgroup / "cgroup.controllers").write_text("cpu memory pids\n")
    (cgroup / "cgroup.procs").write_text("1\n")
    (cgroup / "cgroup.subtree_control").touch()
    (box.root / "proc/self/cgroup").write_text("0::/\n")
    done = box.run("step cgroup nest_cgroups")
    assert done.returncode == 0, done.stderr
    assert (cgroup / "cgroup.subtree_control").read_text() == "+cpu +memory +pids\n"
    (cgroup / "cgroup.subtree_control").unlink()
    (cgroup / "cgroup.subtree_control").mkdir()  # «device busy»: it can never be written
    done = box.run("EVACUATE_TRIES=3; step cgroup nest_cgroups")
    assert done.returncode == 2
    assert "stay in the root: 1" in done.stderr


OWN = "/docker/1"


@pytest.mark.parametrize(
    ("mounts", "cgroup", "reason"),
    [
        ("/ /sys/fs/cgroup rw - cgroup2", "0::/", ""),
        ("/ /sys/fs/cgroup rw - cgroup2", f"0::{OWN}", "the host's"),
        ("/../.. /sys/fs/cgroup rw - cgroup2", "0::/", "the host's"),
        ("/ /sys/fs/cgroup ro,nosuid - cgroup2", "0::/", "read-only"),
        (f"{OWN} /sys/fs/cgroup/cpu,cpuacct rw - cgroup", f"3:cpu,cpuacct:{OWN}\n0::/", ""),
        ("/ /sys/fs/cgroup/cpu,cpuacct rw - cgroup", f"3:cpu,cpuacct:{OWN}\n0::/", "the host's"),
        ("/.. /sys/fs/cgroup/systemd rw - cgroup", "1:name=systemd:/\n0::/", "the host's"),
        ("/ /sys/fs/cgroup/unified rw - cgroup2", f"1:name=systemd:{OWN}\n0::/x", ""),
        ("/ /sys/fs/cgroup ro - tmpfs", f"1:name=systemd:{OWN}\n0::/x", ""),
    ],
)
def test_cgroups_of_the_host_are_known_by_where_they_are_mounted(
    box: Box, mounts: str, cgroup: str, reason: str
) -> None:
    root, point, options, rest = mounts.split(" ", 3)
    (box.root / "proc/self/mountinfo").write_text(f"1 2 0:3 {root} {point} {options} shared:1 {rest} cgroup rw\n")
    (box.root / "proc/self/cgroup").write_text(f"{cgroup}\n")
    done = box.run("find_hosts_cgroups; echo $HOSTS_CGROUPS")
    assert done.returncode == 0, done.stderr
    assert reason in done.stdout
    assert bool(reason) == bool(done.stdout.strip())


def test_the_hosts_cgroups_are_covered_and_never_unmounted_while_shared_with_it(box: Box) -> None:
    log = box.root / "log"
    box.fake("umount", f'echo umount "$@" >>{log}')
    box.fake("mount", f'echo mount "$@" >>{log}; [[ $1 != --make-rprivate || -e {box.root}/private ]]')
    (box.root / "proc/self/cgroup").write_text("3:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n")
    top = box.root / "sys/fs/cgroup"
    assert box.run("cover_hosts_cgroups 2").returncode == 0
    assert log.read_text() == f"mount --make-rprivate {top}\nmount -t cgroup2 cgroup2 {top}\n"
    (box.root / "private").touch()
    log.unlink()
    assert box.run("cover_hosts_cgroups 1").returncode == 0
    assert log.read_text().splitlines() == [
        f"mount --make-rprivate {top}",
        f"umount --recursive --lazy {top}",
        f"mount -t tmpfs -o mode=0755 cgroup {top}",
        f"mount -t cgroup -o cpu,cpuacct cgroup {top}/cpu,cpuacct",
        f"mount -t cgroup -o none,name=systemd cgroup {top}/systemd",
    ]
    assert (top / "cpu").readlink() == Path("cpu,cpuacct")


ENGINE = "0000: 00000002 00000000 00010000 0001 01 5 /run/containerd/containerd.sock\n"


@pytest.mark.parametrize(
    ("sockets", "is_init", "environment", "status", "words"),
    [
        ("0000: 00000002 00000000 00010000 0001 01 5 /tmp/mine.sock\n", False, {}, 0, "this container's own"),
        ("0000: 00000003 00000000 00000000 0001 03 5 /run/containerd/containerd.sock\n", False, {}, 0, "own"),
        (ENGINE, False, {}, 2, "shared: another container engine works in it (/run/containerd/containerd.sock)"),
        ("", True, {}, 2, "shared: it is the host's"),
        ("", True, {"DIND_K3S_HOST_NETWORK": "1"}, 0, "taken for this container's own"),
        (ENGINE, True, {"DIND_K3S_HOST_NETWORK": "1"}, 2, "shared: another container engine works in it"),
    ],
)
def test_a_shared_network_is_known_and_refused(
    box: Box, sockets: str, is_init: bool, environment: dict[str, str], status: int, words: str
) -> None:
    (box.root / "proc/net/unix").write_text(f"Num RefCount Protocol Flags Type St Inode Path\n{sockets}")
    if is_init:
        (box.root / "proc/sys/net/core").mkdir()
        (box.root / "proc/sys/net/core/netdev_budget").touch()
    done = box.run("step network require_own_network", **environment)
    assert (done.returncode, words in done.stderr) == (status, True), done.stderr


@pytest.mark.parametrize("lock", [False, True])
def test_a_volume_on_which_another_engine_runs_is_refused_untouched(box: Box, lock: bool) -> None:
    data = box.root / "var/lib/docker"
    (data / "volumes").mkdir()
    (data / "volumes/metadata.db").touch()
    if lock:
        (data / ".dind-k3s/lock").touch()
    else:
        (data / ".dind-k3s").rmdir()
    with (data / "volumes/metadata.db").open() as database:
        fcntl.flock(database, fcntl.LOCK_EX)
        done = box.run("step lock lock_volumes")
    assert done.returncode == 2
    assert "another container engine works with the data at /var/lib/docker" in done.stderr
    assert (data / ".dind-k3s").exists() == lock
    assert box.run("step lock lock_volumes").returncode == 0


@pytest.mark.parametrize(
    ("resolvers", "host", "why"),
    [
        (["127.0.0.11"], "", "because they cannot ask 127.0.0.11"),
        (["192.0.2.1", "::1"], "", "because they cannot ask ::1"),
        (["fd00::53"], "", "because they cannot ask fd00::53, having no IPv6"),
        (["fd00::53", "192.0.2.1"], "", ""),
        ([], "", "because resolv.conf names no resolver: no name outside is found; --dns ADDRESS"),
        (["192.0.2.1"], "192.0.2.9 far.example far # by --add-host", "because /etc/hosts has far.example far"),
        (["192.0.2.1"], "172.17.0.2 me.example.org me", ""),
        (["192.0.2.1"], "ff02::1 ip6-allnodes", ""),
    ],
)
def test_dns_is_forwarded_only_where_resolv_conf_does_not_serve_nested_containers(
    box: Box, resolvers: list[str], host: str, why: str
) -> None:
    (box.root / "proc/net/route").write_text("Iface\tDestination\tGateway\neth0\t00000000\t010011AC\n")
    (box.root / "sys/class/net/eth0/mtu").write_text("1450\n")
    lines = [*(f"nameserver {resolver}" for resolver in resolvers), "search example.org"]
    (box.root / "etc/resolv.conf").write_text("".join(f"{line}\n" for line in lines))
    with (box.root / "etc/hosts").open("a") as hosts:
        hosts.write(f"{host}\n")
    box.fake("ip", 'echo "2: eth0    inet 172.17.0.2/16 brd 172.17.255.255 scope global eth0"')
    done = box.run("step network read_network")
    assert done.returncode == 0, done.stderr
    assert (why or "resolv.conf serves nested containers as it is") in done.stderr
    assert box.facts["mtu"] == "1450"
    assert box.facts["address"] == "172.17.0.2"
    assert (box.facts.get("dns") == "169.254.53.53") == bool(why)
    assert (box.root / "run/dind-k3s/resolv.conf").exists() == bool(why)


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image's Python programs read and write below `tmp_path`."""
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))


FACTS = {"storage": "overlay2", "cgroup": "2"}


def daemon_json(plan: Plan) -> dict[str, object]:
    read: dict[str, object] = json.loads(plan.files["/run/dind-k3s/daemon.json"])
    return read


def test_docker_args_keep_spaces_quotes_and_slashes() -> None:
    env = {"DOCKER_ARGS": "--label 'a=b c' --data-root=/mnt/x --registry-mirror \"https://m/x y\""}
    plan = dockerd.plan(env, [], FACTS, (29, 7), "dev")
    args = plan.files["/run/dind-k3s/dockerd.args"].split("\0")[:-1]
    assert args == ["--label", "a=b c", "--data-root=/mnt/x", "--registry-mirror", "https://m/x y"]


def test_docker_args_with_an_open_quote_is_a_sentence() -> None:
    with pytest.raises(Mistake, match="DOCKER_ARGS cannot be split"):
        dockerd.plan({"DOCKER_ARGS": "--label 'a"}, [], FACTS, (29, 7), "dev")


@pytest.mark.parametrize("flag", ["--storage-driver vfs", "-s vfs", "--storage-driver=vfs"])
def test_a_flag_takes_our_key_out_of_daemon_json(flag: str) -> None:
    plan = dockerd.plan({"DOCKER_ARGS": flag}, [], FACTS, (29, 7), "dev")
    assert "storage-driver" not in daemon_json(plan)
    assert any("replaces our storage-driver" in line for line in plan.messages)


def test_a_flag_that_the_users_own_file_has_too_is_told_before_dockerd_dies(tmp_path: Path) -> None:
    (tmp_path / "etc/docker").mkdir(parents=True)
    (tmp_path / "etc/docker/daemon.json").write_text('{"debug": true}')
    with pytest.raises(Mistake, match=r"-D \(debug\)"):
        dockerd.plan({"DOCKER_ARGS": "-D"}, [], FACTS, (29, 7), "dev")


def test_the_users_daemon_json_wins_over_ours_and_keeps_our_socket(tmp_path: Path) -> None:
    (tmp_path / "etc/docker").mkdir(parents=True)
    (tmp_path / "etc/docker/daemon.json").write_text('{"mtu": 1300, "hosts": ["tcp://127.0.0.1:2375"]}')
    config = daemon_json(dockerd.plan({}, [], {**FACTS, "mtu": "1450"}, (29, 7), "dev"))
    assert config["mtu"] == 1300
    assert config["hosts"] == ["tcp://127.0.0.1:2375", "unix:///var/run/docker.sock"]


def test_an_unknown_profile_and_a_bad_variable_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "run/dind-k3s").mkdir(parents=True)
    (tmp_path / "run/dind-k3s/facts").write_text("storage=overlay2\n")
    (tmp_path / "usr/share/dind-k3s").mkdir(parents=True)
    entries = [{"component": "docker", "version": "29.7.2"}, {"component": "k3s", "version": "v1.37.1+k3s1"}]
    (tmp_path / "usr/share/dind-k3s/manifest.json").write_text(json.dumps(entries))
    with pytest.raises(Mistake) as refused:
        configure.run({"PROFILE": "prod", "K3S_ARGS": "--x 'y"}, [])
    assert "PROFILE is prod" in str(refused.value)
    assert "K3S_ARGS cannot be split" in str(refused.value)
    assert not (tmp_path / "run/dind-k3s/daemon.json").exists()


def test_the_users_k3s_configuration_is_written_once(tmp_path: Path) -> None:
    (tmp_path / "run/dind-k3s").mkdir(parents=True)
    (tmp_path / "run/dind-k3s/facts").write_text("storage=overlay2\ncgroup=2\n")
    (tmp_path / "usr/share/dind-k3s").mkdir(parents=True)
    entries = [{"component": "docker", "version": "29.7.2"}, {"component": "k3s", "version": "v1.37.1+k3s1"}]
    (tmp_path / "usr/share/dind-k3s/manifest.json").write_text(json.dumps(entries))
    configure.run({}, [])
    mine = tmp_path / "app/k3s/config.yaml"
    assert mine.exists()
    mine.write_text("node-name: mine\n")
    configure.run({}, [])
    assert mine.read_text() == "node-name: mine\n"


def test_every_programs_log_rotates() -> None:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOTFS / "etc/supervisord.conf")
    programs = [section for section in settings.sections() if section.startswith("program:")]
    assert len(programs) > 5
    for program in programs:
        assert settings[program]["stdout_logfile"].startswith("/app/logs/")
        assert settings[program]["stdout_logfile_maxbytes"] in ("1MB", "10MB")
        assert settings[program]["stdout_logfile_backups"] == "2"
        assert settings[program]["stdout_events_enabled"] == "true"
