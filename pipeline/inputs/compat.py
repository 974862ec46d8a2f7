"""Versions that are known not to work together, each with its reason and source. No I/O.

A rule can need versions from inside the binaries (`Lock.embedded`). If the lock lacks them, the rule uses known
releases, or is reported as not checked. The docker CLI and dockerd are from one archive, so no rule compares them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.core.errors import Incompatible

Version = tuple[int, int, int]


class State(StrEnum):
    """Why a rule is reported."""

    BROKEN = "broken"
    UNCHECKED = "not checked"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The versions of a lock, as numbers."""

    versions: Mapping[str, Version]
    embedded: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # component → name → version

    def __getitem__(self, component: str) -> Version:
        return self.versions[component]

    def inside(self, component: str, name: str) -> Version | None:
        """Return the version of a program or library in a component; None if the lock lacks it."""
        text = self.embedded.get(component, {}).get(name)
        return number(text) if text else None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A combination of versions that is broken."""

    name: str
    broken: Callable[[Facts], bool | None]  # None: the lock lacks a version for it
    reason: str
    source: str
    next_step: str
    soft: bool = False  # a warning, not an error
    needs: str = ""  # what the lock can lack


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A broken soft rule, or a rule that was not checked."""

    rule: Rule
    state: State

    def __str__(self) -> str:
        if self.state is State.UNCHECKED:
            return f"{self.rule.name} not checked: the lock does not say {self.rule.needs} ({self.rule.source})"
        return f"{self.rule.name}: {self.rule.reason} ({self.rule.source}); {self.rule.next_step}"


def number(text: str) -> Version:
    """Parse a version: `v1.37.1+k3s1` → (1, 37, 1). Raises ValueError."""
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise ValueError(f"not a version: {text!r}")
    return int(match[1]), int(match[2]), int(match[3])


# Docker release → the newest and the oldest API (1.x) of its dockerd; the newest is also that of its client library.
# Source: https://docs.docker.com/reference/api/engine/#api-version-matrix
_API = (
    ((19, 3), (40, 12)),
    ((20, 10), (41, 12)),
    ((23, 0), (42, 12)),
    ((24, 0), (43, 12)),
    ((25, 0), (44, 24)),
    ((26, 0), (45, 24)),
    ((27, 0), (46, 24)),
    ((27, 2), (47, 24)),
    ((28, 0), (48, 24)),
    ((28, 1), (49, 24)),
    ((28, 2), (50, 24)),
    ((28, 3), (51, 24)),
    ((29, 0), (52, 44)),
    ((29, 2), (53, 44)),
    ((29, 3), (54, 40)),
)

# Releases of k3s, first and last, whose cri-dockerd fails with ImageInspectError.
_IMAGE_INSPECT = (
    ((1, 26, 8), (1, 26, 13)),
    ((1, 27, 5), (1, 27, 10)),
    ((1, 28, 0), (1, 28, 6)),
    ((1, 29, 0), (1, 29, 1)),
)


def _api(docker: Version) -> tuple[int, int]:
    """Return the newest and the oldest API of a Docker release; a newer release is like the last one of the table."""
    return next((api for release, api in reversed(_API) if release <= docker[:2]), _API[0][1])


def _cri_dockerd_too_old(facts: Facts) -> bool:
    """Return whether dockerd supports no API of the cri-dockerd in k3s."""
    _, floor = _api(facts["docker"])
    if (client := facts.inside("k3s", "docker-client")) is not None:
        return _api(client)[0] < floor
    if (shim := facts.inside("k3s", "cri-dockerd")) is not None:
        return shim < (0, 3, 17) and floor >= 44
    # cri-dockerd 0.3.17 is the first with Docker 25's client library (Mirantis/cri-dockerd#395); these are the first
    # releases of k3s with it (k3s-io/k3s#12280 to #12283).
    first = {30: (1, 30, 13), 31: (1, 31, 9), 32: (1, 32, 5)}.get(facts["k3s"][1], (1, 33, 1))
    return floor >= 44 and facts["k3s"] < first


def _no_common_api(component: str) -> Callable[[Facts], bool | None]:
    """Return a check of whether a plugin's client library and dockerd have no API version in common."""

    def broken(facts: Facts) -> bool | None:
        newest, oldest = _api(facts["docker"])
        moby, docker = facts.inside(component, "moby-client"), facts.inside(component, "docker-client")
        if moby is not None:
            # MinAPIVersion is 1.44 up to 0.2 (https://pkg.go.dev/github.com/moby/moby/client@v0.2.1#MinAPIVersion) and
            # was lowered together with dockerd's (moby/moby#52067, released with Docker 29.3 and client 0.3.0).
            return newest < (44 if moby < (0, 3, 0) else 40)
        if docker is not None:
            return _api(docker)[0] < oldest
        return None

    return broken


