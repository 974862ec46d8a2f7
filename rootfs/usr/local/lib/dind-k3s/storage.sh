# shellcheck shell=bash
# dockerd's storage driver, chosen by trying it in the volume and remembered there. Sourced.
# From outside: DOCKER_DRIVER (as in docker:dind): that driver, without a trial.

DATA=$R/var/lib/docker
CHOICE=$DOCKER_OURS/storage

choose_storage() {
  local remembered=none way type
  WHY='' REASON=''
  type=$(stat -f -c %T "$DATA")
  if [[ -n ${DOCKER_DRIVER-} ]]; then
    note storage "$DOCKER_DRIVER"
    TOLD="$DOCKER_DRIVER as DOCKER_DRIVER asks, untried, on $type"
    return
  fi
  if [[ -s $CHOICE ]]; then
    remembered=$(<"$CHOICE")
  elif [[ -d $DATA/overlay2 ]]; then
    remembered=overlay2 # a volume that another image filled
  fi
  if [[ $remembered != none ]]; then
    "try_$remembered" ||
      die storage "this volume was filled with $remembered, which does not work on this host ($type): ${WHY:-no reason given}.
Another driver would hide its images. Give an empty volume, or set DOCKER_DRIVER to choose one yourself"
    use_storage "$remembered" "$type" 'as before'
    return
  fi
  for way in overlay2 fuse_overlayfs loop vfs; do
    if "try_$way"; then
      use_storage "$way" "$type" proved
      return
    fi
    REASON=${REASON:-${WHY%%$'\n'*}} # the first line of what the first one said
  done
}

use_storage() { # WAY FS-TYPE WORD
  local driver=${1//_/-}
  if [[ $1 == loop ]]; then driver=overlay2; fi
  note storage "$driver"
  if [[ ! -s $CHOICE && $1 != loop ]]; then printf '%s\n' "$1" >"$CHOICE"; fi
  TOLD="$driver on $2, $3"
  case $1 in
    overlay2) ;;
    loop) TOLD="overlay2 in an ext4 file, because $2 does not carry it (${REASON:-as before}), $3; a named volume is faster: -v docker:/var/lib/docker" ;;
    *) TOLD+="; slow: $2 does not carry overlay2 (${REASON:-as before}), a named volume does: -v docker:/var/lib/docker" ;;
  esac
}

# Two lower layers, a write, a deletion (a whiteout is a device node) and a folder made anew (an opaque attribute): what
# an image build does, and where file systems differ that all mount (devcontainers/features#1653).
# Volatile first: without it the unmount waits until the host has written everything that is dirty on that disk.
try_overlay2() {
  probe_layers volatile, mount -t overlay overlay -o || probe_layers '' mount -t overlay overlay -o
}

try_fuse_overlayfs() {
  [[ -e $R/dev/fuse ]] || mknod -m 0666 "$R/dev/fuse" c 10 229 2>/dev/null || true
  probe_layers '' fuse-overlayfs -o
}

probe_layers() { # OPTIONS MOUNT-COMMAND...
  local at=$DOCKER_OURS/probe options=$1 result=0
  shift
  rm -rf "$at"
  mkdir -p "$at"/{one/folder,two,upper,work,merged}
  touch "$at/one/file" "$at/one/folder/file"
  if ! WHY=$("$@" "${options}lowerdir=$at/two:$at/one,upperdir=$at/upper,workdir=$at/work" "$at/merged" 2>&1); then
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

# An ext4 in a sparse file, as large as nine tenths of what is free. A privileged container's /dev is a copy from its
# start, so the node of a new loop device has to be made (moby/moby#27886).
try_loop() {
  local file=$DOCKER_OURS/docker.ext4
  if [[ -s $file ]]; then
    e2fsck -p "$file" >/dev/null 2>&1 || (($? < 4)) || die storage "the file system in $file is damaged; mend it with e2fsck"
    mount_loop "$file"
    return
  fi
  # The file system will cover our folder, so the choice is noted in the one below it.
  if make_file_system "$file" && echo loop >"$CHOICE" && mount_loop "$file"; then return; fi
  rm -f "$file" "$CHOICE"
  return 1
}

make_file_system() { # FILE
  local free
  free=$(stat -f -c '%a * %S' "$DATA")
  truncate -s $(((free) * 9 / 10 & ~4095)) "$1" 2>/dev/null &&
    WHY=$(mkfs.ext4 -q -F -m 0 -E lazy_itable_init=1 "$1" 2>&1)
}

mount_loop() { # FILE
  local device
  device=$(losetup -f 2>/dev/null) || return 1
  [[ -e $device ]] || mknod "$device" b 7 "${device#/dev/loop}" || return 1
  WHY=$(mount -o loop "$1" "$DATA" 2>&1) || return 1
  mkdir -p "$DOCKER_OURS"
}

try_vfs() { :; }
