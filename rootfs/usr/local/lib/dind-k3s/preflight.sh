# shellcheck shell=bash
# What no later step can do without. Sourced. From outside: DIND_K3S_HOST_NETWORK.

readonly CAP_NET_ADMIN=12 CAP_SYS_ADMIN=21 CAP_SYS_RESOURCE=24

has_capability() { # NUMBER
  local key value
  while read -r key value; do
    if [[ $key == CapEff: ]]; then
      (((16#$value >> $1) & 1))
      return
    fi
  done <"$R/proc/self/status"
  return 1
}

# Before anything is written: what follows would fail with a bare «Permission denied».
require_root() {
  if ((EUID != 0)); then
    die user "this container runs as user $EUID, and dockerd needs root: leave --user out; single commands run as\
 another user by docker exec --user"
  elif [[ ! -w $R/etc || ! -w $R/run ]]; then
    die user "the root file system cannot be written, and dockerd and k3s write outside of their volumes, too: leave\
 --read-only out"
  fi
}

# Supervisor wants 1024 for itself; dockerd, containerd and k3s hold some hundred each, and more with each container.
require_open_files() {
  local least=4096 most
  most=$(ulimit -Hn)
  if [[ $most == unlimited ]] || ((most >= least)); then return; fi
  if ! ulimit -n 65536 2>/dev/null; then
    die privileges "this container may hold $most files open, and dockerd and k3s need more: --ulimit nofile=65536:65536"
  fi
  RESULT+="; it was limited to $most open files, which are 65536 now"
}

require_privileges() {
  if ! has_capability "$CAP_SYS_ADMIN" || ! has_capability "$CAP_NET_ADMIN"; then
    die privileges 'this container is not privileged: dockerd cannot mount nor set up networks; add --privileged'
  fi
  RESULT=privileged
  if ! has_capability "$CAP_SYS_RESOURCE"; then
    RESULT+=', but without CAP_SYS_RESOURCE: containers that ask for a negative oom_score_adj will not start'
  fi
  require_open_files
  if [[ ! -e $R/dev/kmsg ]]; then
    # kubelet reads it. Real in a privileged container, unless the outer runtime withholds the host's devices.
    mknod "$R/dev/kmsg" c 1 11 2>/dev/null || ln -s /dev/null "$R/dev/kmsg"
    RESULT+='; /dev/kmsg was missing and is made up'
  fi
}

# Whose network this is. dockerd and k3s take the rules, bridges, routes and sysctls of a network namespace for theirs,
# and remove what another engine has made there: dockerd without a bridge even its docker0 (docker-library/docker#443).
require_own_network() {
  RESULT="this container's own"
  find_engine
  if [[ -n $ENGINE ]]; then
    die network "this network namespace is shared: another container engine works in it ($ENGINE), as with --network host.
dockerd and k3s would change its rules, bridges and routes. Leave --network host out and publish ports with -p"
  fi
  # The kernel has this setting in its first network namespace alone.
  if [[ ! -e $R/proc/sys/net/core/netdev_budget ]]; then return; fi
  asked DIND_K3S_HOST_NETWORK ||
    die network "this network namespace is shared: it is the host's. dockerd and k3s would change its rules, bridges and routes.
Leave --network host out and publish ports with -p. If nothing else uses this network, as in a virtual machine of its
own: DIND_K3S_HOST_NETWORK=1"
  RESULT="the host's, and taken for this container's own as DIND_K3S_HOST_NETWORK asks"
}

# ENGINE: the socket of a containerd or CRI-O that listens in this network namespace, in whichever file system it is.
# Ours do not run yet.
find_engine() {
  local flags path
  ENGINE=
  while read -r _ _ _ flags _ _ _ path; do
    case "$flags $path" in
      00010000\ *containerd*.sock | 00010000\ */crio.sock) ENGINE=$path && return ;;
    esac
  done <"$R/proc/net/unix"
}
