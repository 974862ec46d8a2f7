# shellcheck shell=bash
# What the outer network is like: its interface, MTU and resolver. Sourced.

# A bridge with 1500 inside a network of 1450 makes large answers vanish: TLS hangs.
read_network() {
  local interface destination _ rest mtu address
  interface=
  while read -r interface destination _ rest; do
    if [[ $destination == 00000000 ]]; then break; fi
    interface=
  done <"$R/proc/net/route"
  if [[ -z $interface ]]; then
    TOLD='no default route: k3s will not start without one'
    return
  fi
  read -r mtu <"$R/sys/class/net/$interface/mtu"
  address=$(ip -o -4 address show dev "$interface" scope global | sed -n '1s,.* inet \([0-9.]*\)/.*,\1,p')
  note mtu "$mtu"
  note interface "$interface"
  note address "$address"
  TOLD="$interface has ${address:-no IPv4 address} and MTU $mtu"
  plan_dns "$address"
}

# In a user-defined network the resolver is 127.0.0.11, which means something else in every nested network namespace
# (moby/moby#20037). Then, and only then, a forwarder answers on our own address and asks that resolver.
plan_dns() { # ADDRESS
  local key value rest loopback=no
  while read -r key value rest; do
    if [[ $key == nameserver && ($value == 127.* || $value == ::1) ]]; then loopback=yes; fi
  done <"$R/etc/resolv.conf"
  if [[ $loopback == no ]]; then
    TOLD+='; resolv.conf serves nested containers as it is'
  elif [[ -z $1 ]]; then
    TOLD+='; resolv.conf names a loopback address and there is no other to forward from'
  else
    note dns "$1"
    {
      echo "nameserver $1"
      grep -E '^(search|options)' "$R/etc/resolv.conf" || true
    } >"$RUN/resolv.conf"
    TOLD+="; DNS for nested containers is forwarded from $1"
  fi
}
