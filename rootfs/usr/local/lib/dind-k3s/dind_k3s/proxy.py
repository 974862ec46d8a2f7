"""Proxies for both daemons: one set of variables, in both spellings, with a NO_PROXY that knows what is inside.

Go reads HTTP_PROXY before http_proxy, curl and git read only the latter. Without the cluster's ranges and names in
NO_PROXY, the API server would look for webhooks and kubelets through the proxy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from dind_k3s.plan import shown

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
ALWAYS = ("localhost", "127.0.0.0/8", "::1", ".svc", ".cluster.local", "docker", "kubernetes")


def dead(proxies: Mapping[str, str]) -> list[str]:
    """A warning for each proxy on a loopback address where nothing listens: the host's is not this container's."""
    lines = []
    for name in (name.upper() for name in PROXIES):
        value = proxies.get(name, "")
        found = re.match(
            r"(?:[a-z0-9+.-]+://)?(?:[^@/]*@)?(localhost|127\.[0-9.]+|\[::1\])(?::(\d+))?(?:/|$)", value, re.I
        )
        if found and not listens(found[1].strip("[]"), int(found[2] or 80)):
            where = f"http://host.docker.internal:{found[2] or 80}"
            lines.append(
                f"warning: {name} is {shown(value)}, which is this container itself, and nothing listens there: no"
                f" image can be pulled. One on the host: {where} with --add-host host.docker.internal:host-gateway"
            )
    return lines


def listens(host: str, port: int) -> bool:
    import socket  # here, because hardly any start needs it

    try:
        socket.create_connection((host, port), timeout=0.5).close()
    except (OSError, OverflowError):
        return False
    return True


def environment(env: Mapping[str, str], facts: Mapping[str, str]) -> dict[str, str]:
    """Variables to set for both daemons; none without a proxy. `facts` hold the cluster's ranges."""
    given = {name: env.get(name.upper()) or env.get(name) or "" for name in (*PROXIES, "no_proxy")}
    if not any(given[name] for name in PROXIES):
        return {}
    node = (env.get("K3S_NODE_NAME") or "local-node", env.get("HOSTNAME", ""))
    inside = (*ALWAYS, *node, *facts.get("addresses", "").split())
    ranges = ",".join(facts.get(name, "") for name in ("cluster-cidr", "service-cidr")).split(",")
    words = [word.strip() for word in given["no_proxy"].split(",")]
    given["no_proxy"] = ",".join(dict.fromkeys(word for word in (*words, *inside, *ranges) if word))
    return {spelled: value for name, value in given.items() if value for spelled in (name.upper(), name)}
