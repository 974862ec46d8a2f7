"""Address ranges of pods, services and docker's networks that the outer network does not use.

A range that is both inside and outside is a part of the outer network that is not reached from in here, often the
resolver (k3d-io/k3d#342). So k3s's defaults hold unless something outside overlaps them. A cluster keeps its ranges for
its life, so they are chosen at its first start and remembered in its volume. dockerd chooses among its pools by itself,
at each start for docker0 and for a network when it is made; it is given what is free of them. No `bip`: an address that
was free at the last start may be a user's own network by now, and dockerd would die of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from dind_k3s import k3s_config
from dind_k3s.root import at

CHOICE = "/app/k3s/.dind-k3s/ranges.json"
CLUSTER = "/app/k3s/server/token"  # k3s makes it at its first start; `reset cluster` removes it, and keeps its folder
PODS, SERVICES = "cluster-cidr", "service-cidr"

# Each a pair of halves, the first for pods: k3s's default, then the rest of the private ranges.
BLOCKS = ("10.42.0.0/15", "10.64.0.0/10", "10.128.0.0/9", "10.0.0.0/10", "100.64.0.0/10", "172.16.0.0/12")

# dockerd's own pools, and others for when all of those are taken.
POOLS = ("172.17.0.0/16", "172.18.0.0/15", "172.20.0.0/14", "172.24.0.0/13", "192.168.0.0/16")
MORE_POOLS = ("10.192.0.0/12", "100.96.0.0/12")


def lines(path: str) -> list[str]:
    """The lines of a file; none when there is none."""
    try:
        return at(path).read_text().splitlines()
    except FileNotFoundError:
        return []


def is_free(network: IPv4Network, taken: Iterable[IPv4Network]) -> bool:
    return not any(network.overlaps(other) for other in taken)


def outer(env: Mapping[str, str]) -> list[IPv4Network]:
    """What is outside: routes but the default one, resolvers, proxies and servers that are named by address."""
    found = []
    for line in lines("/proc/net/route")[1:]:
        fields = line.split()
        address, mask = (IPv4Address(bytes.fromhex(fields[field])[::-1]) for field in (1, 7))
        if int(mask):
            found.append(IPv4Network((int(address), bin(int(mask)).count("1")), strict=False))
    texts = [env.get(name, "") for one in ("http_proxy", "https_proxy", "k3s_url") for name in (one, one.upper())]
    for line in lines("/etc/resolv.conf"):
        # Whom docker's resolver asks: ExtServers: [10.0.0.2 host(10.0.0.3)]; not from in here if it is in host().
        if line.startswith("nameserver ") or "ExtServers:" in line:
            texts.append(re.sub(r"host\([^)]*\)", "", line))
    for address in re.findall(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])", " ".join(texts)):
        try:
            found.append(IPv4Network(address))
        except ValueError:
            continue  # 300.1.1.1
    return list(collapse_addresses(one for one in found if not (one.is_loopback or one.is_link_local)))


def pairs() -> Iterator[tuple[IPv4Network, IPv4Network]]:
    for block in map(IPv4Network, BLOCKS):
        for pair in block.subnets(new_prefix=15):
            pods, services = pair.subnets()
            yield pods, services
    pods, services = IPv4Network("192.168.0.0/16").subnets()
    yield pods, services


def networks(text: str) -> list[IPv4Network]:
    """The IPv4 ones of a list with commas; k3s reports what is none at all."""
    found = []
    for word in text.split(","):
        try:
            found.append(IPv4Network(word.strip(), strict=False))
        except ValueError:
            continue
    return found


def cluster(env: Mapping[str, str], outside: list[IPv4Network]) -> tuple[dict[str, str], str]:
    """Ranges of pods and services, and a line about them. Remembers what a new cluster gets."""
    asked = k3s_config.given(env, PODS, SERVICES)
    default = {name: str(network) for name, network in zip((PODS, SERVICES), next(pairs()), strict=True)}
    if at(CLUSTER).exists():
        try:
            kept = dict(json.loads(at(CHOICE).read_text()))
        except (OSError, ValueError, TypeError):
            kept = {}  # a cluster from before there was a choice
        chosen, why = {**default, **kept, **asked}, "as before"
    else:
        theirs = [network for text in asked.values() for network in networks(text)]
        taken = [*outside, *theirs]
        for pair in pairs():
            chosen = {name: str(network) for name, network in zip((PODS, SERVICES), pair, strict=True)} | asked
            if all(is_free(one, taken) for one, name in zip(pair, (PODS, SERVICES), strict=True) if name not in asked):
                break
        else:
            chosen = default | asked
        at(CHOICE).parent.mkdir(parents=True, exist_ok=True)
        at(CHOICE).write_text(json.dumps(chosen) + "\n")
        why = "as asked" if len(asked) == 2 else "k3s's own" if chosen == default else "chosen"
    in_the_way = [str(one) for one in outside if not is_free(one, [n for t in chosen.values() for n in networks(t)])]
    line = f"pods have {chosen[PODS]}, services {chosen[SERVICES]}, {why}"
    if why == "chosen":
        defaults = [network for text in default.values() for network in networks(text)]
        line += f", since the outer network has {', '.join(str(one) for one in outside if not is_free(one, defaults))}"
    if in_the_way:
        line = (
            f"warning: {line}; pods will not reach {', '.join(in_the_way)} of the outer network. A cluster keeps its"
            " ranges; a new one gets others, or those of cluster-cidr and service-cidr in K3S_ARGS"
        )
    return chosen, line


def pools(outside: list[IPv4Network], inside: list[IPv4Network]) -> tuple[str, str]:
    """docker's pools as BASE:SIZE words, and a line about them; empty when dockerd's own will do."""
    taken = [*outside, *inside]
    own = [network for base in POOLS for network in IPv4Network(base).subnets(new_prefix=16)]
    if all(is_free(network, taken) for network in own):
        return "", ""
    found = []
    for bases in (POOLS, MORE_POOLS):
        for size in (16, 20):
            pieces = [
                network
                for base in bases
                if (size == 20) == base.startswith("192.168")
                for network in IPv4Network(base).subnets(new_prefix=size)
            ]
            free = collapse_addresses(piece for piece in pieces if is_free(piece, taken))
            found += [f"{network}:{size}" for network in free]
        if found:
            break
    if not found:
        return "", ""
    return " ".join(found), f"docker's networks come from {', '.join(word.partition(':')[0] for word in found)}"


def choose(env: Mapping[str, str], *, with_k3s: bool) -> tuple[dict[str, str], list[str]]:
    """Facts (cluster-cidr, service-cidr, docker-pools) and lines about them."""
    outside = outer(env)
    chosen: dict[str, str] = {}
    messages = []
    if with_k3s:
        chosen, line = cluster(env, outside)
        messages.append(line)
    inside = [network for text in chosen.values() for network in networks(text)]
    found, line = pools(outside, inside)
    if found:
        chosen["docker-pools"] = found
        messages.append(line)
    return chosen, messages
