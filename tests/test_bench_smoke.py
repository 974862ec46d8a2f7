"""`bench smoke`: the reports of the last smoke become a page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.bench import smoking
from pipeline.core.errors import IntentError
from pipeline.core.records import Check, Image, SmokeReport, State, Tier, TierReport, Variant
from tests.images import make, smoked
from tests.sites import committed

ROOT = Path(__file__).resolve().parent.parent


def booted(seconds: float, where: str, state: State = State.PASSED) -> TierReport:
    checks = (
        Check(name="docker answers", state=state, seconds=seconds * 0.75, detail=""),
        Check(name="a pod", state=state, seconds=seconds * 0.25, detail=""),
    )
    return TierReport(tier=Tier.BOOT, state=state, reason="", where=where, checks=checks)


def reports(image: Image) -> list[SmokeReport]:
    boots = (booted(20.0, "native"), booted(200.0, "virtual engine: qemu 10.0.2 tcg, 16× slower"))
    return [
        replace(one, tiers=(*(tier for tier in one.tiers if tier.tier != Tier.BOOT), boot))
        for one, boot in zip(smoked(image), boots, strict=True)
    ]


def test_a_virtual_engine_is_held_against_how_much_slower_it_is(tmp_path: Path) -> None:
    image = make(tmp_path, "bench")
    document = smoking.describe({Variant.IMAGE: reports(image)}, image)
    assert [(one["median"], one["holds"]) for one in document["targets"]] == [(0, True), (0.625, True)]
    text = smoking.render({**document, "versions": {}})
    assert "| linux/arm64 | boot | passed | 2 min 30 s" not in text
    assert "| linux/arm64 | boot | passed | 3 min 20 s | 2 | virtual engine: qemu 10.0.2 tcg, 16× slower |" in text
    assert "| linux/arm64 | commands | not run |" in text
    assert "arm64, boot is 90% of it" in text
    assert "docker answers: 150 s" in smoking.draw(document)


def test_a_failed_tier_does_not_hold(tmp_path: Path) -> None:
    image = make(tmp_path, "bench")
    (one, other) = reports(image)
    failed = replace(one, tiers=(booted(20.0, "native", State.FAILED),))
    document = smoking.describe({Variant.IMAGE: [failed, other]}, image)
    assert not document["targets"][0]["holds"]


def test_an_image_that_was_built_since_has_no_times(tmp_path: Path) -> None:
    image = make(tmp_path, "bench")
    image.write(tmp_path)
    for one in smoked(make(tmp_path, "another")):
        one.write(tmp_path)
    run = committed(tmp_path)
    with run.client, pytest.raises(IntentError, match="about another image"):
        smoking.main(run, write=False, check=False)


def test_page_and_drawing_are_what_the_figures_give() -> None:
    folder = ROOT / "docs/benchmarks"
    document = json.loads((folder / "smoke.json").read_text(encoding="utf-8"))
    assert smoking.render(document) == (folder / "smoke.md").read_text(encoding="utf-8")
    assert smoking.draw(document) == (folder / "smoke.svg").read_text(encoding="utf-8")
