"""What single variables may hold, and which are not used. Checked before anything starts: a daemon would die of it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dind_k3s.plan import OFF, ON, shown
from dind_k3s.root import RUN

PROFILES = ("dev", "ci", "edge")
DRIVERS = ("overlay2", "fuse-overlayfs", "btrfs", "zfs", "vfs", "overlayfs", "native", "aufs", "devicemapper")
BACKENDS = ("host-gw", "vxlan", "wireguard-native", "none")
SWITCHES = ("K3S_DISABLE", "K3S_TRAEFIK", "DOCKER_IPTABLES_LEGACY", "DIND_K3S_HOST_NETWORK", "DIND_K3S_HOST_SYSCTL")

_NAME = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"  # RFC 1123
_ALTERNATIVE = r"(\*\.)?[A-Za-z0-9:._-]+"  # a host name or an address
_HOUR = r"([01]?\d|2[0-4])"
_SWITCH = (f"(?i:{'|'.join((*ON, *OFF))})", f"{', '.join(ON)}, or {', '.join(OFF)}")

# Variable → (what all of it must match, what is expected in words)
_RULES = {
    **dict.fromkeys(SWITCHES, _SWITCH),
    "PROFILE": ("|".join(PROFILES), f"{', '.join(PROFILES[:-1])} or {PROFILES[-1]}"),
    "DOCKER_DRIVER": ("|".join(DRIVERS), f"one of {', '.join(DRIVERS)}"),
    "DOCKER_MIN_API_VERSION": (r"1\.\d{1,3}", "an API version, as in 1.24"),
    "K3S_NODE_NAME": (rf"(?=.{{1,253}}$){_NAME}(\.{_NAME})*", "lower-case letters, digits, dashes and dots"),
    "K3S_KUBECONFIG_MODE": (r"0?[0-7]{3}", "three octal digits, as in 0600"),
    "K3S_KUBECONFIG_OUTPUT": (r"/[^\x00-\x1f\x7f]*[^/\x00-\x1f\x7f]", "the absolute path of a file"),
    "K3S_TLS_SAN": (rf"{_ALTERNATIVE}([, ]+{_ALTERNATIVE})*", "host names and addresses with commas between them"),
    "K3S_FLANNEL_BACKEND": ("|".join(BACKENDS), f"one of {', '.join(BACKENDS)}"),
    "K3S_RENEW_HOURS": (rf"{_HOUR}-{_HOUR}", "two hours of the day, as in 3-5"),
    "DIND_K3S_STOP_GRACE": (r"\d{1,4}(\.\d+)?", "a number of seconds, at most 9999"),
    "DIND_K3S_STOP": ("drain", "drain, or nothing"),
    "DIND_K3S_ALLOW_VERSION": (r"[0-9A-Za-z.+-]+([, ]+[0-9A-Za-z.+-]+)*", "versions with commas between them"),
}

# What k3s itself reads (k3s-io/k3s, pkg/cli/cmds: EnvVars) and has no rule here.
_OF_K3S = """URL TOKEN TOKEN_FILE AGENT_TOKEN AGENT_TOKEN_FILE CLUSTER_INIT CLUSTER_RESET KUBECONFIG_GROUP RESOLV_CONF
DATASTORE_ENDPOINT DATASTORE_CAFILE DATASTORE_CERTFILE DATASTORE_KEYFILE SELINUX LB_SERVER_PORT VPN_AUTH VPN_AUTH_FILE
DEBUG AGENT_HTTP_PROXY_ALLOWED"""
_KNOWN = {"K3S_ARGS", *_RULES, *(f"K3S_{name}" for name in _OF_K3S.split())}
_OURS = re.compile(r"(DIND_)?K3S_\w+")
_SERVICE_LINK = re.compile(r"K3S_(SERVICE_(HOST|PORT)|PORT)(_\w+)?")  # Kubernetes sets them for a Service named k3s
# Variable that others read → where its value belongs here.
_ELSEWHERE = {
    "K3S_CONFIG_FILE": "/app/k3s/config.yaml, or K3S_ARGS='--config FILE'",
    "K3S_DATA_DIR": "nowhere: the cluster's state is in the volume at /app/k3s",
    "INSTALL_K3S_EXEC": "K3S_ARGS",
    "DOCKER_OPTS": "DOCKER_ARGS",
    "DOCKERD_ARGS": "DOCKER_ARGS",
}
_OF_THE_IMAGE = {"K3S_CONFIG_FILE": f"{RUN}/k3s/config.yaml"}


def mistakes(env: Mapping[str, str]) -> list[str]:
    """Return a message for each variable that holds something else; an empty one counts as unset."""
    return [
        f"{name} is {shown(env[name])}; expected: {expected}"
        for name, (pattern, expected) in _RULES.items()
        if env.get(name) and not re.fullmatch(pattern, env[name], re.ASCII)
    ]


def unused(env: Mapping[str, str]) -> list[str]:
    """Return a line for the variables of k3s, docker and this image that nothing in here reads."""
    found = []
    for name in sorted(name for name, value in env.items() if value and _OF_THE_IMAGE.get(name) != value):
        if name in _ELSEWHERE:
            found.append(f"{name} (it belongs into {_ELSEWHERE[name]})".replace("into nowhere", "nowhere"))
        elif _OURS.fullmatch(name) and name not in _KNOWN and not _SERVICE_LINK.fullmatch(name):
            found.append(f"{shown(name)} (unknown)")
    return [f"warning: not used: {', '.join(found)}"] if found else []
