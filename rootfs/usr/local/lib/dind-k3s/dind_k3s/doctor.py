"""doctor [--json]: what this container found in its host, and what to do about it.

Each check has a state (ok, warn, fail), the evidence for it, and a remedy unless it is ok. Exits with 1 when one fails.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dind_k3s.root import RUN, facts

CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN", 24: "CAP_SYS_RESOURCE"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's result."""

    id: str
    state: str
    evidence: str
    remedy: str = ""


def finding(id: str, good: bool, evidence: str, remedy: str, otherwise: str = "fail") -> Finding:
    if good:
        return Finding(id=id, state="ok", evidence=evidence)
    return Finding(id=id, state=otherwise, evidence=evidence, remedy=remedy)


def text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def said(*command: str) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, (done.stdout + done.stderr).strip()


def privileges() -> Iterator[Finding]:
    lines = dict(line.split(":\t", 1) for line in text("/proc/self/status").splitlines() if ":\t" in line)
    have = int(lines["CapEff"], 16)
    missing = [name for bit, name in CAPABILITIES.items() if not have >> bit & 1]
    needed = [name for name in missing if name != "CAP_SYS_RESOURCE"]
    yield finding(
        "privileged", not needed, f"missing: {', '.join(needed)}" if needed else "yes", "run with --privileged"
    )
    yield finding(
        "oom-score",
        "CAP_SYS_RESOURCE" not in missing,
        "CAP_SYS_RESOURCE is " + ("missing" if "CAP_SYS_RESOURCE" in missing else "there"),
        "nobody here can lower oom_score_adj, so runc refuses pods (kubelet asks for -998): use a host that grants it,"
        " or give dockerd a default runtime that leaves it alone",
        "warn",
    )
    kmsg = Path("/dev/kmsg")
    yield finding("kmsg", kmsg.is_char_device() and not kmsg.is_symlink(), "/dev/kmsg", "run with --privileged", "warn")


def kernel() -> Iterator[Finding]:
    version = facts().get("cgroup", "not known")
    yield finding(
        "cgroup",
        version == "2",
        f"cgroup v{version}",
        "Kubernetes and Docker are giving up v1: boot the host with systemd.unified_cgroup_hierarchy=1",
        "warn",
    )
    paths = {line.split(":", 2)[2] for line in text("/proc/1/cgroup").splitlines()}
    own = paths <= {"/", "/init"}
    yield finding(
        "cgroup-namespace",
        own,
        "its own" if own else "the host's",
        "CPU limits of pods are not enforced: run with --cgroupns=private",
        "warn",
    )
    forward = text("/proc/sys/net/ipv4/ip_forward")
    yield finding("ip-forward", forward == "1", f"net.ipv4.ip_forward is {forward}", "set it to 1")
    for name, want in (("max_user_watches", 524288), ("max_user_instances", 512)):
        have = int(text(f"/proc/sys/fs/inotify/{name}") or 0)
        remedy = f"on the host: sysctl fs.inotify.{name}={want}"
        yield finding(f"inotify-{name.split('_')[-1]}", have >= want, f"{have}, {want} wanted", remedy, "warn")


def storage() -> Iterator[Finding]:
    driver = facts().get("storage", "not chosen yet")
    status, kind = said("stat", "-f", "-c", "%T", "/var/lib/docker")
    yield finding(
        "storage-driver",
        driver == "overlay2",
        f"{driver} on {kind if status == 0 else 'a file system that is not known'}",
        "slow: keep images in a named volume, -v docker:/var/lib/docker",
        "warn",
    )
    for folder in ("/var/lib/docker", "/app/k3s"):
        space = os.statvfs(folder)
        free = space.f_bavail * space.f_frsize / 2**30
        yield finding(f"space-{folder}", free > 2, f"{free:.1f} GiB free", "make room", "warn")
        mounted = os.path.ismount(folder)
        remedy = f"what is in it goes with the container: -v NAME:{folder}"
        yield finding(f"volume-{folder}", mounted, "a volume" if mounted else "not a volume", remedy, "warn")


def network() -> Iterator[Finding]:
    known = facts()
    backend = known.get("iptables", "nft")
    status, words = said(f"iptables-{backend}", "-t", "nat", "-S", "POSTROUTING")
    yield finding(
        "iptables", status == 0, f"{backend}: {words.splitlines()[0] if words else status}", "see the host's kernel"
    )
    yield finding(
        "default-route", "interface" in known, known.get("interface", "none"), "k3s needs one: not --network none"
    )
    if "dns" in known:
        status, words = said("supervisorctl", "status", "dns")
        yield finding("dns", " RUNNING " in words, f"forwarded from {known['dns']}", "see /app/logs/dns.log")


def programs() -> Iterator[Finding]:
    status, words = said(
        "docker", "version", "--format", "{{.Server.Version}}, API {{.Server.MinAPIVersion}} to {{.Server.APIVersion}}"
    )
    yield finding("docker", status == 0, words, "see /app/logs/dockerd.log")
    try:
        state = json.loads(text(f"{RUN}/state.json") or "{}")
    except ValueError:
        state = {}
    yield finding(
        "ready", state.get("health") == "ok", state.get("text", "not known yet"), "docker logs tells more", "warn"
    )
    yield Finding(id="machine", state="ok", evidence=f"{platform.machine()}, Linux {platform.release()}")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (privileges, kernel, storage, network, programs)


def main() -> int:
    if sys.argv[1:] not in ([], ["--json"]):
        print("usage: doctor [--json]", file=sys.stderr)
        return 2
    findings = [one for check in CHECKS for one in check()]
    if sys.argv[1:]:
        print(json.dumps([asdict(one) for one in findings], indent=2))
    else:
        for one in findings:
            print(f"{one.state:4}  {one.id:22} {one.evidence}" + (f"\n{'':6}{one.remedy}" if one.remedy else ""))
    return int(any(one.state == "fail" for one in findings))


if __name__ == "__main__":
    sys.exit(main())
