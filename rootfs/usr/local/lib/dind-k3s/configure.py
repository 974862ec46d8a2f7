"""What the daemons are started with: facts found by the start steps, the user's files and variables, our defaults.

Ours always gives way: a daemon.json of the user is merged over ours, a flag in DOCKER_ARGS takes our key of the same
meaning out, and k3s reads /app/k3s/config.yaml after ours. What only dies later is told now: a flag that the user's own
daemon.json has too, quotes that are not closed. Prints a line for each thing worth telling; exits 2 with a line for
each mistake.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("DIND_K3S_TEST_ROOT", "/"))
RUN = Path("/run/dind-k3s")
SOCKET = "unix:///var/run/docker.sock"

# dockerd's one-letter flags, and the flags whose key in daemon.json is not their name (dockerd's "conflicting
# options" check goes by these keys).
LETTERS = {"b": "bridge", "D": "debug", "g": "data-root", "G": "group", "H": "hosts", "l": "log-level"}
LETTERS |= {"p": "pidfile", "s": "storage-driver"}
KEYS = {"add-runtime": "runtimes", "feature": "features", "graph": "data-root", "host": "hosts", "label": "labels"}
KEYS |= {"insecure-registry": "insecure-registries", "registry-mirror": "registry-mirrors"}
KEYS |= {"default-address-pool": "default-address-pools", "default-ulimit": "default-ulimits"}
KEYS |= {"default-network-opt": "default-network-opts", "dns-opt": "dns-opts", "exec-opt": "exec-opts"}
KEYS |= {"authorization-plugin": "authorization-plugins", "log-opt": "log-opts", "storage-opt": "storage-opts"}
KEYS |= {"node-generic-resource": "node-generic-resources", "cdi-spec-dir": "cdi-spec-dirs"}

PROFILES = ("dev", "ci", "edge")
KUBELET_DROP_INS_SINCE = (1, 35)  # the flags that they replace are on their way out

USER_CONFIG = """\
# Settings of k3s (https://docs.k3s.io/installation/configuration). Written once and yours from then on: what is said
# here wins over the image's own settings. Then: supervisorctl restart k3s
"""


class Mistake(Exception):
    """Something that the user has to change. The text is a sentence."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that gets written, and what is said about it."""

    files: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


def words(name: str, env: Mapping[str, str]) -> list[str]:
    """The variable's words, with quotes and backslashes as in a shell, but nothing in it is executed."""
    try:
        return shlex.split(env.get(name, ""))
    except ValueError as error:
        raise Mistake(f"{name} cannot be split into words ({error}): {env[name]}") from None


def asked(env: Mapping[str, str], name: str) -> bool:
    """Whether a switch is on."""
    return env.get(name, "").lower() not in ("", "0", "false", "no")


def flags(args: Sequence[str]) -> dict[str, str]:
    """Key in daemon.json of each flag → how the user wrote it."""
    found: dict[str, str] = {}
    for arg in args:
        if long := re.match(r"--([a-z0-9][a-z0-9-]*)", arg):
            found[KEYS.get(long[1], long[1])] = long[0]
        elif (letter := re.match(r"-([A-Za-z])", arg)) and letter[1] in LETTERS:
            found[LETTERS[letter[1]]] = letter[0]
    return found


def merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Theirs over ours; objects are merged, everything else is replaced."""
    result = dict(ours)
    for key, value in theirs.items():
        mine = result.get(key)
        result[key] = merged(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return result


def take_config_file(args: list[str]) -> tuple[list[str], str]:
    """DOCKER_ARGS without --config-file, and the file that it names."""
    rest, file = [], "/etc/docker/daemon.json"
    at = iter(args)
    for arg in at:
        if arg == "--config-file":
            file = next(at, file)
        elif arg.startswith("--config-file="):
            file = arg.partition("=")[2]
        else:
            rest.append(arg)
    return rest, file


def read_daemon_json(file: str) -> dict[str, Any]:
    path = ROOT / file.lstrip("/")
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text() or "{}")
    except ValueError as error:
        raise Mistake(f"{file} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Mistake(f"{file} must hold a JSON object, it holds a {type(value).__name__}")
    return value


def plan_docker(
    env: Mapping[str, str], extra: Sequence[str], facts: Mapping[str, str], version: tuple[int, int], profile: str
) -> Plan:
    """daemon.json and dockerd's arguments. `extra`: the container's own arguments, flags of dockerd."""
    plan = Plan()
    args, file = take_config_file([*words("DOCKER_ARGS", env), *extra])
    given = flags(args)
    theirs = read_daemon_json(file)
    clashes = [f"{flag} ({key})" for key, flag in given.items() if key in theirs]
    if clashes:
        raise Mistake(
            f"{', '.join(clashes)} stands both in DOCKER_ARGS and in {file}; dockerd would refuse to start. Keep one"
        )
    # The classic image store: the containerd store breaks nested engines (devcontainers/features#1653), and kubelet
    # reports no statistics of pods with it.
    ours: dict[str, Any] = {
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "features": {"containerd-snapshotter": False},
        "storage-driver": facts["storage"],
    }
    if version >= (28, 0):
        ours["ip-forward-no-drop"] = True  # flannel's traffic passes the FORWARD chain, too
    if (mtu := facts.get("mtu", "1500")) != "1500":
        ours["mtu"] = int(mtu)
        if version >= (24, 0):
            ours["default-network-opts"] = {"bridge": {"com.docker.network.driver.mtu": mtu}}
    if dns := facts.get("dns"):
        ours["dns"] = [dns]
    if profile == "edge":
        ours["log-opts"] = {"max-size": "10m", "max-file": "3"}
    if theirs.get("features", {}).get("containerd-snapshotter") is True:
        del ours["storage-driver"]
        plan.told.append("the containerd image store is on: kubelet will report no statistics of pods")
    for key, flag in given.items():
        if key in ours:
            del ours[key]
            plan.told.append(f"{flag} in DOCKER_ARGS replaces our {key}")
    if "features" in given and not any("containerd-snapshotter" in arg for arg in args):
        args.append("--feature=containerd-snapshotter=false")
    config = merged(ours, theirs)
    # The socket is what everything in here talks to, so it stays when other addresses are asked for.
    if "hosts" in given and not any(SOCKET.removeprefix("unix://").removeprefix("/var") in arg for arg in args):
        args.append(f"--host={SOCKET}")
    if "hosts" in config and SOCKET not in config["hosts"]:
        config["hosts"] = [*config["hosts"], SOCKET]
    for key in sorted(ours.keys() & theirs.keys()):
        if ours[key] != theirs[key] and not isinstance(ours[key], dict):
            plan.told.append(f"{key} of {file} replaces ours")
    if config.get("log-driver", "json-file") != "json-file" or "log-driver" in given:
        plan.told.append("warning: kubectl logs works with the log driver json-file only")
    plan.files[f"{RUN}/daemon.json"] = json.dumps(config, indent=2, sort_keys=True) + "\n"
    plan.files[f"{RUN}/dockerd.args"] = "".join(f"{arg}\0" for arg in args)
    if args:
        plan.told.append(f"dockerd {shlex.join(args)}")
    return plan


def yaml(value: object) -> str:
    """A value of our fragment. JSON's spelling of scalars is YAML's."""
    if isinstance(value, list):
        return "".join(f"\n  - {json.dumps(item)}" for item in value)
    return f" {json.dumps(value)}"


def plan_k3s(env: Mapping[str, str], facts: Mapping[str, str], version: tuple[int, int], profile: str) -> Plan:
    """k3s's arguments, our fragment of its configuration, and the kubelet's."""
    plan = Plan()
    args = words("K3S_ARGS", env)
    if args[:1] == ["server"]:
        args = args[1:]
    if args[:1] == ["agent"]:
        raise Mistake("K3S_ARGS asks for an agent; this image runs a k3s server")
    for arg in args:
        if re.match(r"--data-dir\b|-d\b", arg):
            plan.told.append(f"warning: {arg} leads out of the volume at /app/k3s; the cluster's state may be lost")
    settings: dict[str, object] = {
        "docker": True,
        "data-dir": "/app/k3s",
        "node-name": env.get("K3S_NODE_NAME")
        or "local-node",  # a host name would leave a dead node at each re-creation
        "write-kubeconfig": env.get("K3S_KUBECONFIG_OUTPUT") or "/app/k3s/k3s.yaml",
        "write-kubeconfig-mode": env.get("K3S_KUBECONFIG_MODE") or "0600",
        "tls-san": ["localhost", "host.docker.internal", "docker", "k3s", "kubernetes"],
        "flannel-backend": "host-gw",  # one node: no tunnel, no vxlan module
    }
    if "dns" in facts:
        settings["resolv-conf"] = f"{RUN}/resolv.conf"
    if profile == "ci":
        settings["disable"] = ["traefik", "servicelb", "metrics-server"]
    drop_in: dict[str, object] = {}
    if profile != "edge":
        # The store is the user's, too: kubelet must not clean away what was just built.
        if version >= KUBELET_DROP_INS_SINCE:
            drop_in["imageGCHighThresholdPercent"] = 100
            drop_in["evictionHard"] = {"memory.available": "100Mi", "nodefs.available": "0%", "imagefs.available": "0%"}
        else:
            never = "eviction-hard=memory.available<100Mi,nodefs.available<0%,imagefs.available<0%"
            settings["kubelet-arg"] = ["image-gc-high-threshold=100", never]
    if facts.get("cgroup") == "1" and version >= KUBELET_DROP_INS_SINCE:
        drop_in["failCgroupV1"] = False
        plan.told.append("kubelet is told to accept cgroup v1, which Kubernetes is giving up; a host with v2 is better")
    if drop_in:
        drop_in = {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", **drop_in}
    # An empty file would be an error for kubelet, so none is left from another version either.
    plan.files["/app/k3s/agent/etc/kubelet.conf.d/10-dind-k3s.conf"] = json.dumps(drop_in) + "\n" if drop_in else ""
    text = "".join(f"{key}:{yaml(value)}\n" for key, value in settings.items())
    plan.files[f"{RUN}/k3s/config.yaml"] = (
        "# Generated at each start; yours is /app/k3s/config.yaml, and it wins.\n" + text
    )
    plan.files[f"{RUN}/k3s.args"] = "".join(f"{arg}\0" for arg in args)
    if args:
        plan.told.append(f"k3s server {shlex.join(args)}")
    return plan


def plan_dns(address: str) -> str:
    """dnsmasq's configuration. It asks what the container's own resolv.conf names and knows its /etc/hosts."""
    return (
        f"listen-address={address}\nbind-interfaces\ncache-size=1000\nuser=dnsmasq\ngroup=nogroup\n"
        "resolv-file=/etc/resolv.conf\npid-file=\nlog-facility=-\n"
    )


def version_of(component: str) -> tuple[int, int]:
    """Major and minor, from the image's manifest or from the program itself."""
    manifest = ROOT / "usr/share/dind-k3s/manifest.json"
    found = ""
    if manifest.exists():
        entries = json.loads(manifest.read_text())
        if isinstance(entries, dict):
            entries = entries.get("components", [])
        found = next((str(entry["version"]) for entry in entries if entry.get("component") == component), "")
    if not found:
        program = {"docker": "dockerd"}.get(component, component)
        found = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    numbers = re.search(r"(\d+)\.(\d+)", found)
    if numbers is None:
        raise Mistake(f"the version of {component} is not known: neither {manifest} nor the program itself tells it")
    return int(numbers[1]), int(numbers[2])


