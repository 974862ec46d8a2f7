"""Checks of what the start chose and what runs: storage, network, daemons. They work before there is a choice, too."""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

from dind_k3s import limits, mounts, problem, room, trial
from dind_k3s.finding import Finding, finding, number, output, size, text, tried
from dind_k3s.host_checks import lacks
from dind_k3s.manifest import components
from dind_k3s.plan import asked
from dind_k3s.root import RUN, at, facts

MOUNT_NEEDS_MORE = "not tried: a container without --privileged cannot mount"
FAST = ("overlay2", "overlayfs", "btrfs", "zfs", "")  # storage drivers; none is chosen yet
OURS = re.compile(r"docker0|br-|cni0|flannel|veth|kube-|cali|docker_gwbridge")  # interfaces made in here

# The newest API of a Docker client library, by its major version; the one in k3s's cri-dockerd is of 25 or newer since
# 0.3.17 (Mirantis/cri-dockerd#395).
NEWEST_API = {"20": 41, "23": 42, "24": 43}

_OVERLAY = """
WHY=
DOCKER_OURS=$(mktemp -d "$DATA/.doctor.XXXXXX" 2>&1) || { echo "$DOCKER_OURS"; exit 3; }
if try_overlay2; then result=0; else result=1; fi
rm -rf "$DOCKER_OURS"
echo "$WHY"
exit $result
"""


def storage() -> Iterator[Finding]:
    status, kind = output("stat", "-f", "-c", "%T", "/var/lib/docker")
    kind = kind if status == 0 else "not known"
    yield finding("file-system", status == 0, f"/var/lib/docker is on {kind}", "mount a volume there")
    works = False
    if lacks("CAP_SYS_ADMIN"):
        yield finding("overlay", False, MOUNT_NEEDS_MORE, "run with --privileged", "warn")
    else:
        status, words = tried(_OVERLAY, "volumes", "storage")
        works = status == 0
        why = words.splitlines()[0] if words else f"status {status}"
        remedy = (
            "the volume cannot be written: is it full or read-only?"
            if status == 3
            else "slow without it: keep images in a named volume, -v docker:/var/lib/docker"
        )
        yield finding("overlay", works, "mounted, with whiteouts" if works else why, remedy, "warn")
    driver = facts().get("storage", "")
    remedy = "a named volume carries overlay2, which is faster: -v docker:/var/lib/docker"
    yield finding("storage-driver", driver in FAST, driver or "not chosen yet", remedy, "warn")


def volumes() -> Iterator[Finding]:
    for folder in ("/var/lib/docker", "/app/k3s"):
        space = os.statvfs(at(folder))
        free = space.f_bavail * space.f_frsize
        full = free < 2 * 2**30 or (space.f_files and space.f_favail < 10_000)
        evidence = f"{size(free)} free" + (f", {space.f_favail} inodes" if space.f_files else "")
        yield finding(f"space-{folder}", not full, evidence, "make room", "fail" if room.full(folder) else "warn")
        runs = not mounts.noexec(folder)
        evidence = "programs can be run from it" if runs else f"{mounts.noexec(folder)} is mounted noexec"
        remedy = f"k3s and programs in volumes are run from there: --tmpfs {folder}:exec, or a mount without noexec"
        yield finding(f"exec-{folder}", runs, evidence, remedy, "fail" if folder == "/app/k3s" else "warn")
        mounted = at(folder).is_mount()
        remedy = f"what is in it goes with the container: -v NAME:{folder}"
        yield finding(f"volume-{folder}", mounted, "a volume" if mounted else "not a volume", remedy, "warn")


