"""dockerd's daemon.json and arguments: our settings, which give way to the user's file, variables and flags."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from dind_k3s import mounts, user_files
from dind_k3s.plan import Mistake, Plan, asked, shown, words
from dind_k3s.root import RUN

SOCKET = "unix:///var/run/docker.sock"
DAEMON_JSON = "/etc/docker/daemon.json"
# dockerd answers these and ends.
NO_START = {"--help", "-h", "--version", "-v", "--validate"}
SNAPSHOTTERS = ("overlayfs", "native")  # drivers of the containerd image store
SPOKEN = (1, 44)  # the API of the client in k3s's cri-dockerd, and the oldest that docker 29 takes by itself

# From 10 MiB on kubelet tries every ten seconds to rotate a log, in vain: cri-dockerd cannot have it opened again
# (Mirantis/cri-dockerd#150). So dockerd rotates before: its 10m are 10,000,000 bytes.
LOG_LIMITS = {"max-size": "10m", "max-file": "3"}

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


def check_live_restore(args: Sequence[str], theirs: Mapping[str, Any], file: str) -> None:
    """Raise Mistake where dockerd is to leave containers running: nothing in here outlives this container."""
    flag = [arg.partition("=")[2] or "true" for arg in args if arg.partition("=")[0] == "--live-restore"]
    if flag[-1:] and flag[-1].lower() not in ("0", "f", "false"):
        source = "--live-restore in DOCKER_ARGS"
    elif theirs.get("live-restore"):
        source = f"live-restore in {file}"
    else:
        return
    raise Mistake(
        f"{source} cannot be used: when this container stops, everything in it is killed, so containers inside would"
        " get no SIGTERM and no time to end. Leave it out"
    )


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
        return ""  # it reports that when it starts
    output = done.stderr.decode(errors="replace").strip().partition("\n")[0].removeprefix("Status: ")
    if not output or output.startswith("Usage:"):
        output = "it takes no arguments but flags"
    return shown(output.replace("file /dev/stdin", "these settings"), 400) if done.returncode else ""


def last(args: Sequence[str], flag: str) -> str:
    """The value of a flag that comes last; empty without one."""
    found = ""
    for arg, following in zip(args, [*args, ""][1:], strict=True):
        name, has_value, value = arg.partition("=")
        if name == flag:
            found = value if has_value else following
    return found


def addresses(args: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """Where the API is asked to listen: by -H and --host, and by daemon.json."""
    found = []
    for arg, following in zip(args, [*args, ""][1:], strict=True):
        if arg in ("-H", "--host"):
            found.append(following)
        elif given := re.match(r"--host=(.*)|-H=?(.+)", arg):
            found.append(given[1] or given[2] or "")
    hosts = config.get("hosts", [])
    return [*found, *(map(str, hosts) if isinstance(hosts, list) else [])]


def api_over_tcp(args: list[str], config: dict[str, Any], given: Mapping[str, str], tls: str) -> list[str]:
    """The API's addresses beside its socket, in place; lines about them. `tls`: folder of certificates, if asked for.

    As with docker:dind, 2376 with TLS. Without TLS only where the user names an address, and then --tls=false is said,
    too: dockerd delays its start by a quarter of a minute otherwise.
    """
    decided = {"tls", "tlsverify"} & (given.keys() | config.keys())
    listening = addresses(args, config)
    messages = []
    if tls and not decided:
        folder = f"{tls.rstrip('/')}/server"
        files = {"tlscacert": "ca.pem", "tlscert": "cert.pem", "tlskey": "key.pem"}
        config["tlsverify"] = True
        config.update(
            {key: f"{folder}/{name}" for key, name in files.items() if key not in given.keys() | config.keys()}
        )
        if not any(address.endswith(":2376") for address in listening):
            listening.append("tcp://0.0.0.0:2376")
            if "hosts" in given:
                args.append(f"--host={listening[-1]}")
            else:
                config["hosts"] = [*config.get("hosts", []), listening[-1]]
        messages.append("the docker API listens on 2376, for clients with a certificate of its authority")
    elif tcp := [address for address in listening if address.startswith("tcp:")]:
        if not decided:
            args.append("--tls=false")
        if not decided or "false" in given.get("tls", "false"):
            messages.append(
                f"warning: the docker API listens on {', '.join(tcp)} without TLS: its clients are root here"
            )
    # The socket is what everything in here talks to, so it stays when other addresses are asked for.
    if not any(address.endswith("/run/docker.sock") for address in listening):
        if "hosts" in given:
            args.append(f"--host={SOCKET}")
        elif "hosts" in config:
            config["hosts"] = [*config["hosts"], SOCKET]
    return messages


def hidden_images(args: Sequence[str], config: Mapping[str, Any], stores: Sequence[str]) -> list[str]:
    """Return a warning if flags or daemon.json choose a driver that does not show the images in `stores`."""
    feature = [arg.rpartition("=")[2] for arg in args if "containerd-snapshotter" in arg]
    snapshotter = feature[-1] == "true" if feature else config.get("features", {}).get("containerd-snapshotter") is True
    driver = last(args, "--storage-driver") or last(args, "-s") or config.get("storage-driver")
    used = SNAPSHOTTERS[0] if snapshotter and driver not in SNAPSHOTTERS else driver
    if not stores or not used or used in stores:
        return []
    return [f"warning: this volume has images of {', '.join(stores)}, which {used} does not show: leave {used} out"]


def own_settings(
    facts: Mapping[str, str], version: tuple[int, ...], registries: Mapping[str, Any] | None, *, with_k3s: bool
) -> dict[str, Any]:
    """Return our keys of daemon.json, before flags and the user's file replace some of them."""
    # The classic image store: the containerd store breaks nested engines (devcontainers/features#1653), and kubelet
    # reports no statistics of pods with it.
    chosen = facts.get("storage", "overlay2")
    ours: dict[str, Any] = {
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "features": {"containerd-snapshotter": chosen in SNAPSHOTTERS},
        "storage-driver": chosen,
        **(registries or {}),
    }
    if version >= (28, 0):
        ours["ip-forward-no-drop"] = True  # flannel's traffic passes the FORWARD chain, too
    if with_k3s and version >= (28, 2):
        ours["allow-direct-routing"] = True  # a pod reaches a container by its address, which 28 drops otherwise
    if (mtu := facts.get("mtu", "1500")) != "1500":
        ours["mtu"] = int(mtu)
        if version >= (24, 0):
            ours["default-network-opts"] = {"bridge": {"com.docker.network.driver.mtu": mtu}}
    if words_of_pools := facts.get("docker-pools", "").split():
        pools = (word.split(":") for word in words_of_pools)
        ours["default-address-pools"] = [{"base": base, "size": int(size)} for base, size in pools]
    if facts.get("ip6tables") == "off":
        ours["ip6tables"] = False
    if dns := facts.get("dns"):
        ours["dns"] = [dns]
    return ours