RULES = (
    Rule(
        name="kubectl-skew",
        broken=lambda f: abs(f["kubectl"][1] - f["k3s"][1]) > 1,
        reason="kubectl supports API servers one minor version older or newer",
        source="https://kubernetes.io/releases/version-skew-policy/#kubectl",
        next_step="use kubectl `k3s`: the newest patch of k3s's minor",
    ),
    Rule(
        name="kubectl-same-minor",
        broken=lambda f: abs(f["kubectl"][1] - f["k3s"][1]) == 1,
        reason="kubectl is of another minor version than k3s: supported, but each lacks what is new in the other",
        source="https://kubernetes.io/releases/version-skew-policy/#kubectl",
        next_step="use kubectl `k3s`: the newest patch of k3s's minor",
        soft=True,
    ),
    Rule(
        name="k3s-without-docker",
        broken=lambda f: (1, 24, 1) <= f["k3s"] <= (1, 24, 3),
        reason="k3s 1.24.1 to 1.24.3 cannot use docker: dockershim was gone and cri-dockerd not yet there",
        source="https://github.com/k3s-io/k3s/issues/5741",
        next_step="choose k3s v1.24.4 or newer",
    ),
    Rule(
        name="cri-dockerd-image-inspect",
        broken=lambda f: f["docker"] >= (25, 0, 0) and any(a <= f["k3s"] <= z for a, z in _IMAGE_INSPECT),
        reason="with Docker 25 or newer the cri-dockerd in this k3s fails with ImageInspectError and no pod starts",
        source="https://github.com/k3s-io/k3s/issues/9279",
        next_step="choose a newer patch of that k3s minor",
    ),
    Rule(
        name="cri-dockerd-api-floor",
        broken=_cri_dockerd_too_old,
        reason="Docker 29.0 to 29.2 refuses API versions below 1.44; the cri-dockerd in this k3s speaks an older one",
        source="https://github.com/docker/for-win/issues/14997, https://github.com/k3s-io/k3s/issues/12280",
        next_step="choose k3s v1.30.13, v1.31.9, v1.32.5, v1.33.1 or newer, or Docker 29.3 or newer, which takes 1.40",
    ),
    *(
        Rule(
            name=f"{plugin}-api",
            broken=_no_common_api(plugin),
            reason=f"{plugin} and dockerd have no version of the Docker API in common",
            source="https://docs.docker.com/reference/api/engine/#api-version-matrix, "
            "https://github.com/docker/compose/issues/13389",
            next_step=f"choose a newer {plugin}, or a Docker of its time",
            needs=f"which docker client library {plugin} was built with",
        )
        for plugin in ("buildx", "compose")
    ),
    Rule(
        name="cgroup-v1",
        broken=lambda f: f["k3s"] >= (1, 35, 0),
        reason="from Kubernetes 1.35 on kubelet does not start on a host with cgroup v1 unless failCgroupV1 is false",
        source="https://github.com/kubernetes/enhancements/tree/master/keps/sig-node/5573-remove-cgroup-v1",
        next_step="the image sets failCgroupV1: false on such hosts, which works until Kubernetes removes it",
        soft=True,
    ),
)


def check(versions: Mapping[str, str], embedded: Mapping[str, Mapping[str, str]] | None = None) -> tuple[Finding, ...]:
    """Check exact versions by the rules; return broken soft rules and rules that were not checked.

    `embedded`: as in the lock. Raises Incompatible with every other broken rule.
    """
    facts = Facts(versions={name: number(text) for name, text in versions.items()}, embedded=embedded or {})
    states = {rule: rule.broken(facts) for rule in RULES}
    if broken := [rule for rule, is_broken in states.items() if is_broken and not rule.soft]:
        raise Incompatible(
            "these versions are known not to work together"
            + "".join(f"\n    {rule.name}: {rule.reason} ({rule.source})" for rule in broken),
            found=", ".join(f"{name} {version}" for name, version in versions.items()),
            next_step="; ".join(dict.fromkeys(rule.next_step for rule in broken)),
        )
    return tuple(
        Finding(rule=rule, state=State.UNCHECKED if is_broken is None else State.BROKEN)
        for rule, is_broken in states.items()
        if is_broken is not False
    )