def iptables() -> Iterator[Finding]:
    chosen = facts().get("iptables", "")
    if lacks("CAP_NET_ADMIN"):
        yield finding("iptables", False, "not tried: that needs CAP_NET_ADMIN", "run with --privileged", "warn")
        return
    words = {}
    for backend in ("nft", "legacy"):
        for _ in range(2):  # another program may hold the lock of the legacy tables
            status, refused = tried(f"REFUSED=; takes_rules {backend}; s=$?; echo $REFUSED; exit $s", "iptables")
            words[backend] = "takes rules" if status == 0 else refused.splitlines()[0] if refused else f"{status}"
            if status == 0:
                break
    good = words[chosen] == "takes rules" if chosen in words else "takes rules" in words.values()
    evidence = "; ".join(f"{backend}: {result}" for backend, result in words.items())
    evidence = f"{chosen} is chosen; {evidence}" if chosen else evidence
    yield finding("iptables", good, evidence, "the host's kernel needs nf_tables or ip_tables: modprobe nf_tables")


def _listed(*command: str) -> list[dict[str, Any]]:
    """What `ip -json` answers."""
    status, words = output("ip", "-json", "-4", *command)
    entries = json.loads(words or "[]") if status == 0 else []
    return [entry for entry in entries if isinstance(entry, dict)]


def network() -> Iterator[Finding]:
    routes = _listed("route")
    way = next((str(route.get("dev", "")) for route in routes if route.get("dst") == "default"), "")
    yield finding("default-route", bool(way), way or "none", "k3s needs one: not --network none")
    outside = facts().get("outside") or way
    outer, inner = number(f"/sys/class/net/{outside}/mtu"), number("/sys/class/net/docker0/mtu")
    if outside and outer:
        evidence = f"{outside} has {outer}" + (f", docker0 {inner}" if inner else "")
        remedy = f"large packets get lost: set mtu to {outer} in /etc/docker/daemon.json"
        yield finding("mtu", not inner or inner <= outer, evidence, remedy, "warn")
    taken = {route["dst"]: route["dev"] for route in routes if _is_outer(route)}
    own = {
        f"{route['dev']}'s": route["dst"] for route in routes if "/" in str(route.get("dst")) and not _is_outer(route)
    }
    if not asked(os.environ, "K3S_DISABLE"):
        own |= _cluster_networks()
    clashes = [
        f"{what} {network} and {other} of {interface}"
        for what, network in own.items()
        for other, interface in taken.items()
        if ip_network(network, strict=False).overlaps(ip_network(other, strict=False))
    ]
    evidence = "; ".join(clashes) or f"{', '.join(own.values()) or 'none yet'} beside {', '.join(taken) or 'nothing'}"
    remedy = "the outer network cannot be reached from pods: cluster-cidr and service-cidr in /app/k3s/config.yaml of a"
    remedy += " new cluster, or bip in /etc/docker/daemon.json"
    yield finding("networks", not clashes, evidence, remedy, "warn")


def _is_outer(route: dict[str, Any]) -> bool:
    return not OURS.match(str(route.get("dev"))) and route.get("dst") not in (None, "default")


def _cluster_networks() -> dict[str, str]:
    found = {"cluster-cidr": "10.42.0.0/16", "service-cidr": "10.43.0.0/16"}
    for file in (f"{RUN}/k3s/config.yaml", "/etc/rancher/k3s/config.yaml", "/app/k3s/config.yaml"):
        for key, value in re.findall(r"^(cluster-cidr|service-cidr):\s*['\"]?([0-9./]+)", text(file), re.MULTILINE):
            found[key] = value
    return found


def dns() -> Iterator[Finding]:
    servers = re.findall(r"^nameserver\s+(\S+)", text("/etc/resolv.conf"), re.MULTILINE)
    loopback = [server for server in servers if server.startswith("127.") or server == "::1"]
    named = ", ".join(servers) or "no nameserver"
    forwarder = facts().get("dns")
    if forwarder:
        good = answers(forwarder)
        evidence = f"{named}, forwarded from {forwarder}, which {'answers' if good else 'does not answer'}"
        if good and not servers:
            yield finding("dns", False, evidence, "no name outside is found: --dns ADDRESS", "warn")
            return
        yield finding("dns", good, evidence, "see /app/logs/dns.log")
    else:
        remedy = (
            "nested containers cannot ask a loopback address; the start forwards it, if it has an address of its own"
        )
        yield finding("dns", bool(servers) and not loopback, named, remedy, "warn")


