# shellcheck shell=bash disable=SC2034 # RESULT is what `step` in say.sh prints
# State in the container's own layer that a kill or a power cut left behind. Sourced.

# /run is no tmpfs here. A pid file of the last life names a process that exists again, as another one, and dockerd
# then refuses to start (docker-library/docker#104). No container runs yet, so all addresses are free (k3s-io/k3s#6185).
remove_leftovers() {
  local path
  for path in run/docker run/containerd run/k3s run/flannel run/xtables.lock var/lib/cni; do
    rm -rf --one-file-system "${R}/${path:?}" 2>/dev/null ||
      warn leftovers "/$path could not be removed; is something of the host mounted there?"
  done
  # k3s writes them again where it runs flannel, and only there does readiness wait for flannel.
  rm -f "$R"/app/k3s/agent/etc/{flannel/net-conf.json,cni/net.d/10-flannel.conflist} 2>/dev/null || true
  rm -f "$R"/run/docker*.pid "$R"/run/container*.pid "$R"/run/supervisord.pid "$R"/run/supervisor.sock 2>/dev/null || true
  if [[ -S $R/run/docker.sock ]]; then
    rm -f "$R/run/docker.sock" 2>/dev/null ||
      die leftovers "another engine's /var/run/docker.sock is mounted here; this image has its own, leave that mount out"
  fi
  RESULT='of an earlier life are gone'
}
