"""The notes of a release, and the timeline of a run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import __main__ as command
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.core.records import Image, Release, Variant
from pipeline.publish import notes
from tests.helpers.examples import LOCK
from tests.helpers.images import make, smoked

BEFORE = replace(LOCK, versions={**LOCK.versions, "k3s": "v1.37.0+k3s1"})
INSIDE = {"k3s": {"containerd": "2.2.1"}, "docker": {"runc": "1.4.0"}}


def _history(kind: str, data: dict[str, Any]) -> None:
    if kind == "config":
        data["history"] = [
            {"created_by": "debuerreotype", "comment": ""},
            {"created_by": "ENV PATH=…", "empty_layer": True},
            {"created_by": "COPY /out/packages / # buildkit", "comment": "buildkit.dockerfile.v0"},
        ]


@pytest.fixture
def images(tmp_path: Path) -> dict[Variant, Image]:
    made = {}
    for variant in Variant:
        dist = variant.below(tmp_path)
        made[variant] = make(dist, "notes", variant, change=_history)
        for report in smoked(made[variant]):
            report.write(dist)
        tagged = (
            f"ghcr.io/a/b:k3s-v1.37.1-k3s1-docker-29.7.2-r1{variant.suffix}",
            f"ghcr.io/a/b:latest{variant.suffix}",
        )
        Release(digest=made[variant].digest, pushed=("ghcr.io/a/b",), tagged=tagged).write(dist)
    return made


def test_everything_that_a_release_should_say(images: dict[Variant, Image], tmp_path: Path) -> None:
    text = notes.markdown(images, tmp_path, BEFORE, replace(LOCK, embedded=INSIDE))
    image = images[Variant.IMAGE]
    for part in (
        f"`{image.digest}`",
        f"`{images[Variant.AIRGAP].digest}`",
        "- `ghcr.io/a/b:latest`",
        "- `ghcr.io/a/b:latest-airgap`",
        "| k3s | v1.37.1+k3s1 | v1.37.0+k3s1 | containerd 2.2.1 |",
        "| docker | 29.7.2 | the same | runc 1.4.0 |",
        f"| linux/arm64 | `{image.platforms[Platform.ARM64].digest}` |",
        "passed in 0.5 s (native)",
        "not run: not natively",  # the variant on arm64
        "COPY /out/packages / # buildkit",
        f"nox -s verify -- ghcr.io/a/b@{image.digest}",
        "### k3s v1.37.0+k3s1 → v1.37.1+k3s1",
    ):
        assert part in text, part
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.count("|") - row.count("\\|") >= 4 for row in rows)
    for built in image.platforms.values():
        for layer in built.layers:
            assert layer.text in text


def test_the_first_release_changed_nothing(images: dict[Variant, Image], tmp_path: Path) -> None:
    text = notes.markdown(images, tmp_path, None, LOCK)
    assert "What changed" not in text
    assert "| k3s | v1.37.1+k3s1 | — | — |" in text


def test_a_run_leaves_its_timeline_on_github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(quiet=True)
    with log.step("build"), log.step("fetch: all of it"), log.step("too deep to show"):
        pass
    with pytest.raises(ZeroDivisionError), log.step("smoke"):
        raise ZeroDivisionError
    summary = tmp_path / "summary.md"
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    command.summarize("release", log)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    command.summarize("release", log)
    command.summarize("plan", Log(quiet=True))  # a run without steps has none
    text = summary.read_text()
    assert text.count("```mermaid") == 1
    bars = [r"✓ build :\d+, \d+", r"✓ fetch  all of it :\d+, \d+", "section smoke", r"✗ smoke :\d+, \d+"]
    section = r"\n    ".join(["    section build", *bars]) + r"\n```"
    assert re.search(section, text), text


def test_the_previous_lock_that_cannot_be_read(
    images: dict[Variant, Image], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for variant, image in images.items():
        image.write(variant.below(tmp_path))
    code = command.main(["--dist", str(tmp_path), "notes", "--previous", str(tmp_path / "none.yaml")])
    assert code == 2
    assert "none.yaml cannot be read" in capfd.readouterr().err
