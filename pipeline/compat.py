"""Versions that are known not to work together, each with its reason and source. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.errors import Incompatible

Version = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule: `broken` tells whether these versions break it."""

    broken: Callable[[Mapping[str, Version]], bool]
    reason: str
    source: str
    next_step: str


def number(text: str) -> Version:
    """`v1.37.1+k3s1` → (1, 37, 1). Raises ValueError."""
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
    if found is None:
        raise ValueError(f"not a version: {text!r}")
    return int(found[1]), int(found[2]), int(found[3])


def _within(version: Version, *spans: tuple[Version, Version]) -> bool:
    return any(first <= version <= last for first, last in spans)


RULES = (
    Rule(
        broken=lambda v: abs(v["kubectl"][1] - v["k3s"][1]) > 1,
        reason="kubectl supports API servers within one minor version of its own",
        source="https://kubernetes.io/releases/version-skew-policy/#kubectl",
        next_step="ask for kubectl `k3s`: the newest patch of k3s's minor",
    ),
    Rule(
        broken=lambda v: _within(v["k3s"], ((1, 24, 1), (1, 24, 3))),
        reason="k3s 1.24.1 to 1.24.3 cannot use docker: dockershim was gone and cri-dockerd not yet there",
        source="https://github.com/k3s-io/k3s/issues/5741",
        next_step="choose k3s v1.24.4 or newer",
    ),
    Rule(
        broken=lambda v: (
            v["docker"] >= (25, 0, 0)
            and _within(
                v["k3s"],
                ((1, 26, 8), (1, 26, 13)),
                ((1, 27, 5), (1, 27, 10)),
                ((1, 28, 0), (1, 28, 6)),
                ((1, 29, 0), (1, 29, 1)),
            )
        ),
        reason="with Docker 25 or newer the cri-dockerd in this k3s fails with ImageInspectError and no pod starts",
        source="https://github.com/k3s-io/k3s/issues/9279",
        next_step="choose a newer patch of that k3s minor",
    ),
    Rule(
        broken=lambda v: (29, 0, 0) <= v["docker"] < (29, 3, 0) and v["k3s"] < (1, 30, 13),
        reason="Docker 29.0 to 29.2 refuses API versions below 1.44; the cri-dockerd in this k3s speaks an older one",
        source="https://github.com/docker/for-win/issues/14997, https://github.com/k3s-io/k3s/issues/12280",
        next_step="choose k3s v1.30.13 or newer, or another Docker",
    ),
)


def check(versions: Mapping[str, str]) -> None:
    """Hold exact versions against the rules. Raises Incompatible: the first one that is broken."""
    numbers = {name: number(text) for name, text in versions.items()}
    for rule in RULES:
        if rule.broken(numbers):
            raise Incompatible(
                rule.reason,
                found=", ".join(f"{name} {versions[name]}" for name in ("docker", "k3s", "kubectl")),
                where=rule.source,
                next_step=rule.next_step,
            )
