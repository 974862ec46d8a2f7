"""Which setting came with which k3s, and which pairs of docker and k3s run no pod.

A key of its file that k3s does not know is skipped with a warning that is easily missed; `k3s agent` and kubelet die of
one. So none is passed to a version that does not know it. A version stands below when every patch release of that minor
which can use docker at all knows the setting. What is not there is older than 1.22.

kube-proxy's iptables-min-sync-period is not passed at all: 1 s, which is what it takes, is its default since 1.20
(kubernetes/kubernetes#92836).

Sources: k3s-io/k3s pkg/cli/cmds/{server,agent}.go, pkg/daemons/agent/agent_linux.go (kubelet's flags); kubernetes
staging/src/k8s.io/kubelet/config/v1beta1/types.go (kubelet's configuration).
"""

from __future__ import annotations

Version = tuple[int, ...]  # major, minor, and the patch where it is known

OLDEST = (1, 22)

SINCE: dict[str, Version] = {
    # --egress-selector-mode came with 1.22.10, 1.23.7 and 1.24.1 (k3s-io/k3s#5596, #5602).
    "egress-selector-mode": (1, 24),
    # k3s points kubelet at <data-dir>/agent/etc/kubelet.conf.d from 1.32.1 on (k3s-io/k3s#2116), and earlier kubelets
    # merge such files wrongly (kubernetes/kubernetes#127421). Before, there are only flags.
    "kubelet.conf.d": (1, 33),
    # In the configuration since 1.31, but only from 1.35 on does kubelet refuse cgroup v1 by itself (KEP-5573).
    "failCgroupV1": (1, 35),
}

# The embedded docker clients of these break at the answers of Docker 25 and later: ImageInspectError, no pod starts
# (k3s-io/k3s#9279; the same ranges in rancher-sandbox/rancher-desktop#7189).
_NO_INSPECT = (((1, 26, 8), (1, 26, 13)), ((1, 27, 5), (1, 27, 10)), ((1, 28, 0), (1, 28, 6)), ((1, 29, 0), (1, 29, 1)))
# The first of each minor whose client speaks API 1.44, the oldest that Docker 29 answers by default.
_SPEAKS_1_44 = ((1, 26, 14), (1, 27, 11), (1, 28, 7), (1, 29, 2))


def knows(setting: str, version: Version) -> bool:
    """Whether this k3s takes the setting."""
    return version >= SINCE.get(setting, OLDEST)


def runs_dockershim(version: Version) -> bool:
    """Up to 1.23 `docker: true` means the kubelet's own dockershim, from 1.24.4 on k3s's built-in cri-dockerd."""
    return version < (1, 24)


def refusal(k3s: Version, docker: Version) -> str:
    """Why this k3s cannot run pods with this docker, whatever is set; empty when nothing is known against them."""
    name = f"k3s {'.'.join(map(str, k3s))}"
    if (1, 24, 0) <= k3s < (1, 24, 4) and len(k3s) > 2:
        return f"{name} cannot use docker at all (1.24.4 and later can): take another k3s"
    if docker >= (25,) and any(first <= k3s[:3] <= last for first, last in _NO_INSPECT):
        return f"{name} starts no pod with Docker {docker[0]} (ImageInspectError, k3s-io/k3s#9279): take another k3s"
    return ""


def too_old_to_talk(k3s: Version, docker: Version) -> bool:
    """Whether dockerd refuses this k3s's client unless it is set to answer older ones."""
    if docker < (29,) or len(k3s) < 3:
        return False
    first = next((entry for entry in _SPEAKS_1_44 if entry[:2] == k3s[:2]), _SPEAKS_1_44[0])
    return k3s < first
