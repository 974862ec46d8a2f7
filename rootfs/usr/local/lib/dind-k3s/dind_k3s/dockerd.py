"""dockerd's daemon.json and arguments: our settings, which give way to the user's file, variables and flags."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from dind_k3s.plan import Mistake, Plan, words
from dind_k3s.root import RUN, at

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
    path = at(file)
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text() or "{}")
    except ValueError as error:
        raise Mistake(f"{file} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Mistake(f"{file} must hold a JSON object, it holds a {type(value).__name__}")
    return value


def plan(
    env: Mapping[str, str], extra: Sequence[str], facts: Mapping[str, str], version: tuple[int, ...], profile: str
) -> Plan:
    """daemon.json and dockerd's arguments. `extra`: the container's own arguments, flags of dockerd."""
    made = Plan()
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
        made.told.append("the containerd image store is on: kubelet will report no statistics of pods")
    for key, flag in given.items():
        if key in ours:
            del ours[key]
            made.told.append(f"{flag} in DOCKER_ARGS replaces our {key}")
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
            made.told.append(f"{key} of {file} replaces ours")
    if config.get("log-driver", "json-file") != "json-file" or "log-driver" in given:
        made.told.append("warning: kubectl logs works with the log driver json-file only")
    made.files[f"{RUN}/daemon.json"] = json.dumps(config, indent=2, sort_keys=True) + "\n"
    made.files[f"{RUN}/dockerd.args"] = "".join(f"{arg}\0" for arg in args)
    if args:
        made.told.append(f"dockerd {shlex.join(args)}")
    return made
