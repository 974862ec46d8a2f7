"""k3s's arguments, our fragment of its configuration, and the kubelet's: the user's files are read after ours."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping

from dind_k3s.plan import Mistake, Plan, words
from dind_k3s.root import RUN

KUBELET_DROP_INS_SINCE = (1, 35)  # the flags that they replace are on their way out


def yaml(value: object) -> str:
    """A value of our fragment. JSON's spelling of scalars is YAML's."""
    if isinstance(value, list):
        return "".join(f"\n  - {json.dumps(item)}" for item in value)
    return f" {json.dumps(value)}"


def plan(env: Mapping[str, str], facts: Mapping[str, str], version: tuple[int, int], profile: str) -> Plan:
    """k3s's arguments, our fragment of its configuration, and the kubelet's."""
    made = Plan()
    args = words("K3S_ARGS", env)
    if args[:1] == ["server"]:
        args = args[1:]
    if args[:1] == ["agent"]:
        raise Mistake("K3S_ARGS asks for an agent; this image runs a k3s server")
    for arg in args:
        if re.match(r"--data-dir\b|-d\b", arg):
            made.told.append(f"warning: {arg} leads out of the volume at /app/k3s; the cluster's state may be lost")
    names = ["localhost", "host.docker.internal", "docker", "k3s", "kubernetes", os.uname().nodename]
    names += re.split(r"[,\s]+", env.get("K3S_TLS_SAN", ""))
    settings: dict[str, object] = {
        "docker": True,
        "data-dir": "/app/k3s",
        "node-name": env.get("K3S_NODE_NAME")
        or "local-node",  # a host name would leave a dead node at each re-creation
        "write-kubeconfig": env.get("K3S_KUBECONFIG_OUTPUT") or "/app/k3s/k3s.yaml",
        "write-kubeconfig-mode": env.get("K3S_KUBECONFIG_MODE") or "0600",
        "tls-san": [*dict.fromkeys(name for name in names if name)],
        "flannel-backend": "host-gw",  # one node: no tunnel, no vxlan module
    }
    # Chosen in ranges.py. Without cluster-dns: k3s takes the tenth address of service-cidr, the user's included.
    settings |= {name: facts[name] for name in ("cluster-cidr", "service-cidr") if name in facts}
    # Always said: k3s by itself takes none but global addresses, and asks a public server where there is no such one.
    if not env.get("K3S_RESOLV_CONF"):
        settings["resolv-conf"] = f"{RUN}/resolv.conf" if "dns" in facts else "/etc/resolv.conf"
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
        made.told.append("kubelet is told to accept cgroup v1, which Kubernetes is giving up; a host with v2 is better")
    if drop_in:
        drop_in = {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", **drop_in}
    # An empty file would be an error for kubelet, so none is left from another version either.
    made.files["/app/k3s/agent/etc/kubelet.conf.d/10-dind-k3s.conf"] = json.dumps(drop_in) + "\n" if drop_in else ""
    text = "".join(f"{key}:{yaml(value)}\n" for key, value in settings.items())
    made.files[f"{RUN}/k3s/config.yaml"] = (
        "# Generated at each start; yours is /app/k3s/config.yaml, and it wins.\n" + text
    )
    made.files[f"{RUN}/k3s.args"] = "".join(f"{arg}\0" for arg in args)
    if args:
        made.told.append(f"k3s server {shlex.join(args)}")
    return made
