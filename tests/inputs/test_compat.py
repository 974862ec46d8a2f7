from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.core.errors import Incompatible
from pipeline.inputs import compat
from pipeline.inputs.compat import Finding, State

DOCS = Path(__file__).parents[2] / "docs" / "versions.md"
GOOD = {"docker": "29.7.2", "k3s": "v1.37.1+k3s1", "kubectl": "v1.37.1", "buildx": "0.36.1", "compose": "5.4.0"}
KNOWN = {"buildx": {"moby-client": "v0.3.0"}, "compose": {"moby-client": "v0.3.0"}}
BEFORE_1_35 = {"k3s": "v1.34.3+k3s1", "kubectl": "v1.34.3"}


def names(findings: tuple[Finding, ...], state: State) -> set[str]:
    return {finding.rule.name for finding in findings if finding.state is state}


def test_the_committed_versions_are_compatible() -> None:
    findings = compat.check(GOOD, KNOWN)
    assert names(findings, State.UNCHECKED) == set()
    assert names(findings, State.BROKEN) == {"cgroup-v1"}
    assert "failCgroupV1" in str(findings[0])


def test_compatible_versions_have_no_findings() -> None:
    assert compat.check(GOOD | BEFORE_1_35, KNOWN) == ()


@pytest.mark.parametrize(
    ("changed", "source"),
    [
        ({"kubectl": "v1.35.9"}, "version-skew-policy"),
        ({"k3s": "v1.24.2+k3s1", "kubectl": "v1.24.2", "docker": "20.10.24"}, "5741"),
        ({"k3s": "v1.28.6+k3s1", "kubectl": "v1.28.6", "docker": "25.0.0"}, "9279"),
        ({"k3s": "v1.26.13+k3s1", "kubectl": "v1.26.1", "docker": "25.0.0"}, "9279"),
        ({"k3s": "v1.27.5+k3s1", "kubectl": "v1.27.5", "docker": "27.5.1"}, "9279"),
        ({"k3s": "v1.29.15+k3s1", "kubectl": "v1.29.9", "docker": "29.1.0"}, "14997"),
        ({"k3s": "v1.30.12+k3s1", "kubectl": "v1.30.9", "docker": "29.2.9"}, "14997"),
        ({"k3s": "v1.31.8+k3s1", "kubectl": "v1.31.8", "docker": "29.0.0"}, "14997"),
        ({"k3s": "v1.32.4+k3s1", "kubectl": "v1.32.4", "docker": "29.0.0"}, "14997"),
        ({"k3s": "v1.33.0+k3s1", "kubectl": "v1.33.0", "docker": "29.0.0"}, "14997"),
    ],
)
def test_a_broken_combination_is_refused_with_its_source(changed: dict[str, str], source: str) -> None:
    with pytest.raises(Incompatible, match=source) as refused:
        compat.check(GOOD | changed)
    assert refused.value.exit_code == 6
    for name, version in changed.items():
        assert f"{name} {version}" in str(refused.value)
    assert refused.value.next_step


def test_every_broken_rule_is_listed() -> None:
    with pytest.raises(Incompatible) as refused:
        compat.check({**GOOD, "k3s": "v1.28.6+k3s1", "docker": "29.0.1"})
    for name in ("kubectl-skew", "cri-dockerd-image-inspect", "cri-dockerd-api-floor"):
        assert f"{name}: " in refused.value.summary
    assert "cgroup-v1" not in refused.value.summary


