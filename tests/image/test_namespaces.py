"""What `docker run` can share with the host: nothing of the host, nor of a container beside this one, is touched."""

from __future__ import annotations

import difflib
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.image.box import Box, Image
from tests.image.test_stop import STUBBORN, stop

pytestmark = pytest.mark.engine

# Rules without their counters, addresses without their lifetimes, and what else a daemon likes to change.
NETWORK = r"""
for tool in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
  echo "== $tool"; $tool-save 2>/dev/null | sed -e '/^#/d' -e 's/\[[0-9]*:[0-9]*\]//'
done
ip -o address | sed 's/valid_lft.*//'; ip route show table all; ip rule
grep -s . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv[46]/conf/{all,default}/* |
  grep -v stable_secret || true
"""
REST = r"""
hostname; cat /proc/sys/kernel/domainname /proc/sys/kernel/shm* /proc/sys/kernel/msg* /proc/sys/kernel/sem
cat /proc/sys/fs/mqueue/*; ls -A /dev/shm /dev/mqueue; cat /proc/sysvipc/*
find /sys/fs/cgroup -type d | grep -v "$(hostname)" | grep -vE '/docker/(buildx|[0-9a-f]{64})' | sort
"""
PROCESSES = "ps -eo pid=,ppid=,cgroup=,args= --width 1000"


@dataclass(frozen=True)
class Host:
    """The outer engine's host, seen by a container that shares all with it. It is a bystander, too, with a network."""

    box: Box

    def network(self) -> list[str]:
        return self.box.shell(NETWORK).splitlines()

    def rest(self) -> list[str]:
        return self.box.shell(REST).splitlines()

    def processes(self) -> list[str]:
        """Those of the host, of the engine, and of every container, without the kernel's, which come and go."""
        lines = map(str.strip, self.box.shell(PROCESSES).splitlines())
        others = r"ps -eo|\brunc\b(?!-v2)|^\d+ +[02] .* \[.+\]$"  # the first two are of this very question
        return [line for line in lines if not re.search(others, line)]

    def seen(self) -> list[str]:
        return [*self.network(), *self.rest(), *self.processes()]

    def is_as(self, before: list[str]) -> bool:
        """Whether nothing has changed. AssertionError with the difference."""
        difference = [line for line in difflib.ndiff(before, self.seen()) if line[0] in "+-"]
        assert not difference, "\n".join(difference)
        return True

    def stays(self, before: list[str]) -> None:
        """Wait until the outer engine has put away what was the box's. AssertionError when anything else changed."""
        self.box.until("the host to be as before", lambda: self.is_as(before), 10)


@pytest.fixture
def host(image: Image, boxes: Callable[..., Box]) -> Iterator[Host]:
    """A bystander in the host's namespaces, one in a network of its own with a published port, one on docker0."""
    shared = {"pid": "host", "networks": ["host"], "ipc": "host", "cgroupns": "host"}
    network = image.engine.network.create(f"bystanders-{uuid.uuid4().hex[:8]}")
    own = {"networks": [network], "publish": [("127.0.0.1:18080", 80)]}
    try:
        watcher, *_ = made = [
            boxes(volumes=(), command=["infinity"], options={"entrypoint": "sleep", **options})
            for options in (shared, own, {})
        ]
        for box in made:
            box.start()
        watcher.until("addresses to be settled", lambda: "tentative" not in watcher.do("ip", "address"))
        yield Host(watcher)
        made[1].remove()
    finally:
        network.remove()


