from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from pipeline import bake
from pipeline.platforms import Platform
from tests.examples import INTENT, LOCK, digest

GOLDEN = Path(__file__).parent / "data" / "golden" / "docker-bake.json"


def render(*, rehearsed: bool = False) -> str:
    said = bake.describe(INTENT, LOCK, lock_digest=digest("lock"), created="2026-11-22T00:00:00Z", rehearsed=rehearsed)
    return bake.render(
        platforms=INTENT.platforms,
        said=said,
        base=LOCK.base.digest,
        context=PurePosixPath("dist/context"),
        output=PurePosixPath("dist/image.partial"),
        epoch=1_795_305_600,
    )


def test_is_the_golden_file(request: pytest.FixtureRequest) -> None:
    """`pytest --update-golden` writes it anew; the diff is what is judged."""
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(render(), encoding="utf-8")
    assert render() == GOLDEN.read_text(encoding="utf-8")


def test_the_network_is_off_and_the_base_is_pinned_by_digest() -> None:
    target = json.loads(render())["target"][bake.TARGET]
    assert target["network"] == "none"
    assert target["contexts"]["base"].endswith(f"@{LOCK.base.digest}")
    assert target["platforms"] == [platform.value for platform in Platform]


def test_labels_and_annotations_say_the_same() -> None:
    target = json.loads(render())["target"][bake.TARGET]
    said = dict(text.removeprefix("index,manifest:").split("=", 1) for text in target["annotations"])
    assert said == target["labels"]
    assert said["io.github.dind-k3s.k3s"] == "v1.37.1+k3s1"


def test_only_a_rehearsed_image_carries_the_label() -> None:
    assert bake.REHEARSAL in json.loads(render(rehearsed=True))["target"][bake.TARGET]["labels"]
    assert bake.REHEARSAL not in json.loads(render())["target"][bake.TARGET]["labels"]


def test_a_label_never_holds_credentials() -> None:
    said = bake.describe(
        replace(INTENT, source="https://me:s3cr3t@example.org/x?token=s3cr3t"),
        LOCK,
        lock_digest=LOCK.digest,
        created="2026-11-22T00:00:00Z",
        rehearsed=False,
    )
    assert "s3cr3t" not in str(said)
