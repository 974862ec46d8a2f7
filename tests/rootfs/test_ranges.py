"""Ranges inside that the outer network does not use."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from dind_k3s import ranges
from hypothesis import given
from hypothesis import strategies as st

HEADER = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container's files: no routes but the default one, a resolver."""
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    for folder in ("proc/net", "etc", "app/k3s"):
        (tmp_path / folder).mkdir(parents=True)
    routes(tmp_path)
    (tmp_path / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    return tmp_path


def routes(root: Path, *outside: str) -> None:
    lines = ["eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0"]
    for network in map(IPv4Network, outside):
        address, mask = (one.packed[::-1].hex().upper() for one in (network.network_address, network.netmask))
        lines.append(f"eth0\t{address}\t00000000\t0001\t0\t0\t0\t{mask}\t0\t0\t0")
    (root / "proc/net/route").write_text(HEADER + "\n".join(lines) + "\n")


def test_k3s_and_docker_keep_their_own_where_nothing_is_in_the_way() -> None:
    facts, messages = ranges.choose({}, with_k3s=True)
    assert facts == {"cluster-cidr": "10.42.0.0/16", "service-cidr": "10.43.0.0/16"}
    assert messages == ["pods have 10.42.0.0/16, services 10.43.0.0/16, k3s's own"]
    assert ranges.choose({}, with_k3s=False) == ({}, [])


@pytest.mark.parametrize(
    ("outside", "pods"),
    [("10.42.7.0/24", "10.64.0.0/16"), ("10.43.0.0/16", "10.64.0.0/16"), ("10.0.0.0/8", "100.64.0.0/16")],
)
def test_another_pair_is_chosen_and_the_reason_told(root: Path, outside: str, pods: str) -> None:
    routes(root, outside)
    facts, messages = ranges.choose({}, with_k3s=True)
    assert facts["cluster-cidr"] == pods
    assert messages[0].endswith(f"chosen, since the outer network has {outside}")


def test_a_cluster_keeps_what_it_began_with_and_a_later_clash_is_a_warning(root: Path) -> None:
    ranges.choose({}, with_k3s=True)
    (root / "app/k3s/server").mkdir()
    (root / "app/k3s/server/token").touch()
    routes(root, "10.42.0.0/16")
    facts, messages = ranges.choose({}, with_k3s=True)
    assert facts["cluster-cidr"] == "10.42.0.0/16"
    assert messages[0].startswith(
        "warning: pods have 10.42.0.0/16, services 10.43.0.0/16, as before; pods will not reach 10.42."
    )
    (root / "app/k3s/.dind-k3s/ranges.json").write_text("{broken")
    assert ranges.choose({}, with_k3s=True)[0] == facts


def test_a_cluster_that_was_reset_gets_others(root: Path) -> None:
    ranges.choose({}, with_k3s=True)
    (root / "app/k3s/server/manifests").mkdir(parents=True)  # what `reset cluster` leaves
    routes(root, "10.42.0.0/16")
    facts, messages = ranges.choose({}, with_k3s=True)
    assert facts["cluster-cidr"] == "10.64.0.0/16"
    assert "chosen" in messages[0]
    assert "warning" not in messages[0]


@pytest.mark.parametrize(
    ("args", "files", "pods", "services"),
    [
        ("--cluster-cidr=10.9.0.0/16", {}, "10.9.0.0/16", "10.43.0.0/16"),
        ("--service-cidr 10.42.0.0/20", {}, "10.64.0.0/16", "10.42.0.0/20"),
        (
            "",
            {"app/k3s/config.yaml": "cluster-cidr: 10.8.0.0/16,fd00::/56  # mine\n"},
            "10.8.0.0/16,fd00::/56",
            "10.43.0.0/16",
        ),
        ("", {"app/k3s/config.yaml": "cluster-cidr:\n- 10.8.0.0/16\n"}, "10.8.0.0/16", "10.43.0.0/16"),
        ("", {"etc/rancher/k3s/config.yaml": "a: *broken\n"}, "10.42.0.0/16", "10.43.0.0/16"),
    ],
)
def test_what_the_user_asked_of_k3s_wins(
    root: Path, args: str, files: dict[str, str], pods: str, services: str
) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    facts, _ = ranges.choose({"K3S_ARGS": args}, with_k3s=True)
    assert (facts["cluster-cidr"], facts["service-cidr"]) == (pods, services)
    kept = json.loads((root / "app/k3s/.dind-k3s/ranges.json").read_text())
    assert kept == {"cluster-cidr": pods, "service-cidr": services}


def test_resolvers_and_proxies_are_outside_but_those_of_the_host_alone(root: Path) -> None:
    (root / "etc/resolv.conf").write_text("nameserver 127.0.0.11\n# ExtServers: [10.42.0.53 host(10.43.0.53)]\n")
    assert [str(one) for one in ranges.outer({"https_proxy": "http://10.1.2.3:3128"})] == [
        "10.1.2.3/32",
        "10.42.0.53/32",
    ]


def test_docker_gets_what_is_free_of_its_pools(root: Path) -> None:
    routes(root, "172.17.0.0/16", "192.168.0.0/17")
    facts, messages = ranges.choose({}, with_k3s=False)
    assert facts["docker-pools"].split() == [
        "172.18.0.0/15:16",
        "172.20.0.0/14:16",
        "172.24.0.0/13:16",
        "192.168.128.0/17:20",
    ]
    assert messages == ["docker's networks come from 172.18.0.0/15, 172.20.0.0/14, 172.24.0.0/13, 192.168.128.0/17"]


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 30)), max_size=12))
def test_whatever_is_outside_nothing_inside_overlaps_it_or_it_is_told(outside: list[tuple[int, int]]) -> None:
    taken = [IPv4Network(one, strict=False) for one in outside]
    found, _ = ranges.pools(taken, [])
    for word in found.split():
        base, _, size = word.partition(":")
        assert ranges.is_free(IPv4Network(base), taken)
        assert IPv4Network(base).prefixlen <= int(size)