def test_with_the_hosts_processes_in_sight_only_our_own_are_ended(boxes: Callable[..., Box], host: Host) -> None:
    before, processes = host.seen(), host.processes()
    box = boxes(options={"pid": "host"}).up()
    box.build("mine:1")
    box.do("docker", "run", "--detach", "--name", "stubborn", "mine:1", "/bin/sh", "-c", STUBBORN)
    assert set(processes) <= set(host.processes())
    assert float(box.do("cat", "/run/dind-k3s/ready/k8s")) < 90 * box.image.patience
    took, code = stop(box)
    assert (code, took < 10) == (0, True), box.log()
    # The stubborn one; with a real k3s CoreDNS, too, which keeps on answering for as long as this.
    assert re.search(r"[12] containers did not end", box.log())
    host.stays(before)
    box.up()
    box.docker.kill(box.name)
    host.stays(before)


def test_the_hosts_network_is_refused_before_anything_is_written(boxes: Callable[..., Box], host: Host) -> None:
    before = host.seen()
    for environment in ({}, {"DIND_K3S_HOST_NETWORK": "1"}):  # which is for a network without an engine
        box = boxes(environment=environment, options={"networks": ["host"]})
        box.start()
        code, log = box.ends()
        assert code == 2
        assert "another container engine works in it" in " ".join(box.errors()), log
        host.stays(before)


def test_the_network_of_another_container(boxes: Callable[..., Box]) -> None:
    plain = boxes(volumes=(), command=["infinity"], options={"entrypoint": "sleep"})
    plain.start()
    shared = {"hostname": None, "networks": [f"container:{plain.name}"]}
    first = boxes(environment={"K3S_DISABLE": "1"}, options=shared).up("docker")
    second = boxes(environment={"K3S_DISABLE": "1"}, options=shared)
    second.start()
    code, log = second.ends()
    assert code == 2
    assert "another container engine" in " ".join(second.errors()), log
    # What the first one leaves there is no obstacle to its next start.
    first.docker.restart(first.name)
    first.ready("docker")


@pytest.mark.parametrize("namespace", ["ipc", "uts", "userns", "cgroupns"])
def test_other_namespaces_of_the_host_are_supported(boxes: Callable[..., Box], host: Host, namespace: str) -> None:
    before, rest = host.seen(), host.rest()
    options: dict[str, object] = {namespace: "host"}
    if namespace == "uts":
        options["hostname"] = None
    box = boxes(options=options).up()
    box.build("mine:1")
    assert box.do("docker", "run", "--rm", "--memory", "64m", "--cpus", "0.5", "mine:1") == "hello"
    assert host.rest() == rest
    assert stop(box)[1] == 0
    host.stays(before)


@pytest.mark.parametrize("access", ["ro", "rw"])
@pytest.mark.parametrize("namespace", ["host", "private"])
def test_the_hosts_cgroups_are_not_written(boxes: Callable[..., Box], host: Host, access: str, namespace: str) -> None:
    before, rest = host.seen(), host.rest()
    mount = ["type=bind", "source=/sys/fs/cgroup", "target=/sys/fs/cgroup"]
    mounts = [mount + ["readonly"] * (access == "ro")]
    box = boxes(options={"cgroupns": namespace, "mounts": mounts}).up()
    box.build("mine:1")
    assert box.do("docker", "run", "--rm", "--memory", "64m", "mine:1") == "hello"
    assert re.search(r"cgroup .*the host's /sys/fs/cgroup is mounted here", box.log())
    assert host.rest() == rest
    assert stop(box)[1] == 0
    host.stays(before)


def test_a_volume_on_which_the_hosts_engine_runs_is_refused(boxes: Callable[..., Box], image: Image) -> None:
    root = image.engine.info().docker_root_dir
    box = boxes(options={"mounts": [["type=bind", f"source={root}", "target=/var/lib/docker"]]}, volumes=())
    box.start()
    code, log = box.ends()
    assert code == 2
    assert "another container engine" in " ".join(box.errors()), log
    look = ["type=bind", f"source={root}", "target=/look", "readonly"]
    looking = boxes(volumes=(), command=["infinity"], options={"entrypoint": "sleep", "mounts": [look]})
    looking.start()
    assert ".dind-k3s" not in looking.do("ls", "-A", "/look")
