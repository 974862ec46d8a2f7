"""dockerd's daemon.json and arguments: our settings, which give way to the user's file, variables and flags."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from dind_k3s import user_files
from dind_k3s.plan import Mistake, Plan, shown, words
from dind_k3s.root import RUN

SOCKET = "unix:///var/run/docker.sock"
DAEMON_JSON = "/etc/docker/daemon.json"
# dockerd answers these and ends.
NO_START = {"--help", "-h", "--version", "-v", "--validate"}

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
    rest, file = [], DAEMON_JSON
    rest_of = iter(args)
    for arg in rest_of:
        if arg == "--config-file":
            file = next(rest_of, "")
        elif arg.startswith("--config-file="):
            file = arg.partition("=")[2]
        else:
            rest.append(arg)
            continue
        if not file.startswith("/"):
            raise Mistake(f"--config-file in DOCKER_ARGS needs an absolute path, not {shown(file) or 'nothing'}")
        if user_files.read_text(file) is None:
            raise Mistake(f"--config-file in DOCKER_ARGS names {shown(file)}, which is not there")
    return rest, file


def check_types(ours: Mapping[str, Any], theirs: Mapping[str, Any], file: str) -> None:
    """What is merged must be of one kind. dockerd itself checks everything else."""
    for key, mine in {**ours, "hosts": []}.items():
        kind = "an object" if isinstance(mine, dict) else "a list" if isinstance(mine, list) else ""
        if kind and not isinstance(theirs.get(key, mine), type(mine)):
            raise Mistake(f"{key} in {file} must be {kind}, it is {shown(json.dumps(theirs[key]))}")


def refusal(plan: Plan) -> str:
    """What dockerd itself says against its configuration; empty when it takes it. It costs some 60 ms."""
    args = plan.files[f"{RUN}/dockerd.args"].split("\0")[:-1]
    try:
        done = subprocess.run(
            ["dockerd", "--validate", "--config-file", "/dev/stdin", *args],
            input=plan.files[f"{RUN}/daemon.json"].encode(),
            capture_output=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # it will tell when it starts
    said = done.stderr.decode(errors="replace").strip().partition("\n")[0].removeprefix("Status: ")
    if not said or said.startswith("Usage:"):
        said = "it takes no arguments but flags"
    return shown(said.replace("file /dev/stdin", "these settings"), 400) if done.returncode else ""


def plan(
    env: Mapping[str, str], extra: Sequence[str], facts: Mapping[str, str], version: tuple[int, int], profile: str
) -> Plan:
    """daemon.json and dockerd's arguments. `extra`: the container's own arguments, flags of dockerd."""
    made = Plan()
    args, file = take_config_file([*words("DOCKER_ARGS", env), *extra])
    given = flags(args)
    theirs, twice = user_files.read_object(file)
    if twice:
        made.told.append(f"warning: {shown(', '.join(twice))} stands twice in {file}; the last one counts")
    if ends := NO_START & set(args):
        raise Mistake(f"{', '.join(sorted(ends))} in DOCKER_ARGS does not start dockerd; leave it out")
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
        "storage-driver": facts.get("storage", "overlay2"),
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
    check_types(ours, theirs, file)
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
        made.told.append(f"dockerd {shown(shlex.join(args), 400)}")
    if (theirs or args) and (refused := refusal(made)):
        asking = {"DOCKER_ARGS": env.get("DOCKER_ARGS"), "the container's command": extra, file: theirs}
        sources = ", ".join(source for source, given in asking.items() if given)
        raise Mistake(f"dockerd does not take what {sources} asks for: {refused}")
    return made