def check_noexec(facts: Mapping[str, str]) -> list[str]:
    """Return a warning where no program can be run in a docker volume. Raises Mistake where no container can run."""
    mount = mounts.noexec(facts.get("data", "/var/lib/docker"))
    if not mount:
        return []
    if facts.get("storage") == "vfs":
        raise Mistake(f"{mount} is mounted noexec, and vfs runs containers from there: --tmpfs {mount}:exec")
    return [f"warning: {mount} is mounted noexec: no program in a docker volume can be run"]


def without_pods(env: Mapping[str, str], config: Mapping[str, Any], driver: str) -> list[str]:
    """Return warnings about settings with which k3s has no pods, or no logs of them."""
    lines = []
    floor = str(env.get("DOCKER_MIN_API_VERSION") or config.get("min-api-version") or "")
    if (number := re.fullmatch(r"(\d+)\.(\d+)", floor)) and (int(number[1]), int(number[2])) > SPOKEN:
        lines.append(f"warning: dockerd is set to refuse clients older than {floor}, and k3s speaks 1.44: no pods")
    if not asked(env, "K3S_DISABLE") and driver != "json-file":
        lines.append("warning: kubectl logs works with the log driver json-file only")
    return lines


def plan(
    env: Mapping[str, str],
    extra: Sequence[str],
    facts: Mapping[str, str],
    version: tuple[int, ...],
    profile: str,
    registries: Mapping[str, Any] | None = None,
) -> Plan:
    """daemon.json and dockerd's arguments.

    `extra`: the container's own arguments, flags of dockerd. `registries`: keys of daemon.json (registries.py).
    """
    made = Plan()
    args, file = take_config_file([*words("DOCKER_ARGS", env), *extra])
    given = flags(args)
    theirs, twice = user_files.read_object(file)
    if twice:
        made.messages.append(f"warning: {shown(', '.join(twice))} stands twice in {file}; the last one counts")
    if ends := NO_START & set(args):
        raise Mistake(f"{', '.join(sorted(ends))} in DOCKER_ARGS does not start dockerd; leave it out")
    clashes = [f"{flag} ({key})" for key, flag in given.items() if key in theirs]
    if clashes:
        raise Mistake(
            f"{', '.join(clashes)} stands both in DOCKER_ARGS and in {file}; dockerd would refuse to start. Keep one"
        )
    with_k3s = not asked(env, "K3S_DISABLE")
    ours = own_settings(facts, version, registries, with_k3s=with_k3s)
    made.messages.extend(check_noexec(facts))
    driver = last(args, "--log-driver") or theirs.get("log-driver", "json-file")
    if driver == "json-file" and (with_k3s or profile == "edge"):
        if "log-opts" in given:
            args += [f"--log-opt={key}={value}" for key, value in LOG_LIMITS.items() if f"{key}=" not in " ".join(args)]
        else:
            ours["log-opts"] = {**LOG_LIMITS}
    with_store = ours["features"]["containerd-snapshotter"]  # containerd's image store
    check_types(ours, theirs, file)
    check_live_restore(args, theirs, file)
    if theirs.get("features", {}).get("containerd-snapshotter") is True and not with_store:
        del ours["storage-driver"]
        made.messages.append("the containerd image store is on: kubelet will report no statistics of pods")
    for key, flag in given.items():
        if key in ours:
            del ours[key]
            made.messages.append(f"{flag} in DOCKER_ARGS replaces our {key}")
    if "features" in given and not any("containerd-snapshotter" in arg for arg in args):
        args.append(f"--feature=containerd-snapshotter={str(with_store).lower()}")
    config = merged(ours, theirs)
    made.messages.extend(hidden_images(args, config, facts.get("stores", "").split()))
    made.messages.extend(api_over_tcp(args, config, given, facts.get("tls", "")))
    for key in sorted(ours.keys() & theirs.keys()):
        if ours[key] != theirs[key] and not isinstance(ours[key], dict):
            made.messages.append(f"{key} of {file} replaces ours")
    made.messages.extend(without_pods(env, config, driver))
    made.files[f"{RUN}/daemon.json"] = json.dumps(config, indent=2, sort_keys=True) + "\n"
    made.files[f"{RUN}/dockerd.args"] = "".join(f"{arg}\0" for arg in args)
    if args:
        made.messages.append(f"dockerd {shown(shlex.join(args), 400)}")
    if (theirs or args) and (refused := refusal(made)):
        asking = {"DOCKER_ARGS": env.get("DOCKER_ARGS"), "the container's command": extra, file: theirs}
        sources = ", ".join(source for source, given in asking.items() if given)
        raise Mistake(f"dockerd does not take what {sources} asks for: {refused}")
    return made
