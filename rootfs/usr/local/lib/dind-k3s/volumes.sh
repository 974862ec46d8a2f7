# shellcheck shell=bash disable=SC2034 # TOLD is what `step` in say.sh prints
# The two volumes: held by one container at a time, and what must survive beside the data itself. Sourced.

# Our own folder in each volume.
DOCKER_OURS=$R/var/lib/docker/.dind-k3s
K3S_OURS=$R/app/k3s/.dind-k3s

# Two dockerds, or two k3s, on one folder destroy it. The locks are on descriptors 3 and 4, which live as long as this
# process, the supervisor after exec included; it hands them to none of its children (moby/moby#31600).
lock_volumes() {
  mkdir -p "$DOCKER_OURS" "$K3S_OURS"
  exec 3>>"$DOCKER_OURS/lock" 4>>"$K3S_OURS/lock"
  local fd folder
  for fd in 3 4; do
    folder=/var/lib/docker
    if ((fd == 4)); then folder=/app/k3s; fi
    flock --nonblock "$fd" ||
      die lock "the volume at $folder is in use by another container; stop that one, or give this one a volume of its own"
  done
  TOLD='both volumes are ours alone'
}

# kubelet's folder holds the volumes of pods, whose containers live on in /var/lib/docker. A bind mount and not a link,
# because kubelet compares its paths with the mount table.
keep_state() {
  mkdir -p "$K3S_OURS/node" "$K3S_OURS/kubelet" "$R/app/k3s/storage" "$R/app/logs" "$R/var/lib/kubelet"
  chmod 0700 "$K3S_OURS/node"
  if ! mountpoint -q "$R/var/lib/kubelet"; then
    mount --bind "$K3S_OURS/kubelet" "$R/var/lib/kubelet"
  fi
  # The same machine id for the same volume: equal ids of two containers confuse cadvisor and CNI plugins.
  if [[ ! -s $K3S_OURS/machine-id ]]; then
    local uuid
    read -r uuid <"$R/proc/sys/kernel/random/uuid"
    printf '%s\n' "${uuid//-/}" >"$K3S_OURS/machine-id"
  fi
  cat "$K3S_OURS/machine-id" >"$R/etc/machine-id"
  TOLD='node password, kubelet folder and machine id are those of the volume'
}
