# shellcheck shell=bash disable=SC2034 # RESULT is what `step` in say.sh prints
# One iptables backend for dockerd, k3s and kube-proxy: rules in two backends cancel each other. Sourced.
# From outside: DOCKER_IPTABLES_LEGACY (as in docker:dind): legacy only.

# The tools being there says nothing: kernels drop the legacy tables, others lack nf_tables. So each candidate has to
# take rules like those that dockerd and kube-proxy will make.
choose_iptables() {
  local backends='nft legacy' backend why=
  if asked DOCKER_IPTABLES_LEGACY; then
    backends=legacy
    why=' as DOCKER_IPTABLES_LEGACY asks'
  elif has_legacy_tables; then
    # The host's own network namespace, with rules in it already.
    backends='legacy nft'
    why=' as the rules that are here already'
  fi
  for backend in $backends; do
    if takes_rules "$backend"; then
      use_backend "$backend"
      note iptables "$backend"
      export IPTABLES_MODE=$backend # for the tools bundled with k3s
      RESULT="$backend$why, proved by rules"
      if ! takes_ipv6_rules "$backend"; then
        note ip6tables off
        RESULT+="; no rules for IPv6, dockerd does without: ${REFUSED%%$'\n'*}"
      fi
      return
    fi
    why=
  done
  die iptables "no backend works ($backends); does the kernel have nf_tables or ip_tables? Last words: $REFUSED"
}

has_legacy_tables() {
  local file
  for file in ip_tables_names ip6_tables_names; do
    if [[ -r $R/proc/net/$file && -n $(<"$R/proc/net/$file") ]]; then return 0; fi
  done
  return 1
}

takes_rules() { # BACKEND
  local chain=DIND-K3S-PROBE result=0
  REFUSED=$(
    "iptables-$1-restore" --noflush 2>&1 <<END
*nat
:$chain - [0:0]
-A $chain -m addrtype --dst-type LOCAL -j RETURN
-A $chain -m comment --comment probe -j MASQUERADE
COMMIT
END
  ) || result=1
  "iptables-$1" -t nat -F "$chain" 2>/dev/null && "iptables-$1" -t nat -X "$chain" 2>/dev/null || result=1
  return $result
}

# dockerd makes chains in these tables whether a network has IPv6 or not; where it cannot, some versions warn at each
# start and others die (moby/moby#47918).
takes_ipv6_rules() { # BACKEND
  local chain=DIND-K3S-PROBE table result=0
  for table in nat filter; do
    REFUSED=$(printf '*%s\n:%s - [0:0]\nCOMMIT\n' "$table" "$chain" | "ip6tables-$1-restore" --noflush 2>&1) &&
      "ip6tables-$1" -t "$table" -X "$chain" 2>/dev/null || result=1
    if ((result)); then break; fi
  done
  return $result
}

# Debian's alternatives, so that `docker exec` and the pods' helpers see the same tools.
use_backend() { # BACKEND
  local family suffix
  for family in iptables ip6tables; do
    if [[ $R/etc/alternatives/$family -ef $R/usr/sbin/$family-$1 ]]; then continue; fi
    for suffix in '' -save -restore; do
      ln -sfn "/usr/sbin/$family-$1$suffix" "$R/etc/alternatives/$family$suffix"
    done
  done
}
