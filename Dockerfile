# check=error=true
#
# dind-k3s: dockerd and k3s in one privileged container.
#
# No "# syntax=" line: it would have BuildKit pull a frontend from a registry. The one built in is enough, and it is
# pinned with the engine.
#
# Named contexts, handed in by the bake file:
#   base       a Debian image for every platform; pinned by digest outside of this file
#   artifacts  <arch>/{docker.tgz,buildx,compose,k3s,kubectl,manifest.json,packages/*.deb}, all verified; <arch> is
#              TARGETARCH. The folder of BUILDARCH is needed too: its python3 and openssl do the work for the target.
#              A step mounts what it needs of them and no more: BuildKit asks for each mount's files by themselves, and
#              no step has to wait for the rest
#              For the target airgap also <arch>/airgap/{k3s-airgap-images-<arch>.tar.zst,manifest.json}
#
# Every RUN runs on the build platform, without network. Nothing of another platform is executed, so that arm64 comes
# out of an amd64 machine that has no emulator. What maintainer scripts do at installation is done here by name.

# target: the base as it will be in the image; only looked into
FROM base AS target

# worker: the base on the build platform, with the helpers of the stages below
FROM --platform=$BUILDPLATFORM base AS worker
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# fits ARCH FILE…: refuse what is no executable for it, after a look at the machine type in its ELF header
COPY --chmod=0755 <<"EOF" /build/fits
#!/bin/bash
set -euo pipefail
declare -A machines=([amd64]=3e00 [arm64]=b700)
want=${machines[$1]:?no ELF machine number known for $1}
for file in "${@:2}"; do
  magic=$(od -An -tx1 -N4 "$file" | tr -d ' \n')
  if [[ $magic == 7f454c46 ]]; then
    found=$(od -An -tx1 -j18 -N2 "$file" | tr -d ' \n')
    if [[ $found != "$want" ]]; then
      echo "$file: expected an executable for $1 (ELF machine $want), found machine $found" >&2
      exit 1
    fi
  elif [[ $magic == 2321* ]] && grep -aq 'dind-k3s stand-in' "$file"; then
    echo "$file: a rehearsal's stand-in, a script"
  else
    echo "$file: expected an ELF executable for $1, found a file that starts with 0x$magic" >&2
    exit 1
  fi
done
EOF

# put ARCH FILE TARGET: place one executable
COPY --chmod=0755 <<"EOF" /build/put
#!/bin/bash
set -euo pipefail
/build/fits "$1" "$2"
install -D -m 0755 "$2" "$3"
EOF

# unpack ROOT DEB: a package's files, no scripts, and tell their names. Its /lib/x lands in /usr/lib/x through the
# merged-/usr links
COPY --chmod=0755 <<"EOF" /build/unpack
#!/bin/bash
set -euo pipefail
dpkg-deb --fsys-tarfile "$2" | tar -C "$1" -xv --keep-directory-symlink
EOF

# settle ROOT: one time for every file, so that a layer is the same bytes on whatever day it is made, and whether it is
# made or found in a builder's cache: that knows files by their content and mode, and not by their time. The exporter's
# own way would give them the day of the lock, and an update of one component would ship all layers again
COPY --chmod=0755 <<"EOF" /build/settle
#!/bin/bash
set -euo pipefail
find "$1" -exec touch --no-dereference --date=2020-01-01T00:00:00Z {} +
EOF

# tools: the build platform's own python3 and openssl, and the CA bundle, which is the same for every platform
FROM worker AS tools
ARG BUILDARCH
RUN --network=none --mount=type=bind,from=artifacts,source=${BUILDARCH}/packages,target=/debs <<"EOF"
if ! compgen -G '/debs/python3_*.deb' >/dev/null; then
  echo "the artifacts have no $BUILDARCH/packages: this machine needs its own python3 to build for others" >&2
  exit 1
fi
# What these two need beyond the base, and not all of the packages: everything else waits for this step.
shopt -s nullglob
for deb in /debs/{ca-certificates,libexpat1,libpython3*,libssl3*,openssl,python3*}_*.deb; do
  /build/unpack / "$deb" >/dev/null
done
if [[ ! -e /etc/ssl/certs/ca-certificates.crt ]]; then
  (cd /usr/share/ca-certificates && find . -name '*.crt' -printf '%P\n' | sort) >/etc/ca-certificates.conf
  update-ca-certificates --hooksdir '' >/dev/null
fi
EOF

