"""The flags of `k3s server`, which the stub's agent has, too; any other is refused as k3s refuses it.

Source: k3s's pkg/cli/cmds/server.go and agent.go. The stub uses few of them and accepts the others.
"""

from __future__ import annotations

# Environment variables of the flags that the stub uses.
VARIABLES = {
    "data-dir": "K3S_DATA_DIR",
    "node-name": "K3S_NODE_NAME",
    "write-kubeconfig": "K3S_KUBECONFIG_OUTPUT",
    "write-kubeconfig-mode": "K3S_KUBECONFIG_MODE",
    "resolv-conf": "K3S_RESOLV_CONF",
    "token": "K3S_TOKEN",
    "token-file": "K3S_TOKEN_FILE",
    "server": "K3S_URL",
}

_TEXT = """
config data-dir node-name write-kubeconfig write-kubeconfig-mode https-listen-port
bind-address advertise-address resolv-conf token token-file server
v vmodule log container-runtime-endpoint default-runtime image-service-endpoint advertise-port service-node-port-range
cluster-domain
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
node-ip node-label tls-san service-cidr cluster-cidr kubelet-arg
cluster-dns disable kube-apiserver-arg etcd-arg kube-scheduler-arg kube-controller-manager-arg kube-controller-arg
kube-cloud-controller-manager-arg kube-cloud-controller-arg kube-proxy-arg node-taint node-external-ip
node-internal-dns node-external-dns airgap-extra-registry
"""
_BOOL = """
docker
debug alsologtostderr tls-san-security flannel-ipv6-masq flannel-external-ip cluster-init cluster-reset
etcd-expose-metrics etcd-disable-snapshots etcd-snapshot-compress etcd-s3 etcd-s3-skip-ssl-verify etcd-s3-insecure
disable-scheduler disable-cloud-controller disable-kube-proxy disable-network-policy disable-helm-controller
disable-apiserver disable-controller-manager disable-etcd embedded-registry supervisor-metrics with-node-id
disable-default-registry-endpoint protect-kernel-defaults secrets-encryption enable-pprof rootless prefer-bundled-bin
selinux nonroot-devices
"""
KINDS = {
    **dict.fromkeys(_TEXT.split(), "text"),
    **dict.fromkeys(_LIST.split(), "list"),
    **dict.fromkeys(_BOOL.split(), "bool"),
}
