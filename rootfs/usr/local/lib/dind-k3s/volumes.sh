# shellcheck shell=bash disable=SC2034 # RESULT is what `step` in say.sh prints
# The two volumes: held by one container at a time, of versions that fit, and what must survive beside the data itself.
# Sourced.

# dockerd's data root, and our own folder in each volume. DOCKER_ARGS or a daemon.json may move the first.
DATA=$R/var/lib/docker
DOCKER_OURS=$DATA/.dind-k3s
K3S_OURS=$R/app/k3s/.dind-k3s

find_data_root() { # DOCKERD-ARGUMENT...
  local words="${DOCKER_ARGS-} $* " file=$R/etc/docker/daemon.json path
  if [[ -f $file ]]; then words+=$(tr -d '\0' <"$file" 2>/dev/null); fi
  # Asked only when there may be something to find: it takes 25 ms.
  if [[ $words == *data-root* || $words == *graph* || $words == *-g* || $words == *config-file* ]]; then
    path=$(python3 -I -S "$LIB" data-root "$@")
    DATA=$R$path
    DOCKER_OURS=$DATA/.dind-k3s
  fi
  note data "${DATA#"$R"}"
}

# Two dockerds, or two k3s, on one folder destroy it. The locks are on descriptors 3 and 4, which live as long as this
# process, the supervisor after exec included; it hands them to none of its children (moby/moby#31600).
lock_volumes() { # DOCKERD-ARGUMENT...
  RESULT='both volumes are ours alone'
  find_data_root "$@"
  take lock_docker "$DATA" volumes/metadata.db
  take lock_k3s "$R/app/k3s" agent/containerd/io.containerd.metadata.v1.bolt/meta.db server/db/etcd/member/snap/db
}

take() { # LOCK-FUNCTION FOLDER DATABASE...
  local lock=$1
  shift
  if [[ -e $1/.dind-k3s/lock ]]; then
    "$lock"
    refuse_running_engine "$@"
  else
    refuse_running_engine "$@"
    "$lock"
  fi
}

lock_docker() {
  make_ours "$DOCKER_OURS"
  exec 3>>"$DOCKER_OURS/lock"
  hold 3 "${DATA#"$R"}"
}

lock_k3s() {
  make_ours "$K3S_OURS"
  exec 4>>"$K3S_OURS/lock"
  hold 4 /app/k3s
}

# dockerd, containerd and etcd lock their databases while they run: so the data of a running engine, which is often the
# host's, is known by reading alone. Where our own lock is, that one is asked first: it knows containers of this image.
refuse_running_engine() { # FOLDER DATABASE...
  local folder=$1 database status
  shift
  for database in "$@"; do
    if [[ ! -f $folder/$database ]]; then continue; fi
    status=0
    flock --shared --nonblock --conflict-exit-code 75 "$folder/$database" true 2>/dev/null || status=$?
    if ((status == 75)); then
      die lock "another container engine works with the data at ${folder#"$R"} (it locks $database), often the host's own.
Nothing was written there. Give this container a volume instead, as in -v docker:${folder#"$R"}"
    fi
  done
}

make_ours() { # FOLDER
  local words volume=${1%/.dind-k3s}
  volume=${volume#"$R"}
  if words=$(mkdir -p "$1" 2>&1 && { : >>"$1/lock"; } 2>&1); then return; fi
  words=${words##*: }
  case $words in
    'No space left'* | 'Disk quota'*) die lock "the volume at $volume is full ($words); make room in it, or give another" ;;
    *) die lock "the volume at $volume cannot be written ($words); mount it without :ro, from a place that takes writes" ;;
  esac
}

hold() { # DESCRIPTOR VOLUME
  local status=0
  flock --nonblock --conflict-exit-code 75 "$1" 2>/dev/null || status=$?
  if ((status == 75)); then
    die lock "the volume at $2 is in use by another container; stop that one, or give this one a volume of its own"
  elif ((status != 0)); then
    RESULT="warning: the file system at $2 knows no locks: nothing keeps a second container from it"
  fi
}

# guard.py says which versions may follow one another. Before anything else in the volumes is touched.
check_versions() {
  RESULT=$(python3 -I -S "$LIB" guard check) || exit
}

# The last thing before the daemons start: a snapshot if a new k3s takes over, and who uses the volumes from now on.
commit_versions() {
  local messages
  if [[ ! -e $RUN/takes-over ]]; then return; fi
  messages=$(python3 -I -S "$LIB" guard commit) || exit
  if [[ -n $messages ]]; then say versions "$messages"; fi
}

# kubelet's folder holds the volumes of pods, whose containers live on in /var/lib/docker. A bind mount and not a link,
# because kubelet compares its paths with the mount table.
keep_state() {
  mkdir -p "$K3S_OURS/node" "$K3S_OURS/kubelet" "$R/app/k3s/storage" "$R/app/logs" "$R/var/lib/kubelet"
  chmod 0700 "$K3S_OURS/node"
  if ! mountpoint -q "$R/var/lib/kubelet"; then
    mount --bind "$K3S_OURS/kubelet" "$R/var/lib/kubelet"
  fi
  # k3s would send an empty password, and be refused, for ever; without a file it makes a new one.
  if [[ -e $K3S_OURS/node/password && ! -s $K3S_OURS/node/password ]]; then rm -f "$K3S_OURS/node/password"; fi
  # The same machine id for the same volume: equal ids of two containers confuse cadvisor and CNI plugins.
  if [[ ! -s $K3S_OURS/machine-id ]]; then
    local uuid
    read -r uuid <"$R/proc/sys/kernel/random/uuid"
    printf '%s\n' "${uuid//-/}" >"$K3S_OURS/machine-id"
  fi
  cat "$K3S_OURS/machine-id" >"$R/etc/machine-id"
  RESULT='node password, kubelet folder and machine id are those of the volume'
}
