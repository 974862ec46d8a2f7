"""address ADDRESS: bring up to date what knows this node by another address, then remember this one.

docker gives a container another address at nearly every start, and k3s's own ways to notice are too slow or none:

- its etcd knows members by address; k3s waits for ever for one with its new address (pkg/etcd/etcd.go, Test). A change
  of the member's address loses nothing, and takes a majority of the members
- the Node keeps its old address until k3s's cloud controller looks again, within a minute; until then k3s ends, again
  and again, because its network policy controller finds no interface with that address (pkg/agent/netpol)

run-network starts it when the address is another one than volume.ADDRESS says.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

from dind_k3s import k3s_config, ranges, volume
from dind_k3s.certificates import node_of
from dind_k3s.etcd import Etcd, NotMoved
from dind_k3s.kube_api import Kubernetes
from dind_k3s.root import at
from dind_k3s.versions import write_whole

INTERNAL_IP = "k3s.io/internal-ip"  # what the cloud controller goes by (pkg/cloudprovider/instances.go)
AGAIN = 0.3
STEADY = 10.0  # seconds for which all of it must have been right: k3s may still write what it knew before
MAJORITY = 30.0  # seconds that etcd's members have to find one


def mend_node(kubernetes: Kubernetes, address: str) -> str:
    """Give the Node its address; what was done. Raises OSError, KeyError or ValueError while that is not possible."""
    if problem := kubernetes.problem():
        raise OSError(problem)
    path = f"/api/v1/nodes/{node_of(kubernetes.certificate)}"
    _, node = kubernetes.get(path)
    if node["metadata"].get("annotations", {}).get(INTERNAL_IP, address) != address:
        kubernetes.patch(path, {"metadata": {"annotations": {INTERNAL_IP: address}}})
    old = [one for one in node["status"]["addresses"] if one["type"] == "InternalIP"]
    if [one["address"] for one in old] == [address]:
        return ""
    addresses = [{"type": "InternalIP", "address": address}]
    addresses += [one for one in node["status"]["addresses"] if one not in old]
    kubernetes.patch(f"{path}/status", {"status": {"addresses": addresses}})
    return f"the node's address is {address} now, not {', '.join(one['address'] for one in old)}"


def is_chosen() -> bool:
    """Whether the user has chosen the node's address, or wants two of them (IPv6); then it is k3s's matter."""
    asked = k3s_config.given(os.environ, "node-ip", "flannel-iface", ranges.PODS)
    return bool(asked.keys() - {ranges.PODS}) or ":" in asked.get(ranges.PODS, "")


def report(stuck: NotMoved) -> None:
    """Print what to do where this member alone cannot mend it."""
    print(
        f"dind-k3s: error: etcd has no majority of its members, so this one's new address {stuck.url} cannot be made"
        f" known. It knows {stuck.members}: start more of them at these addresses (docker run --ip). If they are lost,"
        " make this one the only member: supervisorctl stop k3s; k3s server --cluster-reset; supervisorctl start k3s",
        flush=True,
    )


def mend(etcd: Etcd, kubernetes: Kubernetes, address: str) -> Iterator[str]:
    """What was done. Raises OSError, KeyError or ValueError while not all of it is possible."""
    if (volume.k3s_folder() / volume.ETCD / "member").is_dir():
        yield etcd.mend()
    if not is_chosen():
        yield mend_node(kubernetes, address)


def main() -> int:
    address = sys.argv[1]
    etcd, kubernetes = Etcd(), Kubernetes(at(volume.KUBELET))  # a kubelet may change its own Node
    began = right = time.monotonic()
    reported = False
    while time.monotonic() - right < STEADY:
        time.sleep(AGAIN)
        try:
            for done in filter(None, mend(etcd, kubernetes, address)):
                print(done, flush=True)
                right = time.monotonic()
        except (OSError, KeyError, ValueError) as problem:
            right = time.monotonic()  # an answer that does not come takes its time, too
            if isinstance(problem, NotMoved) and problem.members and right - began > MAJORITY and not reported:
                report(problem)
                reported = True
    kubernetes.forget()
    write_whole(volume.k3s_folder() / volume.ADDRESS, f"{address}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
