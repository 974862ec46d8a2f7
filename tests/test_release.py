"""What passes between stages, and the rule that only smoked digests go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.errors import BuildFailed, IntentError, SmokeFailed
from pipeline.core.platforms import Platform
from pipeline.core.records import (
    RELEASE,
    Image,
    Release,
    SmokeReport,
    State,
    Tier,
    Variant,
    require_smoked,
    write_json,
    write_text,
)
from tests.helpers.examples import digest
from tests.helpers.images import make, smoked, tier


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return make(tmp_path, "release")


def _with(reports: list[SmokeReport], platform: Platform, **changes: object) -> list[SmokeReport]:
    return [replace(one, **changes) if one.platform == platform else one for one in reports]  # type: ignore[arg-type]


def test_what_is_written_is_read_back(image: Image, tmp_path: Path) -> None:
    image.write(tmp_path)
    assert Image.read(tmp_path) == image
    for report in smoked(image):
        report.write(tmp_path)
        assert SmokeReport.read(tmp_path, report.platform) == report
    release = Release(digest=image.digest, pushed=("a/b",), tagged=("a/b:latest",), verified=("a/b:latest",))
    release.write(tmp_path)
    assert Release.read(tmp_path, image.digest) == release


def test_a_record_is_about_one_digest(image: Image, tmp_path: Path) -> None:
    Release(digest=image.digest, tagged=("a/b:latest",)).write(tmp_path)
    assert Release.read(tmp_path, digest("another")) == Release(digest=digest("another"))


@pytest.mark.parametrize("text", ["", "{", "{}", '{"digest": 1}', "[]"])
def test_a_broken_record_is_an_empty_one(text: str, image: Image, tmp_path: Path) -> None:
    (tmp_path / "release.json").write_text(text)
    assert Release.read(tmp_path, image.digest) == Release(digest=image.digest)


def test_what_is_missing_says_which_stage_makes_it(tmp_path: Path) -> None:
    with pytest.raises(IntentError, match="nox -s build"):
        Image.read(tmp_path / "nothing")
    with pytest.raises(IntentError, match="nox -s smoke"):
        SmokeReport.read(tmp_path, Platform.ARM64)
    (tmp_path / "image.json").write_text("{")
    with pytest.raises(IntentError, match="is not JSON"):
        Image.read(tmp_path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.json"
    write_text(target, "first")
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "half of it \udc80")
    assert target.read_text() == "first"
    assert [path.name for path in target.parent.iterdir()] == ["file.json"]


def test_a_smoked_image_goes_on(image: Image) -> None:
    require_smoked(image, smoked(image))


def test_every_platform_must_be_smoked(image: Image) -> None:
    with pytest.raises(SmokeFailed, match="linux/arm64 of this image was not smoked"):
        require_smoked(image, smoked(image)[:1])


@pytest.mark.parametrize("field", ["index", "digest"])
def test_a_report_about_other_bytes_does_not_count(field: str, image: Image) -> None:
    reports = _with(smoked(image), Platform.AMD64, **{field: digest("another build")})
    with pytest.raises(SmokeFailed, match=r"linux/amd64 of this image was not smoked") as failure:
        require_smoked(image, reports)
    assert digest("another build").text in str(failure.value)


def test_tiers_that_were_seen_on_the_same_bytes_are_kept(image: Image, tmp_path: Path) -> None:
    whole, other = smoked(image)
    whole.write(tmp_path)
    again = replace(whole, tiers=(tier(Tier.BOOT, State.FAILED, "red now"),))
    merged = again.with_earlier(tmp_path)
    assert [(one.tier, one.state) for one in merged.tiers] == [
        (Tier.FILES, State.PASSED),
        (Tier.COMMANDS, State.PASSED),
        (Tier.BOOT, State.FAILED),
    ]
    rebuilt = replace(again, digest=digest("another build"))
    assert rebuilt.with_earlier(tmp_path) == rebuilt
    assert other.with_earlier(tmp_path) == other


def test_a_failed_tier_stops_the_release(image: Image) -> None:
    tiers = (tier(Tier.FILES), tier(Tier.COMMANDS, State.FAILED, "kubectl: no answer"), tier(Tier.BOOT))
    with pytest.raises(SmokeFailed, match="kubectl: no answer"):
        require_smoked(image, _with(smoked(image), Platform.AMD64, tiers=tiers))


@pytest.mark.parametrize("tiers", [(), (tier(Tier.FILES, State.NOT_RUN, "left out"),), (tier(Tier.BOOT),)])
def test_the_files_of_every_platform_must_be_checked(tiers: tuple[object, ...], image: Image) -> None:
    with pytest.raises(SmokeFailed, match="tier files did not run on linux/arm64"):
        require_smoked(image, _with(smoked(image), Platform.ARM64, tiers=tiers))


@pytest.mark.parametrize("platform", Platform)
def test_every_platform_must_have_booted(image: Image, platform: Platform) -> None:
    tiers = (tier(Tier.FILES), tier(Tier.COMMANDS), tier(Tier.BOOT, State.NOT_RUN, "no root"))
    with pytest.raises(SmokeFailed, match=f"tier boot did not run on {platform}") as failure:
        require_smoked(image, _with(smoked(image), platform, tiers=tiers))
    assert failure.value.found == "no root"


def test_a_record_from_before_images_were_signed(image: Image, tmp_path: Path) -> None:
    whole = Release(digest=image.digest, pushed=("a/b",), tagged=("a/b:c",), verified=("a/b:c",), signed=("a/b",))
    whole.write(tmp_path)
    assert Release.read(tmp_path, image.digest) == whole
    data = json.loads((tmp_path / RELEASE).read_text(encoding="utf-8"))
    del data["signed"]
    write_json(tmp_path / RELEASE, data)
    assert Release.read(tmp_path, image.digest) == replace(whole, signed=())


# Variants: the image's layers and one more


@pytest.fixture
def airgap(tmp_path: Path) -> Image:
    return make(Variant.AIRGAP.below(tmp_path), "release", Variant.AIRGAP)


def test_a_variant_is_written_and_read_beside_the_image(image: Image, airgap: Image, tmp_path: Path) -> None:
    image.write(tmp_path)
    airgap.write(tmp_path / "airgap")
    assert Image.read(tmp_path) == image
    assert Image.read(Variant.AIRGAP.below(tmp_path)) == airgap


def test_a_variant_that_booted_somewhere_goes_on(airgap: Image) -> None:
    reports = smoked(airgap)
    assert reports[1].state(Tier.BOOT) == State.NOT_RUN
    require_smoked(airgap, reports)


def test_a_variant_that_booted_nowhere_does_not(airgap: Image) -> None:
    tiers = (tier(Tier.FILES), tier(Tier.BOOT, State.NOT_RUN, "no root"))
    with pytest.raises(SmokeFailed, match="tier boot did not run on linux/amd64"):
        require_smoked(airgap, _with(smoked(airgap), Platform.AMD64, tiers=tiers))


def test_the_files_of_a_variant_are_checked_on_every_platform(airgap: Image) -> None:
    with pytest.raises(SmokeFailed, match="tier files did not run on linux/arm64"):
        require_smoked(airgap, _with(smoked(airgap), Platform.ARM64, tiers=(tier(Tier.BOOT),)))


def test_a_variant_of_another_image_has_not_booted_with_it(image: Image, airgap: Image, tmp_path: Path) -> None:
    airgap.require_layers_of(image)
    image.require_layers_of(image)
    with pytest.raises(BuildFailed, match="is not the image and one layer more"):
        airgap.require_layers_of(make(tmp_path / "other", "another build"))
    unknown = {platform: replace(built, layers=()) for platform, built in airgap.platforms.items()}
    with pytest.raises(BuildFailed, match="is not the image and one layer more"):
        replace(airgap, platforms=unknown).require_layers_of(replace(image, platforms=unknown))
