"""What single variables may hold. Told before anything starts: a daemon would die of it again and again."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dind_k3s.plan import shown

PROFILES = ("dev", "ci", "edge")
DRIVERS = ("overlay2", "fuse-overlayfs", "btrfs", "zfs", "vfs", "overlayfs", "native", "aufs", "devicemapper")

_NAME = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"  # RFC 1123
_ALTERNATIVE = r"(\*\.)?[A-Za-z0-9:._-]+"  # a host name or an address

# Variable → (what all of it must match, what is expected in words)
_RULES = {
    "PROFILE": ("|".join(PROFILES), f"{', '.join(PROFILES[:-1])} or {PROFILES[-1]}"),
    "DOCKER_DRIVER": ("|".join(DRIVERS), f"one of {', '.join(DRIVERS)}"),
    "K3S_NODE_NAME": (rf"(?=.{{1,253}}$){_NAME}(\.{_NAME})*", "lower-case letters, digits, dashes and dots"),
    "K3S_KUBECONFIG_MODE": (r"0?[0-7]{3}", "three octal digits, as in 0600"),
    "K3S_KUBECONFIG_OUTPUT": (r"/[^\x00-\x1f\x7f]*[^/\x00-\x1f\x7f]", "the absolute path of a file"),
    "K3S_TLS_SAN": (rf"{_ALTERNATIVE}([, ]+{_ALTERNATIVE})*", "host names and addresses with commas between them"),
    "DIND_K3S_STOP_GRACE": (r"\d{1,4}(\.\d+)?", "a number of seconds, at most 9999"),
    "DIND_K3S_STOP": ("drain", "drain, or nothing"),
    "DIND_K3S_ALLOW_VERSION": (r"[0-9A-Za-z.+-]+([, ]+[0-9A-Za-z.+-]+)*", "versions with commas between them"),
    "DIND_K3S_HOST_SYSCTL": (r"[01]", "0 or 1"),
}


def mistakes(env: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that holds something else; an empty one is as good as none."""
    return [
        f"{name} is {shown(env[name])}; expected: {expected}"
        for name, (pattern, expected) in _RULES.items()
        if env.get(name) and not re.fullmatch(pattern, env[name], re.ASCII)
    ]
