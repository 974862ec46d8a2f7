# shellcheck shell=bash disable=SC2034 # RESULT is what `step` in say.sh prints
# What the outer network is like: its interface, addresses, MTU and resolver. Sourced.
# From outside: K3S_DISABLE.

# The bridge that takes the place of a way out, and its address from a range that is not in use (RFC 5737).
NOWHERE=dind-k3s0
NOWHERE_ADDRESS=203.0.113.254/31
NOWHERE_GATEWAY=203.0.113.255

# A bridge with 1500 inside a network of 1450 makes large answers vanish: TLS hangs. flannel reads the MTU of the
# interface by itself; dockerd's is set.
read_network() {
  local interface outer mtu address addresses way=
  interface=$(default_interface)
  outer=${interface:-$(default_interface_6)}
  if [[ -z $interface ]]; then
    interface=$(first_interface)
    way="no default route${outer:+ for IPv4}"
    if ! asked K3S_DISABLE; then
      lead_nowhere "$interface"
      interface=${interface:-$NOWHERE}
      way+=': k3s needs one and has one now that leads nowhere'
      if [[ -z $outer ]]; then
        note offline yes
        way+='; images come from /app/images alone'
      fi
    fi
    if [[ -n $outer ]]; then way+='; containers and pods reach nothing outside, images are pulled over IPv6'; fi
    interface=${interface:-$outer}
    outer=${outer:-$interface}
  fi
  addresses=$(ip -o address show scope global | sed -n 's,.* inet6\? \([^/ ]*\).*,\1,p' | paste -s -d ' ')
  if [[ -n $interface ]]; then
    read -r mtu <"$R/sys/class/net/$outer/mtu"
    address=$(ip -o -4 address show dev "$interface" scope global | sed -n '1s,.* inet \([0-9.]*\)/.*,\1,p')
    note mtu "$mtu"
    note outside "$outer"
    note interface "$interface"
    note address "$address"
    note addresses "$addresses"
    RESULT="$interface has ${address:-no IPv4 address}"
    if [[ $outer != "$interface" ]]; then RESULT+="; $outer has no IPv4 address"; fi
    RESULT+=" and MTU $mtu${way:+; }"
  fi
  RESULT+=$way
  plan_dns "$addresses"
}

# The interface of the default route, if there is one.
default_interface() {
  local interface destination _
  while read -r interface destination _; do
    if [[ $destination == 00000000 ]]; then
      echo "$interface"
      return
    fi
  done <"$R/proc/net/route"
}

# The same for IPv6, where there is no other.
default_interface_6() {
  ip -6 route show default 2>/dev/null | sed -n 's,^default .*dev \([^ ]*\).*,\1,p' | sed -n 1p || true
}

# The first one with an address, as in a network that is `internal`.
first_interface() {
  ip -o -4 address show scope global | sed -n '1s,^[0-9]*: *\([^ @]*\).*,\1,p'
}

# k3s does not start without a default route (docs.k3s.io/installation/airgap). On an interface that is there, so that
# the node has its address; else on a bridge without ports, because dockerd needs bridges anyway and not every kernel has
# dummy interfaces. What is sent there fails after three seconds instead of hanging.
lead_nowhere() { # INTERFACE
  if [[ -n $1 ]]; then
    ip route add default dev "$1" metric 10000
  else
    ip link add "$NOWHERE" type bridge
    ip address add "$NOWHERE_ADDRESS" dev "$NOWHERE"
    ip link set "$NOWHERE" up
    ip route add default via "$NOWHERE_GATEWAY" dev "$NOWHERE" metric 10000
  fi
}

# Nested containers cannot ask every resolver that this one asks: 127.0.0.11 of a user-defined network means something
# else in every nested network namespace (moby/moby#20037), and their networks have no IPv6. Where none is left, dockerd
# and k3s each take 8.8.8.8 by themselves (moby/moby#28573). Nor do they see the names in /etc/hosts that are not this
# container's own (`--add-host`). Then, and only then, a forwarder asks that resolver. It answers on a link-local address
# of our own on lo: nested containers reach it through their gateway, it stays when the outer network is attached again
# with another address, and neighbours in the outer network do not get to it. Not the address of another forwarder
# further out, which docker notes in a comment of resolv.conf.
plan_dns() { # OWN-ADDRESSES
  local why number address
  why=$(why_forward "$1")
  if [[ -z $why ]]; then
    RESULT+='; resolv.conf serves nested containers as it is'
    return
  fi
  for number in {53..99}; do
    address=169.254.53.$number
    grep -qF "$address" "$R/etc/resolv.conf" || break
  done
  ip address replace "$address/32" dev lo scope host
  note dns "$address"
  {
    echo "nameserver $address"
    grep -E '^(search|options)' "$R/etc/resolv.conf" || true
  } >"$RUN/resolv.conf"
  RESULT+="; DNS for nested containers is forwarded from $address, because $why"
}

# Why resolv.conf does not serve nested containers; nothing where it does.
why_forward() { # OWN-ADDRESSES
  local key value _ why='resolv.conf names no resolver: no name outside is found; --dns ADDRESS'
  while read -r key value _; do
    if [[ $key != nameserver ]]; then continue; fi
    if [[ $value == 127.* || $value == ::1 || $value == fe80:* ]]; then
      echo "they cannot ask $value"
      return
    elif [[ $value != *:* ]]; then
      why=
    elif [[ -n $why ]]; then
      why="they cannot ask $value, having no IPv6"
    fi
  done <"$R/etc/resolv.conf"
  echo "${why:-$(other_hosts "$1")}"
}

# Names in /etc/hosts but those that docker writes by itself.
other_hosts() { # OWN-ADDRESSES
  local address names others=
  if [[ ! -e $R/etc/hosts ]]; then return; fi
  while read -r address names; do
    case "$address " in
      '#'* | ' ' | 127.* | '::1 ' | fe00:* | ff0?:*) ;;
      *) if [[ " $1 " != *" $address "* ]]; then others+=" ${names%%#*}"; fi ;;
    esac
  done <"$R/etc/hosts"
  if [[ -n $others ]]; then echo "/etc/hosts has$others"; fi
}
