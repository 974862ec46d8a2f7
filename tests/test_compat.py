from __future__ import annotations

import pytest

from pipeline import compat
from pipeline.errors import Incompatible

GOOD = {"docker": "29.7.2", "k3s": "v1.37.1+k3s1", "kubectl": "v1.37.1", "buildx": "0.36.1", "compose": "5.4.0"}


def test_the_committed_versions_go_together() -> None:
    compat.check(GOOD)


@pytest.mark.parametrize(
    ("changed", "source"),
    [
        ({"kubectl": "v1.35.9"}, "version-skew-policy"),
        ({"k3s": "v1.24.2+k3s1", "kubectl": "v1.24.2", "docker": "20.10.24"}, "5741"),
        ({"k3s": "v1.28.6+k3s1", "kubectl": "v1.28.6", "docker": "25.0.0"}, "9279"),
        ({"k3s": "v1.29.15+k3s1", "kubectl": "v1.29.9", "docker": "29.1.0"}, "14997"),
    ],
)
def test_a_broken_combination_is_refused_with_its_source(changed: dict[str, str], source: str) -> None:
    with pytest.raises(Incompatible, match=source) as refused:
        compat.check(GOOD | changed)
    assert refused.value.exit_code == 6
    assert changed["k3s"] if "k3s" in changed else GOOD["k3s"] in str(refused.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"kubectl": "v1.36.0"},
        {"k3s": "v1.24.4+k3s1", "kubectl": "v1.24.2", "docker": "20.10.24"},
        {"k3s": "v1.28.7+k3s1", "kubectl": "v1.28.6", "docker": "25.0.0"},
        {"k3s": "v1.28.6+k3s1", "kubectl": "v1.28.6", "docker": "24.0.9"},
        {"k3s": "v1.29.15+k3s1", "kubectl": "v1.29.9", "docker": "29.3.0"},
        {"k3s": "v1.37.1+standin", "docker": "28.5.2"},
    ],
)
def test_a_combination_beside_a_broken_one_is_not(changed: dict[str, str]) -> None:
    compat.check(GOOD | changed)