# packages: the target's Debian packages, unpacked, set up, and entered into the dpkg database
FROM tools AS packages
ARG TARGETARCH
RUN --network=none --mount=type=bind,from=artifacts,source=${TARGETARCH}/packages,target=/debs --mount=type=bind,from=target,target=/target <<"EOF"
mkdir -p /layer/usr/{bin,sbin,lib,lib64}
ln -s usr/{bin,sbin,lib,lib64} /layer/

# The dpkg database, as dpkg would have left it: scanners read it, and apt works on in images built on this one. Few
# programs are started for each package, for there are a hundred of them.
database=/layer/var/lib/dpkg info=/layer/var/lib/dpkg/info
mkdir -p $info
declare -A postinst=() md5=()
names=()
for deb in /debs/*.deb; do
  IFS=, read -r name arch multi < <(dpkg-deb --show --showformat='${Package},${Architecture},${Multi-Arch}\n' "$deb")
  names+=("$name")
  key=$name
  if [[ $multi == same ]]; then key=$name:$arch; fi
  /build/unpack /layer "$deb" >"$info/$key.list"
  # ./postinst becomes name.postinst, and the folder itself stays what it is
  dpkg-deb --ctrl-tarfile "$deb" | tar -C $info -x --transform="s,^\\./\\(.\\),$key.\\1,"
  if [[ -e $info/$key.postinst ]]; then postinst[$name]=$info/$key.postinst; fi
done
sed -i 's,^\.,,; s,/$,,; s,^$,/.,' $info/*.list
while read -r sum path; do md5[/$path]=$sum; done < <(
  cd /layer && sed -n 's,^/,,p' $info/*.conffiles | xargs -d '\n' md5sum
)
printf '%s\n' "${names[@]}" | awk 'NR == FNR { ours[$1]; next }
  /^Package: / { keep = !($2 in ours) }
  keep' - /target/var/lib/dpkg/status >$database/status
for control in $info/*.control; do
  while IFS= read -r line; do
    echo "$line"
    if [[ $line == Package:* ]]; then echo 'Status: install ok installed'; fi
  done <"$control"
  if [[ -s ${control%.control}.conffiles ]]; then
    echo Conffiles:
    while read -r path; do
      if [[ $path == /* ]]; then echo " $path ${md5[$path]}"; fi
    done <"${control%.control}.conffiles"
  fi
  echo
done >>$database/status
rm $info/*.control

# What each postinst does at a first installation, in an image. A package that is not named here stops the build: read
# its postinst, do here what it does, and name it.
for name in "${!postinst[@]}"; do
  case $name in
    iptables | xz-utils) ;;                                # update-alternatives alone: run below, in the root of the target
    ca-certificates) ;;                                    # CA bundle and hash links: from the stage tools
    dnsmasq-base | openssh-client) ;;                      # a user; a group and the right to use it
    fuse3 | netbase | python3 | python3.13-minimal) ;;     # a mode; a file; a file; folders
    readline-common | tzdata) ;;                           # a file; a link
    libpython3* | python3-* | python3.13 | supervisor) ;;  # byte code
    # Upgrades, systemd, sysv-rc, debconf questions answered with no, comments in a file: nothing that is needed here.
    e2fsprogs | git | iproute2 | kmod | libgssapi-krb5-2 | libssl3t64 | libwrap0 | login.defs | mount) ;;
    openssl | passwd | perl | procps) ;;
    *)
      echo "nobody has looked at the postinst of $name yet: see this step of the Dockerfile" >&2
      exit 1
      ;;
  esac
done
for name in iptables xz-utils; do
  if [[ -n ${postinst[$name]-} ]]; then
    # update-alternatives works below DPKG_ROOT.
    DPKG_ROOT=/layer sh "${postinst[$name]}" configure 2>/dev/null
  fi
done
rm -rf /layer/var/log
if [[ ! -e /target/etc/ssl/certs/ca-certificates.crt ]]; then
  mkdir -p /layer/etc/ssl /layer/usr/local/share/ca-certificates
  cp -a /etc/ssl/certs /layer/etc/ssl/
  cp -a /etc/ca-certificates.conf /layer/etc/
fi
# Fixed ids from the range of system accounts: files in volumes must keep their owners from release to release.
add() { # FILE ENTRY: in the base's own file; a base without shadow files stays without
  if [[ -e /target/etc/$1 ]]; then
    [[ -e /layer/etc/$1 ]] || cp -a "/target/etc/$1" /layer/etc/
    echo "$2" >>"/layer/etc/$1"
  fi
}
add passwd 'dnsmasq:x:990:65534:dnsmasq:/var/lib/misc:/usr/sbin/nologin'
add shadow 'dnsmasq:!:19000::::::'
add group '_ssh:x:991:'
add gshadow '_ssh:!::'
if [[ -e /layer/usr/bin/ssh-agent ]]; then chgrp 991 /layer/usr/bin/ssh-agent; chmod 2755 /layer/usr/bin/ssh-agent; fi
if [[ -e /layer/usr/bin/fusermount3 ]]; then chmod 4755 /layer/usr/bin/fusermount3; fi
printf '%s\t%s\n' default 0.0.0.0 loopback 127.0.0.0 link-local 169.254.0.0 >/layer/etc/networks
mkdir -p /layer/etc/python3 /layer/usr/local/lib/python3.13/dist-packages
printf '[DEFAULT]\nbyte-compile = standard\n' >/layer/etc/python3/debian_config
if [[ -e /layer/usr/share/readline/inputrc ]]; then cp -p /layer/usr/share/readline/inputrc /layer/etc/inputrc; fi
if [[ -d /layer/usr/share/zoneinfo ]]; then ln -s /usr/share/zoneinfo/Etc/UTC /layer/etc/localtime; fi
# No ldconfig: ld.so looks into Debian's multiarch folders anyway when its cache does not know a library, and the cache
# of another platform cannot be written here. A package with its own library folders would break that promise.
if compgen -G '/layer/etc/ld.so.conf.d/*' >/dev/null; then
  echo "a package installs /etc/ld.so.conf.d: its folders need an ld.so.cache" >&2
  exit 1
fi

# As in Debian's own slim images: no manuals, translations and documentation, but every licence.
find /layer/usr/share/doc -mindepth 2 -not -type d -not -name copyright -delete
find /layer/usr/share/doc -type d -empty -delete
rm -rf /layer/usr/share/{man,info,locale,lintian,bash-completion,zsh,doc-base,bug,gitweb,perl/5*/pod,git-core/contrib} \
  /layer/usr/lib/python3/dist-packages/*/tests /layer/usr/share/fish

# git has each of its large programs twice, in /usr/bin and beside its others. A symlink and no second name: a builder's
# cache does not see what is a hard link, and would give back a layer that has two files.
for name in git git-shell scalar; do
  if cmp --silent /layer/usr/{bin,lib/git-core}/$name; then ln -sf ../../bin/$name /layer/usr/lib/git-core/$name; fi
done

# Byte code, so that nothing is compiled at each start nor written into the container. Unchecked hashes instead of
# times, and a fixed hash seed: the same source gives the same bytes.
PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode unchecked-hash -s /layer \
  -x '/(idlelib|lib2to3|pydoc_data|turtledemo)/' /layer/usr/lib/python3 /layer/usr/lib/python3.13

# The links exist in the base; a layer must not bring them, nor folders through them.
rm /layer/{bin,sbin,lib,lib64}
rmdir --ignore-fail-on-non-empty /layer/usr/lib64
for way in bin sbin lib lib64 var/run var/lock run tmp proc sys dev; do
  if [[ -e /layer/$way ]]; then find "/layer/$way" | head; echo "a package installs files below /$way" >&2; exit 1; fi
done
/build/settle /layer
EOF

# docker: dockerd, containerd, runc and the client
FROM worker AS docker
ARG TARGETARCH
RUN --network=none --mount=type=bind,from=artifacts,source=${TARGETARCH}/docker.tgz,target=/in/docker.tgz <<"EOF"
mkdir -p /layer/usr/local/bin
# By name: a program that is missing stops the build, and one that is new does not come in unseen.
tar -C /layer/usr/local/bin --strip-components=1 --no-same-owner -xzf /in/docker.tgz \
  docker/{dockerd,docker-init,docker-proxy,docker,containerd,containerd-shim-runc-v2,ctr,runc}
chmod 0755 /layer/usr/local/bin/*
/build/fits "$TARGETARCH" /layer/usr/local/bin/*
/build/settle /layer
EOF

# buildx, compose: the client's plugins, where both docker.com's client and Debian's look for them
FROM worker AS buildx
ARG TARGETARCH
RUN --network=none --mount=type=bind,from=artifacts,source=${TARGETARCH}/buildx,target=/in/buildx \
  /build/put "$TARGETARCH" /in/buildx /layer/usr/local/libexec/docker/cli-plugins/docker-buildx && /build/settle /layer
FROM worker AS compose
ARG TARGETARCH
RUN --network=none --mount=type=bind,from=artifacts,source=${TARGETARCH}/compose,target=/in/compose \
  /build/put "$TARGETARCH" /in/compose /layer/usr/local/libexec/docker/cli-plugins/docker-compose && /build/settle /layer

# k3s, kubectl: one file each
FROM worker AS k3s
ARG TARGETARCH
RUN --network=none --mount=type=bind,from=artifacts,source=${TARGETARCH}/k3s,target=/in/k3s \
  /build/put "$TARGETARCH" /in/k3s /layer/usr/local/bin/k3s && /build/settle /layer
FROM worker AS kubectl
ARG TARGETARCH
RUN --network=none --mount=type=bind,from=artifacts,source=${TARGETARCH}/kubectl,target=/in/kubectl \
  /build/put "$TARGETARCH" /in/kubectl /layer/usr/local/bin/kubectl && /build/settle /layer

# own: rootfs/ with its modes, stated here once, and the folders of the contract
FROM tools AS own
RUN --network=none --mount=type=bind,source=rootfs,target=/in <<"EOF"
cp -R /in /layer
find /layer -type d -exec chmod 0755 {} +
find /layer -type f -exec chmod 0644 {} +
chmod 0755 /layer/usr/local/bin/* /layer/usr/local/sbin/* /layer/usr/local/lib/dind-k3s/run-*
PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode unchecked-hash -s /layer /layer/usr/local/lib/dind-k3s
mkdir -p /layer/app/{images,k3s,logs,manifests} /layer/etc/rancher /layer/var/lib/{docker,kubelet}
# k3s writes the node's password there whatever its data-dir is; without it a re-created node is refused.
ln -s /app/k3s/.dind-k3s/node /layer/etc/rancher/node
/build/settle /layer
EOF

# manifest: which version of what is in here, where it came from, its licence, and the digest of each of its files
FROM tools AS manifest
ARG TARGETARCH
RUN --network=none --mount=type=bind,from=artifacts,source=${TARGETARCH}/manifest.json,target=/in/manifest.json \
  --mount=type=bind,from=docker,source=/layer,target=/parts/docker \
  --mount=type=bind,from=buildx,source=/layer,target=/parts/buildx \
  --mount=type=bind,from=compose,source=/layer,target=/parts/compose \
  --mount=type=bind,from=k3s,source=/layer,target=/parts/k3s \
  --mount=type=bind,from=kubectl,source=/layer,target=/parts/kubectl \
  --mount=type=bind,from=own,source=/layer,target=/parts/dind-k3s <<"EOF"
mkdir -p /layer/usr/share/dind-k3s
python3 -I -S /parts/dind-k3s/usr/local/lib/dind-k3s record /in/manifest.json /parts >/layer/usr/share/dind-k3s/manifest.json
/build/settle /layer
EOF

# image: one layer for each component, those that change least first, so that a new kubectl ships kubectl alone
FROM base AS image
COPY --link --from=packages /layer/ /
COPY --link --from=docker /layer/ /
COPY --link --from=buildx /layer/ /
COPY --link --from=compose /layer/ /
COPY --link --from=k3s /layer/ /
COPY --link --from=kubectl /layer/ /
COPY --link --from=own /layer/ /
COPY --link --from=manifest /layer/ /
# container=docker: how dockerd, runc and systemd's tools learn that AppArmor and cgroups are handed down to them
ENV KUBECONFIG=/app/k3s/k3s.yaml \
    K3S_CONFIG_FILE=/run/dind-k3s/k3s/config.yaml \
    container=docker
VOLUME ["/var/lib/docker", "/app/k3s"]
# Only this one: GitLab's runner waits for every exposed port.
EXPOSE 6443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --retries=3 --start-period=300s --start-interval=2s CMD ["/usr/local/bin/healthcheck"]
ENTRYPOINT ["/usr/local/sbin/dind-k3s-entrypoint"]

# system-images: k3s's own archive of them for the target airgap, with the checksum that tells run-preload a new one from
# an old one, and the manifest with both
FROM tools AS system-images
ARG TARGETARCH
RUN --network=none --mount=type=bind,from=artifacts,source=${TARGETARCH}/airgap,target=/in \
  --mount=type=bind,from=image,source=/usr,target=/image <<"EOF"
install -D -m 0644 -t /parts/k3s-airgap-images/usr/share/dind-k3s/images /in/*.tar.zst
cd /parts/k3s-airgap-images/usr/share/dind-k3s/images || exit
sha256sum -- *.tar.zst >SHA256SUMS
python3 -I -S /image/local/lib/dind-k3s record /in/manifest.json /parts /image/share/dind-k3s/manifest.json >/manifest.json
mv /manifest.json /parts/k3s-airgap-images/usr/share/dind-k3s/
mv /parts/k3s-airgap-images /layer
/build/settle /layer
EOF

# airgap: the image, and one layer more
FROM image AS airgap
COPY --link --from=system-images /layer/ /
