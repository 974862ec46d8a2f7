# shellcheck shell=bash
# Cgroups that nested containers can be put below, and mounts that reach them. Sourced.

CGROUPS=$R/sys/fs/cgroup
EVACUATE_TRIES=50
HOSTS_CGROUPS=

# Which cgroups are seen at /sys/fs/cgroup: our own, or (`--cgroupns host` with v2, `-v /sys/fs/cgroup:/sys/fs/cgroup`)
# the host's, with those of its other containers. A mount is ours when its root is the group that this process is in.
# Leaves the reason in HOSTS_CGROUPS; it is empty where all is as it should be.
find_hosts_cgroups() {
  local names path name root point options rest
  local -A own=()
  HOSTS_CGROUPS=
  while IFS=: read -r _ names path; do
    name=${names#name=}
    name=@${name%%,*} # v2 has no name
    own[$name]=$path
  done <"$R/proc/self/cgroup"
  while read -r _ _ _ root point options rest; do
    case "$point ${rest##*- }" in
      '/sys/fs/cgroup cgroup2 '*) name=@ ;;
      /sys/fs/cgroup/*' cgroup '*)
        name=@${point#/sys/fs/cgroup/}
        name=${name%%,*}
        ;;
      *) continue ;;
    esac
    if [[ $root != "${own[$name]-$root}" ]]; then
      HOSTS_CGROUPS="the host's /sys/fs/cgroup is mounted here"
    elif [[ ,$options, == *,ro,* ]]; then
      HOSTS_CGROUPS=${HOSTS_CGROUPS:-/sys/fs/cgroup is mounted read-only}
    fi
  done <"$R/proc/self/mountinfo"
}

# Our own groups in their place: whatever the user mounted there stays as it is. Needs a cgroup namespace of our own.
cover_hosts_cgroups() {
  local names folder part
  # Private first, or the host would lose its mounts where they are shared with it.
  { mount --make-rprivate "$CGROUPS" && umount --recursive --lazy "$CGROUPS"; } 2>/dev/null || true
  if [[ $1 == 2 ]]; then
    mount -t cgroup2 cgroup2 "$CGROUPS"
    return
  fi
  mount -t tmpfs -o mode=0755 cgroup "$CGROUPS" || return
  while IFS=: read -r _ names _; do
    if [[ -z $names ]]; then continue; fi
    folder=$CGROUPS/${names#name=}
    mkdir "$folder" && mount -t cgroup -o "${names/#name=/none,name=}" cgroup "$folder" || return
    for part in ${names//,/ }; do
      if [[ $names == *,* ]]; then ln -s "$names" "$CGROUPS/$part"; fi
    done
  done <"$R/proc/self/cgroup"
  mkdir "$folder/dind-k3s-trial" && rmdir "$folder/dind-k3s-trial"
}

# cgroup v2 lets a group have either processes or children with controllers. So all processes of our root go down into
# /init, then the controllers are handed on. A `docker exec` (the health check, too) can put a new process into the root
# between the two, therefore the loop; it is bounded (moby/moby#42331, docker-library/docker#308).
nest_cgroups() {
  local path words version=1
  if [[ -f $CGROUPS/cgroup.controllers ]]; then version=2; fi
  note cgroup $version
  RESULT="v$version"
  if [[ -n $HOSTS_CGROUPS ]]; then
    words=$(cover_hosts_cgroups $version 2>&1) ||
      die cgroup "$HOSTS_CGROUPS, and this container's own cgroups cannot be mounted in its place: ${words:-no reason given}.
Leave out -v /sys/fs/cgroup:…; on v2 run with --cgroupns=private"
    note cgroups covered
    RESULT+="; $HOSTS_CGROUPS; it is left alone, this container's own cgroups are mounted over it"
  fi
  if ((version == 1)); then
    RESULT+='; nothing to nest'
    if in_host_cgroups; then
      RESULT+="; in the host's cgroup namespace, where CPU limits of pods are not enforced: --cgroupns=private mends that"
    fi
    return
  fi
  local controllers try pid
  read -r controllers <"$CGROUPS/cgroup.controllers" || true
  mkdir -p "$CGROUPS/init" || die cgroup "v2: $CGROUPS cannot be written; add --privileged"
  for ((try = 1; try <= EVACUATE_TRIES; try++)); do
    while read -r pid; do
      # A process may be gone by now.
      echo "$pid" 2>/dev/null >"$CGROUPS/init/cgroup.procs" || true
    done <"$CGROUPS/cgroup.procs"
    if echo "+${controllers// / +}" 2>/dev/null >"$CGROUPS/cgroup.subtree_control"; then
      RESULT+="; nested below /init after $try of $EVACUATE_TRIES tries ($controllers)"
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
  done <"$R/proc/self/cgroup"
  return 1
}

# Pods with mountPropagation (CSI drivers) need a shared root; a container's is private.
share_mounts() {
  mount --make-rshared /
  if [[ ! -e $R/sys/kernel/security/lsm ]]; then
    # dockerd looks there for AppArmor. Not every kernel has it.
    mount -t securityfs none "$R/sys/kernel/security" 2>/dev/null || true
  fi
  RESULT='the root is shared recursively'
}
