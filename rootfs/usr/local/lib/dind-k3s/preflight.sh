# shellcheck shell=bash
# What no later step can do without. Sourced.

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

require_privileges() {
  if ! has_capability "$CAP_SYS_ADMIN" || ! has_capability "$CAP_NET_ADMIN"; then
    die privileges 'this container is not privileged: dockerd cannot mount nor set up networks; add --privileged'
  fi
  TOLD=privileged
  if ! has_capability "$CAP_SYS_RESOURCE"; then
    TOLD+=', but without CAP_SYS_RESOURCE: containers that ask for a negative oom_score_adj will not start'
  fi
  if [[ ! -e $R/dev/kmsg ]]; then
    # kubelet reads it. Real in a privileged container, unless the outer runtime withholds the host's devices.
    mknod "$R/dev/kmsg" c 1 11 2>/dev/null || ln -s /dev/null "$R/dev/kmsg"
    TOLD+='; /dev/kmsg was missing and is made up'
  fi
}
