"""The flags of `k3s server` and `k3s agent`, those that the stand-in acts on and those that it only accepts.

Source: k3s's pkg/cli/cmds/server.go and agent.go. A flag that is in neither table is refused as k3s refuses it. Those
whose first version is known are refused by earlier ones, in files too: k3s skips them there with a warning, which would
hide that a release passes what its k3s does not know.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["text", "list", "bool"]

# Environment variables are the second word, where k3s has one.
ACTED_ON: dict[str, tuple[Kind, str | None]] = {
    "config": ("text", "K3S_CONFIG_FILE"),
    "docker": ("bool", None),
    "container-runtime-endpoint": ("text", None),
    "data-dir": ("text", "K3S_DATA_DIR"),
    "node-name": ("text", "K3S_NODE_NAME"),
    "node-ip": ("list", None),
    "node-label": ("list", None),
    "write-kubeconfig": ("text", "K3S_KUBECONFIG_OUTPUT"),
    "write-kubeconfig-mode": ("text", "K3S_KUBECONFIG_MODE"),
    "https-listen-port": ("text", None),
    "bind-address": ("text", None),
    "advertise-address": ("text", None),
    "tls-san": ("list", None),
    "service-cidr": ("list", None),
    "cluster-cidr": ("list", None),
    "kubelet-arg": ("list", None),
    "resolv-conf": ("text", "K3S_RESOLV_CONF"),
    "token": ("text", "K3S_TOKEN"),
    "token-file": ("text", "K3S_TOKEN_FILE"),
    "server": ("text", "K3S_URL"),
    "disable-agent": ("bool", None),
}

SHORT = {"c": "config", "d": "data-dir", "o": "write-kubeconfig", "t": "token", "s": "server", "i": "node-ip"}

_TEXT = """
v vmodule log default-runtime image-service-endpoint advertise-port service-node-port-range cluster-domain
flannel-backend egress-selector-mode servicelb-namespace
write-kubeconfig-group helm-job-image agent-token agent-token-file cluster-reset-restore-path datastore-endpoint
datastore-cafile datastore-certfile datastore-keyfile etcd-snapshot-name etcd-snapshot-schedule-cron
etcd-snapshot-retention etcd-snapshot-dir etcd-s3-endpoint etcd-s3-endpoint-ca etcd-s3-access-key etcd-s3-secret-key
etcd-s3-session-token etcd-s3-bucket etcd-s3-bucket-lookup-type etcd-s3-region etcd-s3-folder etcd-s3-proxy
etcd-s3-config-secret etcd-s3-retention etcd-s3-timeout default-local-storage-path
image-credential-provider-bin-dir image-credential-provider-config pause-image snapshotter private-registry
system-default-registry flannel-iface flannel-conf flannel-cni-conf vpn-auth vpn-auth-file lb-server-port
secrets-encryption-provider kine-tls
"""
_LIST = """
cluster-dns disable kube-apiserver-arg etcd-arg kube-scheduler-arg kube-controller-manager-arg kube-controller-arg
kube-cloud-controller-manager-arg kube-cloud-controller-arg kube-proxy-arg node-taint node-external-ip
node-internal-dns node-external-dns airgap-extra-registry
"""
_BOOL = """
debug alsologtostderr tls-san-security flannel-ipv6-masq flannel-external-ip cluster-init cluster-reset
etcd-expose-metrics etcd-disable-snapshots etcd-snapshot-compress etcd-s3 etcd-s3-skip-ssl-verify etcd-s3-insecure
disable-scheduler disable-cloud-controller disable-kube-proxy disable-network-policy disable-helm-controller
disable-apiserver disable-controller-manager disable-etcd embedded-registry supervisor-metrics with-node-id
disable-default-registry-endpoint protect-kernel-defaults secrets-encryption enable-pprof rootless prefer-bundled-bin
selinux nonroot-devices
"""
ACCEPTED: dict[str, Kind] = {
    **dict.fromkeys(_TEXT.split(), "text"),
    **dict.fromkeys(_LIST.split(), "list"),
    **dict.fromkeys(_BOOL.split(), "bool"),
}


# First versions of each minor that know a flag. Older minors than the first one lack it, others have it.
SINCE: dict[str, tuple[tuple[int, int, int], ...]] = {
    "docker": ((1, 0, 0), (1, 24, 4)),  # lost with dockershim, back with cri-dockerd (k3s-io/k3s#5741)
    "egress-selector-mode": ((1, 22, 10), (1, 23, 7), (1, 24, 1)),  # k3s-io/k3s#5596
    "embedded-registry": ((1, 26, 13), (1, 27, 10), (1, 28, 6), (1, 29, 1)),  # docs.k3s.io/installation/registry-mirror
    "vpn-auth": ((1, 25, 11), (1, 26, 6), (1, 27, 3)),  # docs.k3s.io/networking/distributed-multicloud
}

_AGENT = """
config debug v vmodule log alsologtostderr token token-file server data-dir node-name with-node-id node-label
node-taint image-credential-provider-bin-dir image-credential-provider-config selinux lb-server-port
protect-kernel-defaults container-runtime-endpoint default-runtime image-service-endpoint pause-image snapshotter
private-registry airgap-extra-registry node-ip node-external-ip node-internal-dns node-external-dns resolv-conf
flannel-iface flannel-conf flannel-cni-conf kubelet-arg kube-proxy-arg enable-pprof rootless prefer-bundled-bin
docker vpn-auth vpn-auth-file disable-default-registry-endpoint nonroot-devices
"""
AGENT = frozenset(_AGENT.split())


def kind_of(name: str) -> Kind | None:
    """What kind of value a flag takes; None when k3s has no such flag."""
    return ACTED_ON[name][0] if name in ACTED_ON else ACCEPTED.get(name)


def knows(name: str, version: tuple[int, ...]) -> bool:
    """Whether this version has the flag."""
    return since(SINCE.get(name, ()), version)


def since(firsts: tuple[tuple[int, int, int], ...], version: tuple[int, ...]) -> bool:
    """Whether a version is not older than the first of its minor, or of the last minor before it."""
    same = [first for first in firsts if first[:2] == version[:2]]
    return version >= (same or list(firsts) or [(0, 0, 0)])[0]


def numbers(version: str) -> tuple[int, ...]:
    """`v1.37.1+standin` as numbers; a copy that is not packed has no version and counts as the newest."""
    found = tuple(int(part) for part in version.removeprefix("v").partition("+")[0].split("."))
    return found if any(found) else (999,)
