# shellcheck shell=bash
# dockerd's storage driver, chosen by trying it in the volume and remembered there. Sourced.
# From outside: DOCKER_DRIVER (as in docker:dind): that driver, without a trial.

choose_storage() {
  local remembered=none way
  WHY='' REASON='' CHOICE=$DOCKER_OURS/storage
  TYPE=$(stat -f -c %T "$DATA")
  if [[ -n ${DOCKER_DRIVER-} ]]; then
    note storage "$DOCKER_DRIVER"
    TOLD="$DOCKER_DRIVER as DOCKER_DRIVER asks, untried, on $TYPE"
    return
  fi
  if [[ -s $CHOICE ]]; then
    remembered=$(<"$CHOICE")
  elif [[ -d $DATA/overlay2 ]]; then
    remembered=overlay2 # a volume that another image filled
  fi
  case $remembered in
    none | overlay2 | fuse_overlayfs | loop | vfs) ;;
    *) die storage "$CHOICE says $remembered, which is no driver of ours; set DOCKER_DRIVER, or give an empty volume" ;;
  esac
  if [[ $remembered != none ]]; then
    if "try_$remembered"; then
      use_storage "$remembered" 'as before'
    elif ! has_room; then
      use_storage "$remembered" 'as before, untried because the volume is full: make room in it'
    else
      die storage "this volume was filled with $remembered, which does not work on this host ($TYPE): ${WHY:-no reason given}.
Another driver would hide its images. Give an empty volume, or set DOCKER_DRIVER to choose one yourself"
    fi
    return
  fi
  has_room || die storage "the volume at ${DATA#"$R"} is full, so no storage driver can be tried in it; make room in it"
  for way in overlay2 fuse_overlayfs loop vfs; do
    if "try_$way"; then
      use_storage "$way" proved
      return
    fi
    REASON=${REASON:-${WHY%%$'\n'*}} # the first line of what the first one said
  done
}

use_storage() { # WAY WORDS
  local driver=${1//_/-} volume="-v docker:${DATA#"$R"}"
  if [[ $1 == loop ]]; then driver=overlay2; fi
  note storage "$driver"
  if [[ ! -s $CHOICE ]]; then remember "$1" || true; fi
  TOLD="$driver on $TYPE, $2"
  case $1 in
    overlay2) ;;
    loop) TOLD="overlay2 in an ext4 file, because $TYPE does not carry it (${REASON:-as before}), $2; a named volume is faster: $volume" ;;
    vfs) TOLD+="; slow, and every layer is a whole copy: $TYPE does not carry overlay2 (${REASON:-as before}), a named volume does: $volume" ;;
    *) TOLD+="; slow: $TYPE does not carry overlay2 (${REASON:-as before}), a named volume does: $volume" ;;
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

# Two lower layers, a write, a deletion (a whiteout is a device node) and a folder made anew (an opaque attribute): what
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
