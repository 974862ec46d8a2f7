# shellcheck shell=bash
# dockerd's storage driver, chosen by trying it in the volume and remembered there. Sourced.
# From outside: DOCKER_DRIVER (as in docker:dind): that driver, without a trial, unless the volume has images of another.

choose_storage() {
  local way want=${DOCKER_DRIVER-}
  WHY='' REASON='' CHOICE=$DOCKER_OURS/storage
  TYPE=$(stat -f -c %T "$DATA")
  find_stores
  way=$(way_of_volume) || die storage "$CHOICE says $(<"$CHOICE"), which is no driver of ours; set DOCKER_DRIVER, or give an empty volume"
  if [[ -n $want && $(driver_of "$way") != "$want" && (${#STORES[@]} -eq 0 || " ${STORES[*]} " == *" $want "*) ]]; then
    note storage "$want"
    RESULT="$want as DOCKER_DRIVER asks, untried, on $TYPE"
  elif [[ $way != none ]]; then
    use_again "$way" "$want"
  else
    use_first
  fi
  tell_hidden
}

# STORES: the drivers whose images are in the volume. Each has a store of its own, and dockerd shows one of them.
find_stores() {
  local folder containerd=$DATA/containerd/daemon
  STORES=()
  for folder in "$DATA"/image/*/; do
    if compgen -G "${folder}imagedb/content/sha256/*" >/dev/null; then STORES+=("$(basename "$folder")"); fi
  done
  # docker 29's default: containerd's store, in which a driver is called a snapshotter.
  if ! compgen -G "$containerd/io.containerd.content.v1.content/blobs/sha256/*" >/dev/null; then return; fi
  for folder in "$containerd"/io.containerd.snapshotter.v1.*/; do
    if compgen -G "${folder}snapshots/*" >/dev/null; then STORES+=("$(basename "${folder##*.v1.}")"); fi
  done
}

# What the volume was filled with: `none` when it is new.
way_of_volume() {
  local remembered
  if [[ -s $CHOICE ]]; then
    remembered=$(<"$CHOICE")
    case $remembered in
      overlay2 | fuse_overlayfs | loop | vfs) ;;
      *) return 1 ;;
    esac
    if [[ $remembered == loop || ${#STORES[@]} -eq 0 || " ${STORES[*]} " == *" ${remembered//_/-} "* ]]; then
      echo "$remembered"
      return
    fi
  fi
  if ((${#STORES[@]} > 0)); then
    echo "${STORES[0]//-/_}" # a volume that another image filled, or DOCKER_DRIVER
  elif [[ -d $DATA/overlay2 ]]; then
    echo overlay2
  else
    echo none
  fi
}

driver_of() { # WAY
  if [[ $1 == loop ]]; then echo overlay2; else echo "${1//_/-}"; fi
}

# Another driver than before would show none of the volume's images, so it is taken only where this one cannot be.
use_again() { # WAY DRIVER-ASKED-FOR
  if works "$1"; then
    use_storage "$1" 'as before'
  elif ! has_room; then
    use_storage "$1" 'as before, untried because the volume is full: make room in it'
  elif [[ -n $2 ]]; then
    note storage "$2"
    RESULT="$2 as DOCKER_DRIVER asks, untried, on $TYPE, where $(driver_of "$1") does not work: ${WHY:-no reason given}"
    return
  else
    die storage "this volume was filled with $1, which does not work on this host ($TYPE): ${WHY:-no reason given}.
Another driver would hide its images. Give an empty volume, or set DOCKER_DRIVER to choose one yourself"
  fi
  if [[ -n $2 && $2 != "$(driver_of "$1")" ]]; then
    RESULT+="; warning: DOCKER_DRIVER=$2 is not used, since it would hide the images in this volume: for $2 give an empty one"
  fi
}

works() { # WAY
  case $1 in
    overlayfs) try_overlay2 ;; # containerd's name for it
    overlay2 | fuse_overlayfs | loop | vfs) "try_$1" ;;
  esac # dockerd itself tries all others
}

use_first() {
  local way
  has_room || die storage "the volume at ${DATA#"$R"} is full, so no storage driver can be tried in it; make room in it"
  for way in overlay2 fuse_overlayfs loop vfs; do
    if "try_$way"; then
      use_storage "$way" proved
      return
    fi
    REASON=${REASON:-${WHY%%$'\n'*}} # the first line of what the first one said
  done
}

# Images of other drivers, which dockerd does not show; `stores` for configure, where a flag may choose yet another.
tell_hidden() {
  local used store
  used=$(sed -n 's/^storage=//p' "$RUN/facts" | tail -n 1)
  find_stores # again: a file system of our own may be mounted by now
  note stores "${STORES[*]}"
  for store in "${STORES[@]}"; do
    if [[ $store != "$used" ]]; then
      RESULT+="; warning: this volume also has images of $store, which $used does not show: DOCKER_DRIVER=$store shows them"
    fi
  done
}

use_storage() { # WAY WORDS
  local driver slow volume="-v docker:${DATA#"$R"}"
  driver=$(driver_of "$1")
  note storage "$driver"
  if [[ $2 == proved ]]; then remember "$1" || true; fi
  slow="$TYPE does not carry overlay2 (${REASON:-as before}), a named volume does: $volume"
  if [[ ! -s $CHOICE ]]; then slow="another image or DOCKER_DRIVER chose it; an empty volume may carry overlay2"; fi
  RESULT="$driver on $TYPE, $2"
  case $1 in
    overlay2 | btrfs | zfs) ;;
    overlayfs | native) RESULT="containerd's image store with $RESULT: docker 29 fills volumes so, and pods have no statistics with it" ;;
    loop) RESULT="overlay2 in an ext4 file, because $TYPE does not carry it (${REASON:-as before}), $2; a named volume is faster: $volume" ;;
    vfs) RESULT+="; slow, and every layer is a whole copy: $slow" ;;
    *) RESULT+="; slow: $slow" ;;
  esac
}

remember() { # WAY
  { printf '%s\n' "$1" >"$CHOICE.new" && mv "$CHOICE.new" "$CHOICE"; } 2>/dev/null
}

has_room() {
  local result=0
  { head -c 65536 /dev/zero >"$DOCKER_OURS/room"; } 2>/dev/null || result=1
  rm -f "$DOCKER_OURS/room"
  return $result
}

# Two lower layers, a write, a deletion (a whiteout is a device node) and a folder made again (an opaque attribute): what
# an image build does, and where file systems differ that all mount (devcontainers/features#1653).
# Volatile first: without it the unmount waits until the host has written everything that is dirty on that disk.
try_overlay2() {
  case ${TYPE-} in # doctor asks for the trial alone
    # The kernel may well do it; dockerd refuses these by name.
    zfs | nfs | ecryptfs | aufs) WHY="dockerd refuses overlay2 on $TYPE" && return 1 ;;
  esac
  probe_layers volatile, mount -t overlay overlay -o || probe_layers '' mount -t overlay overlay -o
}

try_fuse_overlayfs() {
  [[ -e $R/dev/fuse ]] || mknod -m 0666 "$R/dev/fuse" c 10 229 2>/dev/null || true
  probe_layers '' fuse-overlayfs -o
}

probe_layers() { # OPTIONS MOUNT-COMMAND...
  local at=$DOCKER_OURS/probe options=$1 result=0
  shift
  # A start that was killed in the middle of this may have left a mount, when its mounts outlive it.
  if mountpoint -q "$at/merged" 2>/dev/null; then umount -l "$at/merged" || true; fi
  rm -rf "$at"
  if ! WHY=$(mkdir -p "$at"/{one/folder,two,upper,work,merged} 2>&1 && touch "$at/one/file" "$at/one/folder/file" 2>&1) ||
    ! WHY=$("$@" "${options}lowerdir=$at/two:$at/one,upperdir=$at/upper,workdir=$at/work" "$at/merged" 2>&1); then
    rm -rf "$at"
    return 1
  fi
  WHY=$(work_in "$at/merged" 2>&1) || result=1
  umount "$at/merged" || umount -l "$at/merged" || true
  rm -rf "$at"
  return $result
}

work_in() { # MERGED
  touch "$1/new" && rm "$1/file" && [[ ! -e $1/file ]] &&
    rm -r "$1/folder" && mkdir "$1/folder" && [[ ! -e $1/folder/file ]]
}

# An ext4 in a sparse file, as large as nine tenths of what is free.
try_loop() {
  local file=$DOCKER_OURS/docker.ext4
  if [[ -s $file ]]; then
    e2fsck -p "$file" >/dev/null 2>&1 || (($? < 4)) || die storage "the file system in $file is damaged; mend it with e2fsck"
    mount_loop "$file"
    return
  fi
  # Complete before it has its name: a start may be killed at any time.
  rm -f "$file.new"
  if make_file_system "$file.new" && mv "$file.new" "$file" && mount_loop "$file"; then return; fi
  rm -f "$file.new" "$file"
  return 1
}

make_file_system() { # FILE
  local free
  free=$(stat -f -c '%a * %S' "$DATA")
  truncate -s $(((free) * 9 / 10 & ~4095)) "$1" 2>/dev/null &&
    WHY=$(mkfs.ext4 -q -F -m 0 -E lazy_itable_init=1 "$1" 2>&1)
}

# A privileged container's /dev is a copy from its start, so the node of a new loop device has to be made
# (moby/moby#27886). Another container may take the same device, hence the tries. Our own folder shows through, so that
# it is the same one whatever is mounted.
mount_loop() { # FILE
  local device tries=5 ours=$RUN/ours
  while ((tries-- > 0)); do
    device=$(losetup -f 2>/dev/null) || return 1
    [[ -e $device ]] || mknod "$device" b 7 "${device#/dev/loop}" || return 1
    mkdir -p "$ours"
    mount --bind "$DOCKER_OURS" "$ours"
    if WHY=$(mount -o loop "$1" "$DATA" 2>&1); then
      mkdir -p "$DOCKER_OURS"
      mount --bind "$ours" "$DOCKER_OURS"
      umount "$ours"
      return
    fi
    umount "$ours"
  done
  return 1
}

try_vfs() { :; }
