# shellcheck shell=bash disable=SC2034 # TOLD is what `step` in say.sh prints
# A default route where the outer network has none (`--network none`, an internal one). Sourced.

# k3s and flannel take the node's address from the interface of the default route and do not start without one; services
# need it, too (k3s-io/k3s#1144, #8748). An address of TEST-NET-3. A bridge where the kernel has no dummy interfaces:
# those it has, or dockerd would not run. A network that is connected later has a better metric.
give_route() {
  if [[ -n $(ip -4 route show default) ]]; then
    TOLD='there is one'
  elif { ip link add dind-k3s0 type dummy 2>/dev/null || ip link add dind-k3s0 type bridge; } &&
    ip address add 203.0.113.254/31 dev dind-k3s0 && ip link set dind-k3s0 up &&
    ip route add default via 203.0.113.255 dev dind-k3s0 metric 1000; then
    TOLD='there was none: k3s gets one that leads nowhere, through dind-k3s0'
  else
    TOLD='there is none, and none could be made: k3s will not start without one'
  fi
}