@pytest.mark.parametrize(
    "changed",
    [
        {"kubectl": "v1.36.0"},
        {"k3s": "v1.24.4+k3s1", "kubectl": "v1.24.2", "docker": "20.10.24"},
        {"k3s": "v1.28.7+k3s1", "kubectl": "v1.28.6", "docker": "25.0.0"},
        {"k3s": "v1.28.6+k3s1", "kubectl": "v1.28.6", "docker": "24.0.9"},
        {"k3s": "v1.29.15+k3s1", "kubectl": "v1.29.9", "docker": "29.3.0"},
        {"k3s": "v1.29.15+k3s1", "kubectl": "v1.29.9", "docker": "28.5.2"},
        {"k3s": "v1.30.13+k3s1", "kubectl": "v1.30.13", "docker": "29.0.0"},
        {"k3s": "v1.31.9+k3s1", "kubectl": "v1.31.9", "docker": "29.0.0"},
        {"k3s": "v1.32.5+k3s1", "kubectl": "v1.32.5", "docker": "29.0.0"},
        {"k3s": "v1.33.1+k3s1", "kubectl": "v1.33.1", "docker": "29.0.0"},
        {"k3s": "v1.34.0+k3s1", "kubectl": "v1.34.0", "docker": "29.0.0"},
        {"k3s": "v1.37.1+standin", "docker": "28.5.2"},
    ],
)
def test_a_combination_close_to_a_broken_one_is_accepted(changed: dict[str, str]) -> None:
    compat.check(GOOD | changed)


@pytest.mark.parametrize("kubectl", ["v1.36.4", "v1.38.0"])
def test_another_minor_of_kubectl_is_a_warning(kubectl: str) -> None:
    findings = compat.check({**GOOD, "kubectl": kubectl}, KNOWN)
    assert "kubectl-same-minor" in names(findings, State.BROKEN)


@pytest.mark.parametrize(
    ("changed", "embedded", "broken"),
    [
        # Versions in the binary have priority over known releases.
        ({"k3s": "v1.30.12+k3s1", "kubectl": "v1.30.9"}, {"k3s": {"docker-client": "v25.0.8"}}, False),
        ({"k3s": "v1.37.1+k3s1"}, {"k3s": {"docker-client": "v24.0.9"}}, True),
        ({"k3s": "v1.37.1+k3s1"}, {"k3s": {"docker-client": "v25.0.15-0.20260325154711-d2dbc0547253"}}, False),
        ({"k3s": "v1.37.1+k3s1"}, {"k3s": {"cri-dockerd": "v0.3.16-k3s1"}}, True),
        ({"k3s": "v1.37.1+k3s1"}, {"k3s": {"cri-dockerd": "v0.3.19-k3s5"}}, False),
        ({}, {"compose": {"docker-client": "v24.0.7"}}, True),
        ({}, {"buildx": {"docker-client": "v28.5.1"}}, False),
    ],
)
def test_the_api_floor_of_docker_29_is_checked_against_the_binaries(
    changed: dict[str, str], embedded: Mapping[str, Mapping[str, str]], broken: bool
) -> None:
    versions = {**GOOD, "docker": "29.1.0", **changed}
    if broken:
        with pytest.raises(Incompatible):
            compat.check(versions, embedded)
    else:
        compat.check(versions, embedded)


@pytest.mark.parametrize(
    ("docker", "client", "broken"),
    [("24.0.9", "v0.2.1", True), ("25.0.0", "v0.2.1", False), ("20.10.24", "v0.3.0", False)],
)
def test_a_plugin_whose_client_needs_a_newer_dockerd(docker: str, client: str, broken: bool) -> None:
    versions = {**GOOD, **BEFORE_1_35, "docker": docker}
    embedded = {**KNOWN, "buildx": {"moby-client": client}}
    if broken:
        with pytest.raises(Incompatible, match="buildx-api"):
            compat.check(versions, embedded)
    else:
        assert compat.check(versions, embedded) == ()


def test_a_rule_without_its_versions_is_reported_as_not_checked() -> None:
    findings = compat.check(GOOD)
    assert names(findings, State.UNCHECKED) == {"buildx-api", "compose-api"}
    message = next(str(finding) for finding in findings if finding.rule.name == "compose-api")
    assert "not checked" in message
    assert "which docker client library compose was built with" in message


def test_every_rule_has_a_unique_name_and_a_source() -> None:
    assert len({rule.name for rule in compat.RULES}) == len(compat.RULES)
    assert all(rule.source.startswith("https://") and rule.reason and rule.next_step for rule in compat.RULES)


def test_the_documentation_lists_every_rule() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert [rule.name for rule in compat.RULES if rule.name not in text] == []
