# shellcheck shell=bash
# Kernel settings. Sourced. From outside: DIND_K3S_HOST_SYSCTL=0 leaves alone what is not this container's own.

INOTIFY='max_user_watches:524288 max_user_instances:512'

# ip_forward before dockerd starts: a dockerd that has to switch it on itself sets the FORWARD policy to DROP, and
# flannel's traffic with it (k3s-io/k3s#1114). inotify limits are the host's: raised when lower, never lowered, and said.
set_sysctls() {
  local pair name want have
  echo 1 >"$R/proc/sys/net/ipv4/ip_forward" || die sysctl 'net.ipv4.ip_forward cannot be switched on; is /proc/sys read-only?'
  RESULT='ip_forward is on'
  for pair in $INOTIFY; do
    name=${pair%:*} want=${pair#*:}
    read -r have <"$R/proc/sys/fs/inotify/$name" || continue
    if ((have >= want)); then continue; fi
    if ! asked DIND_K3S_HOST_SYSCTL 1; then
      RESULT+="; inotify $name stays at $have, kubelet may want $want"
    elif echo "$want" 2>/dev/null >"$R/proc/sys/fs/inotify/$name"; then
      RESULT+="; inotify $name of the host raised from $have to $want"
    fi
  done
}