def read_facts() -> dict[str, str]:
    lines = (ROOT / str(RUN).lstrip("/") / "facts").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def write(files: Mapping[str, str]) -> None:
    """Write what changed, with owner-only rights; an empty text stands for no file."""
    for name, text in files.items():
        path = ROOT / name.lstrip("/")
        if not text and not name.endswith(".args"):
            path.unlink(missing_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def run(env: Mapping[str, str], extra: Sequence[str]) -> list[str]:
    """Plan, then write; nothing is written when there is a mistake. Raises Mistake with all of them."""
    facts = read_facts()
    profile = env.get("PROFILE") or "dev"
    plans: list[Plan] = []
    mistakes: list[str] = []
    if profile not in PROFILES:
        mistakes.append(f"PROFILE is {profile}, but there are only {', '.join(PROFILES)}")
    try:
        plans.append(plan_docker(env, extra, facts, version_of("docker"), profile))
    except Mistake as mistake:
        mistakes.append(str(mistake))
    if not asked(env, "K3S_DISABLE"):
        try:
            plans.append(plan_k3s(env, facts, version_of("k3s"), profile))
        except Mistake as mistake:
            mistakes.append(str(mistake))
    if mistakes:
        raise Mistake("\n".join(mistakes))
    files = {name: text for plan in plans for name, text in plan.files.items()}
    if "dns" in facts:
        files[f"{RUN}/dnsmasq.conf"] = plan_dns(facts["dns"])
    write(files)
    user_config = ROOT / "app/k3s/config.yaml"
    if not user_config.exists():
        user_config.parent.mkdir(parents=True, exist_ok=True)
        user_config.write_text(USER_CONFIG)
    told = [line for plan in plans for line in plan.told]
    return [f"profile {profile}, storage driver {facts['storage']}", *told]


def main() -> int:
    try:
        print("\n".join(run(os.environ, sys.argv[1:])))
    except Mistake as mistake:
        for line in str(mistake).splitlines():
            print(f"dind-k3s: error: {line}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
