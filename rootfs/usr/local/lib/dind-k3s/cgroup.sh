# shellcheck shell=bash
# Cgroups that nested containers can be put below, and mounts that reach them. Sourced.

CGROUPS=$R/sys/fs/cgroup
EVACUATE_TRIES=50

# cgroup v2 lets a group have either processes or children with controllers. So all processes of our root go down into
# /init, then the controllers are handed on. A `docker exec` (the health check, too) can put a new process into the root
# between the two, therefore the loop; it is bounded (moby/moby#42331, docker-library/docker#308).
nest_cgroups() {
  local path
  if [[ ! -f $CGROUPS/cgroup.controllers ]]; then
    note cgroup 1
    TOLD='v1: nothing to nest'
    if in_host_cgroups; then
      TOLD+="; in the host's cgroup namespace, where CPU limits of pods are not enforced: --cgroupns=private mends that"
    fi
    return
  fi
  note cgroup 2
  if in_host_cgroups; then
    TOLD="v2, in the host's cgroup namespace, which is not ours to rearrange; --cgroupns=private is the better way"
    return
  fi
  local controllers try pid
  read -r controllers <"$CGROUPS/cgroup.controllers"
  mkdir -p "$CGROUPS/init"
  for ((try = 1; try <= EVACUATE_TRIES; try++)); do
    while read -r pid; do
      # A process may be gone by now.
      echo "$pid" 2>/dev/null >"$CGROUPS/init/cgroup.procs" || true
    done <"$CGROUPS/cgroup.procs"
    if echo "+${controllers// / +}" 2>/dev/null >"$CGROUPS/cgroup.subtree_control"; then
      TOLD="v2: nested below /init after $try of $EVACUATE_TRIES tries ($controllers)"
      return
    fi
    sleep 0.02
  done
  path=$(tr '\n' ' ' <"$CGROUPS/cgroup.procs")
  die cgroup "v2: controllers cannot be handed on to nested containers; these processes stay in the root: ${path:-none}"
}

# In a cgroup namespace of our own every path reads "/".
in_host_cgroups() {
  local line
  while read -r line; do
    case ${line#*:*:} in
      / | /init) ;;
      *) return 0 ;;
    esac
  done <"$R/proc/1/cgroup"
  return 1
}

# Pods with mountPropagation (CSI drivers) need a shared root; a container's is private.
share_mounts() {
  mount --make-rshared /
  if [[ ! -e $R/sys/kernel/security/lsm ]]; then
    # dockerd looks there for AppArmor. Not every kernel has it.
    mount -t securityfs none "$R/sys/kernel/security" 2>/dev/null || true
  fi
  TOLD='the root is shared recursively'
}