def answers(address: str) -> bool:
    """Whether a DNS server is there. The question is for the name that no server asks others for: localhost."""
    question = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + b"\x09localhost\x00" + struct.pack("!2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(2)
        try:
            asking.sendto(question, (address, 53))
            return len(asking.recv(512)) >= 12
        except OSError:
            return False


def containers() -> Iterator[Finding]:
    used, most = limits.processes()
    refused = limits.refused_processes()
    evidence = f"{used} in use, {most:.0f} allowed, {refused} refused" if most < math.inf else "no limit"
    remedy = "dockerd, k3s and every container need more: docker run --pids-limit=-1"
    yield finding("pids", most - used >= trial.NEEDED and not refused, evidence, remedy)
    yield finding("inotify", *_inotify())
    if lacks("CAP_SYS_ADMIN"):
        yield finding("container", False, MOUNT_NEEDS_MORE, "run with --privileged", "warn")
        return
    why = trial.shortage() or trial.start_one()
    remedy = "what it names is this container's or its host's; nothing in here can be started until it is mended"
    yield finding("container", not why, why or f"nothing speaks against one by {trial.default_runtime()}", remedy)


def _inotify() -> tuple[bool, str, str]:
    """Whether another instance can be made, as kubelet, containerd and `kubectl logs --follow` need them."""
    instance = ctypes.CDLL(None, use_errno=True).inotify_init1(os.O_CLOEXEC)
    if instance >= 0:
        os.close(instance)
        return True, "another instance can be made", ""
    remedy = "all instances of the host's user are in use: sysctl fs.inotify.max_user_instances=8192 on the host"
    return False, f"no instance is left ({os.strerror(ctypes.get_errno())})", remedy


def docker() -> Iterator[Finding]:
    form = "{{.Server.Version}} {{.Server.MinAPIVersion}} {{.Server.APIVersion}}"
    status, words = output("docker", "version", "--format", form)
    parts = words.split()
    if status != 0 or len(parts) != 3:
        why = words.splitlines()[-1] if words else f"status {status}"
        yield finding("docker", False, why, "supervisorctl status; /app/logs/dockerd.log")
        return
    version, oldest, newest = parts
    yield Finding(id="docker", state="ok", evidence=f"{version}, API {oldest} to {newest}")
    if asked(os.environ, "K3S_DISABLE"):
        return
    inside = next((entry.get("embedded") for entry in components() if entry.get("component") == "k3s"), None) or {}
    library = str(inside.get("docker-client", ""))
    speaks = NEWEST_API.get(library.removeprefix("v").partition(".")[0], 44)
    yield finding(
        "docker-k3s-api",
        int(oldest.partition(".")[2]) <= speaks <= int(newest.partition(".")[2]),
        f"dockerd takes 1.{oldest.partition('.')[2]} and newer, k3s's client speaks 1.{speaks}",
        "no pod starts: take the docker and k3s of one release of this image",
    )


def ends() -> Iterator[Finding]:
    for name in ("dockerd",) if asked(os.environ, "K3S_DISABLE") else ("dockerd", "k3s"):
        reported = problem.read(name)
        remedy = f"change what it names, then: supervisorctl restart {name}; its log is /app/logs/{name}.log"
        yield finding(f"{name}-runs", not reported, reported or "no failure", remedy)


def readiness() -> Iterator[Finding]:
    try:
        state = json.loads(text(f"{RUN}/state.json") or "{}")
    except ValueError:
        state = {}
    state = state if isinstance(state, dict) else {}
    good = state.get("health") == "ok"
    yield finding("ready", good, str(state.get("text") or "not known yet"), "docker logs has more", "warn")
