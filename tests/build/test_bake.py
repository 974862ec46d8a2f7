"""The bake file, and the labels of the image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from pipeline.build import bake
from pipeline.core import annotations as keys
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant
from pipeline.inputs.versions import Intent
from tests.helpers.examples import INTENT, LOCK, digest

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "docker-bake.json"


def describe(variant: Variant = Variant.IMAGE, *, intent: Intent = INTENT, rehearsed: bool = False) -> dict[str, str]:
    return bake.describe(intent, LOCK, variant, lock_digest=digest("lock"), rehearsed=rehearsed)


def render() -> str:
    return bake.render(
        INTENT,
        LOCK,
        {variant: describe(variant) for variant in Variant},
        context=PurePosixPath("dist/context"),
        outputs={variant: PurePosixPath(f"dist/{variant}.partial") for variant in Variant},
    )


def test_is_the_golden_file(request: pytest.FixtureRequest) -> None:
    """`pytest --update-golden` writes it again; review the diff."""
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(render(), encoding="utf-8")
    assert render() == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("variant", Variant)
def test_the_network_is_off_and_the_base_is_pinned_by_digest(variant: Variant) -> None:
    target = json.loads(render())["target"][variant]
    assert target["target"] == variant
    assert target["network"] == "none"
    assert target["contexts"]["base"].endswith(f"@{LOCK.base.digest}")
    assert target["platforms"] == [platform.value for platform in Platform]


@pytest.mark.parametrize("variant", Variant)
def test_labels_and_annotations_are_equal(variant: Variant) -> None:
    target = json.loads(render())["target"][variant]
    annotations = dict(text.removeprefix("index,manifest:").split("=", 1) for text in target["annotations"])
    assert annotations == target["labels"]
    assert annotations["io.github.dind-k3s.k3s"] == "v1.37.1+k3s1"


def test_only_a_rehearsed_image_has_the_label() -> None:
    assert all(keys.REHEARSAL in describe(variant, rehearsed=True) for variant in Variant)
    assert not any(keys.REHEARSAL in describe(variant) for variant in Variant)


def test_a_variant_has_one_label_more() -> None:
    assert set(describe(Variant.AIRGAP).items()) - set(describe().items()) == {(f"{keys.KEY}.variant", "airgap")}


def test_a_label_never_contains_credentials() -> None:
    labels = describe(intent=replace(INTENT, source="https://me:s3cr3t@example.org/x?token=s3cr3t"))
    assert "s3cr3t" not in str(labels)
