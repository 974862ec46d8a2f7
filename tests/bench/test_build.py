"""`bench build` without an engine: its inputs, ratios, the index for apt."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench import build
from pipeline.bench.build import COLD, NOTHING, ONE, SCENARIOS, USUAL
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.inputs import lock, versions
from pipeline.workflow import Run
from tests.helpers.sites import committed

ROOT = Path(__file__).resolve().parents[2]
INTENT = versions.read(ROOT / "versions.yaml")
OWN = lock.read(ROOT / "versions.lock.yaml", INTENT)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = committed(tmp_path)
    with made.client:
        yield made


def test_the_inputs_for_one_platform_are_a_separate_lock(run: Run, tmp_path: Path) -> None:
    one = build.job(run, [Platform.AMD64], tmp_path)
    read = versions.read(tmp_path / "versions.yaml")
    locked = lock.read(tmp_path / "versions.lock.yaml", read)
    assert (read.platforms, read.variants) == ((Platform.AMD64,), ())
    assert {file.platform for file in locked.all_files} == {Platform.AMD64}
    assert locked.airgap == ()
    assert len(locked.files(Platform.AMD64)) == len(OWN.files(Platform.AMD64))
    assert (one.intent, one.lock, one.dist) == (read, locked, tmp_path / "dist")


def entries(*seconds: float) -> list[dict[str, Any]]:
    return [{"seconds": value} for value in seconds]


def test_ratios_are_made_within_a_round() -> None:
    one = [{**entry, "layers that differ": count} for count, entry in enumerate(entries(40.0, 60.0))]
    targets = build.targets(
        {
            **{name: entries(10.0, 10.0) for name in SCENARIOS},
            **{COLD: entries(50.0, 60.0), ONE: one, NOTHING: entries(2.0, 8.0), USUAL: entries(500.0, 600.0)},
        }
    )
    assert [(one["median"], one["from"], one["to"], one["holds"]) for one in targets] == [
        (10.0, 10.0, 10.0, True),
        (1.125, 1.0, 1.25, True),
        (0.5, 0.2, 0.8, True),
        (0.5, 0, 1, False),
    ]
    assert [one["most"] for one in targets] == [False, True, True, True]


def test_the_index_for_apt_has_the_packages_of_the_cache(tmp_path: Path) -> None:
    (tmp_path / "tree/DEBIAN").mkdir(parents=True)
    (tmp_path / "tree/DEBIAN/control").write_text(
        "Package: x\nVersion: 1:2\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n", encoding="utf-8"
    )
    deb = tmp_path / "x_1%3a2_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(tmp_path / "tree"), str(deb)], check=True, capture_output=True)
    ((name, stanza),) = build.stanzas(tmp_path)
    assert name == "x"
    assert stanza.startswith("Package: x\n")
    assert stanza.endswith(f"\nFilename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {Digest.of_file(deb).hex}")
    whole = "Package: a\nVersion: 1\n\nPackage: x\nVersion: 9\n\nPackage: xx\nVersion: 1\n\n"
    assert build.index_with(whole, {name: stanza}) == (
        f"Package: a\nVersion: 1\n\nPackage: xx\nVersion: 1\n\n{stanza}\n"
    )
