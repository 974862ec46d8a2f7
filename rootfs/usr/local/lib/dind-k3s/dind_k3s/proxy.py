"""Proxies for both daemons: one set of variables, in both spellings, with a NO_PROXY that knows what is inside.

Go reads HTTP_PROXY before http_proxy, curl and git read only the latter. Without the cluster's ranges and names in
NO_PROXY, the API server would look for webhooks and kubelets through the proxy.
"""

from __future__ import annotations

from collections.abc import Mapping

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
ALWAYS = ("localhost", "127.0.0.0/8", "::1", ".svc", ".cluster.local", "docker", "kubernetes")


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
