"""Variables that lead docker, buildx, kubectl and k3s to another engine or cluster.

CI systems hand a job's variables to its services, too: DOCKER_HOST is for the job's client, not for this container. The
image's own programs drop all of them. For `docker exec`, which gets the container's environment, a script takes the
place of the clients where such a variable is set; it drops the container's value, and keeps one of `docker exec --env`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, MutableMapping

from dind_k3s.plan import Plan
from dind_k3s.root import KUBECONFIG, RUN, at

SOCKET = "unix:///run/docker.sock"
SCRIPT = f"{RUN}/client"
PROGRAMS = ("docker", "kubectl", "k3s")
FOLDER, BEFORE = "/usr/local/bin", "/usr/local/sbin"  # of the programs, and the one that comes before it on PATH

# Variable → its value here; empty: not set.
HERE = {
    **dict.fromkeys(("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"), ""),
    **dict.fromkeys(("DOCKER_API_VERSION", "DOCKER_CUSTOM_HEADERS", "BUILDX_BUILDER", "BUILDKIT_HOST"), ""),
    **dict.fromkeys(("KUBERNETES_MASTER", "K3S_DATA_DIR"), ""),
    "KUBECONFIG": KUBECONFIG,
    "K3S_CONFIG_FILE": f"{RUN}/k3s/config.yaml",
}
# Dropped for the image's own programs alone: they change what a client does, not where.
OWN = ("DOCKER_CONFIG", "DOCKER_CONTENT_TRUST", "DOCKER_DEFAULT_PLATFORM", "BUILDX_CONFIG")


def settle(env: MutableMapping[str, str]) -> None:
    """Have the programs that are started from here ask this container's engine and cluster."""
    for name in (*HERE, *OWN):
        env.pop(name, None)
    env.update({name: value for name, value in HERE.items() if value})
    env.update(DOCKER_HOST=SOCKET, HOME="/root")  # DOCKER_HOST wins over a context that is chosen in a file


def plan(env: Mapping[str, str]) -> Plan:
    """Return the script for `docker exec`, its links, and a line; nothing where no variable leads elsewhere."""
    made = Plan()
    away = {name: env[name] for name, here in HERE.items() if env.get(name) and env[name] != here}
    config = env.get("DOCKER_CONFIG", "")
    if config and not at(config).is_dir():
        away["DOCKER_CONFIG"] = config
    context = current_context(config if config and at(config).is_dir() else "/root/.docker")
    if not away and not context:
        return made
    made.files[SCRIPT] = script(away, context)
    made.links.update({f"{BEFORE}/{name}": SCRIPT for name in PROGRAMS})
    reasons = [name for name in away if not name.startswith("K3S_")]  # variables.py reports those
    reasons += [f"the context {context} of docker's config.json"] if context else []
    line = (
        f"not used in here: {', '.join(reasons)}; {', '.join(PROGRAMS)} ask this container's own engine and cluster,"
        " also by docker exec; --env of docker exec still counts"
    )
    made.messages.extend([line] if reasons else [])
    return made


def current_context(folder: str) -> str:
    """Return the context that docker's configuration in this folder chooses; empty when it is the default one."""
    try:
        read = json.loads(at(f"{folder}/config.json").read_text())
    except (OSError, ValueError):
        return ""
    context = read.get("currentContext") if isinstance(read, dict) else ""
    return context if isinstance(context, str) and context != "default" else ""


def script(away: Mapping[str, str], context: str) -> str:
    """Return shell text; the name by which it is called is the program."""
    lines = ["#!/bin/sh", "# Made by dind-k3s at the start (clients.py)."]
    for name, value in away.items():
        instead = f"export {name}={HERE[name]}" if HERE.get(name) else f"unset {name}"
        lines.append(f'if [ "${{{name}-}}" = {shlex.quote(value)} ]; then {instead}; fi')
    if context:
        lines.append('if [ -z "${DOCKER_HOST-}" ]; then export DOCKER_CONTEXT="${DOCKER_CONTEXT:-default}"; fi')
    return "\n".join([*lines, f'exec {FOLDER}/"${{0##*/}}" "$@"']) + "\n"
