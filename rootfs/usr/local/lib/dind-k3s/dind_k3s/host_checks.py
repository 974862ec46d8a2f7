"""Checks of what the host and `docker run` gave to this container."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from dind_k3s.finding import Finding, finding, number, size, text
from dind_k3s.manifest import components
from dind_k3s.root import at, facts

CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN", 24: "CAP_SYS_RESOURCE"}
CONTROLLERS = ("cpu", "cpuset", "memory", "pids")  # k3s ends when one of them is missing
# What each kernel's own /proc/cpuinfo says; user-mode emulation shows the host's.
OWN_WORDS = {"x86_64": "vendor_id", "aarch64": "CPU implementer"}


def lacks(capability: str) -> bool:
    """Whether this process has it not."""
    mask = re.search(r"^CapEff:\s*([0-9a-f]+)$", text("/proc/self/status"), re.MULTILINE)
    bit = next(bit for bit, name in CAPABILITIES.items() if name == capability)
    return not (mask and int(mask[1], 16) >> bit & 1)


def privileges() -> Iterator[Finding]:
    missing = [name for name in ("CAP_NET_ADMIN", "CAP_SYS_ADMIN") if lacks(name)]
    evidence = f"missing: {', '.join(missing)}" if missing else "yes"
    yield finding("privileged", not missing, evidence, "run with --privileged")
    lacking = lacks("CAP_SYS_RESOURCE")
    yield finding(
        "oom-score",
        not lacking,
        f"CAP_SYS_RESOURCE is {'missing' if lacking else 'there'}",
        "oom_score_adj cannot be lowered here, so runc refuses pods (kubelet asks for -998): use a host that grants it,"
        " or give dockerd a default runtime that leaves it alone",
        "warn",
    )
    kmsg = at("/dev/kmsg")
    real = kmsg.is_char_device() and not kmsg.is_symlink()
    evidence = "/dev/kmsg" if real else "/dev/kmsg is a stand-in" if kmsg.exists() else "no /dev/kmsg"
    yield finding("kmsg", real, evidence, "kubelet reads it: run with --privileged", "warn")


def cgroups() -> Iterator[Finding]:
    second = at("/sys/fs/cgroup/cgroup.controllers").exists()
    first = at("/sys/fs/cgroup/memory").is_dir()
    yield finding(
        "cgroup",
        second,
        "v2" if second else "v1" if first else "neither v1 nor v2 is mounted",
        "Kubernetes and Docker are giving up v1: boot the host with systemd.unified_cgroup_hierarchy=1"
        if first
        else "run with --privileged",
        "warn" if first else "fail",
    )
    if second:
        there = text("/sys/fs/cgroup/cgroup.controllers").split()
    else:
        rows = [line.split() for line in text("/proc/cgroups").splitlines()[1:]]
        there = [row[0] for row in rows if row[-1] == "1"]
    missing = [name for name in CONTROLLERS if name not in there]
    evidence = f"missing: {', '.join(missing)}" if missing else ", ".join(CONTROLLERS)
    yield finding("cgroup-controllers", not missing, evidence, "k3s needs them: the host has to delegate them")
    paths = {line.split(":", 2)[-1] for line in text("/proc/self/cgroup").splitlines()}
    own = paths <= {"/", "/init"} or "cgroups" in facts()
    yield finding(
        "cgroup-namespace",
        own,
        "its own" if own else "the host's",
        "CPU limits of pods are not enforced: run with --cgroupns=private",
        "warn",
    )


def kernel() -> Iterator[Finding]:
    forward = text("/proc/sys/net/ipv4/ip_forward")
    evidence = f"net.ipv4.ip_forward is {forward or 'not known'}"
    yield finding(
        "ip-forward", forward == "1", evidence, "the start sets it to 1; by hand: sysctl net.ipv4.ip_forward=1"
    )
    for name, want in (("max_user_watches", 524288), ("max_user_instances", 512)):
        have = number(f"/proc/sys/fs/inotify/{name}") or 0
        remedy = f"on the host: sysctl fs.inotify.{name}={want}"
        yield finding(f"inotify-{name.split('_')[-1]}", have >= want, f"{have}, {want} wanted", remedy, "warn")


def memory() -> Iterator[Finding]:
    total = re.search(r"^MemTotal:\s*(\d+) kB$", text("/proc/meminfo"), re.MULTILINE)
    known = [int(total[1]) * 1024] if total else []
    limits = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    known += [limit for limit in map(number, limits) if limit]
    have = min(known, default=0)
    remedy = "k3s alone takes 512 MiB, dockerd and pods come on top: give 2 GiB"
    yield finding("memory", have >= 2**30, size(have), remedy, "warn")


def clock() -> Iterator[Finding]:
    now = time.time()
    day = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    built = next((str(entry["built"]) for entry in components() if entry.get("built")), "")
    try:
        earliest = datetime.fromisoformat(built).replace(tzinfo=UTC).timestamp() - 86400
    except ValueError:
        earliest = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    evidence = f"{day}{f', this image was made on {built}' if built else ''}"
    good = earliest <= now < earliest + 15 * 365 * 86400
    yield finding("clock", good, evidence, "no certificate is valid with it: set the host's clock")


def machine() -> Iterator[Finding]:
    name, word = platform.machine(), OWN_WORDS.get(platform.machine())
    emulated = word is not None and word not in text("/proc/cpuinfo")
    # Nothing in here needs hardware virtualization, and its absence explains nothing; so /dev/kvm is not looked at.
    yield finding(
        "machine",
        not emulated,
        f"{name}, Linux {platform.release()}, {os.cpu_count()} CPUs" + (", emulated" if emulated else ""),
        "neither iptables nor runc work under user-mode emulation: run the image of the host's own platform",
    )
