"""`bench build` without an engine: the inputs, what a build's output tells, ratios, the page."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench import building, lab
from pipeline.bench.building import BAKE, COLD, NOTHING, ONE, PARTS, SCENARIOS, USUAL_COLD
from pipeline.bench.lab import Took
from pipeline.core import records
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.inputs import lock, versions

ROOT = Path(__file__).resolve().parent.parent
INTENT = versions.read(ROOT / "versions.yaml")
OWN = lock.read(ROOT / "versions.lock.yaml", INTENT)


def test_the_inputs_for_one_platform_are_a_lock_of_their_own(tmp_path: Path) -> None:
    one = building.case(INTENT, OWN, (Platform.AMD64,), tmp_path)
    read = versions.read(tmp_path / "versions.yaml")
    locked = lock.read(tmp_path / "versions.lock.yaml", read)
    assert (read.platforms, read.variants) == ((Platform.AMD64,), ())
    assert {file.platform for file in locked.all_files} == {Platform.AMD64}
    assert locked.airgap == ()
    assert len(locked.files(Platform.AMD64)) == len(OWN.files(Platform.AMD64))
    assert building.one_of(one) is Platform.AMD64


SAID = """\
▶ fetch
✓ fetch · 1.5 s
▶ build
  ▶ put the build context together
  ✓ put the build context together · 2.0 s
       3.0 s  [linux/amd64 docker 1/1] RUN tar
      12.5 s  exporting to oci image format
  slowest: 12.5 s  exporting to oci image format
✓ build · 2 min 1 s
"""


def test_a_builds_output_tells_what_its_time_was_made_of() -> None:
    found = building.told(Took(seconds=124.0, processor=50.0, said=SAID))
    assert found["parts"] == dict(zip(PARTS, (3.0, 2.0, 106.5, 12.5), strict=True))
    assert found["slowest"] == [["exporting to oci image format", 12.5], ["[linux/amd64 docker 1/1] RUN tar", 3.0]]
    bare = building.told(Took(seconds=20.0, processor=5.0, said="  12.5 s  exporting to oci image format"))
    assert bare["parts"] == dict(zip(PARTS, (0.0, 0.0, 7.5, 12.5), strict=True))


def run(*seconds: float) -> list[dict[str, Any]]:
    return [building.told(Took(seconds=value, processor=value * 1.8, said=SAID)) for value in seconds]


def figures() -> dict[str, list[dict[str, Any]]]:
    found = {name: run(10.0, 10.0) for name in SCENARIOS}
    one = [{**told, "layers that differ": count} for count, told in enumerate(run(40.0, 60.0))]
    usual = [{**told, "emulators": ["qemu-user 10.0.2"]} for told in run(500.0)]
    return {**found, COLD: run(50.0, 60.0), ONE: one, NOTHING: run(2.0, 8.0), USUAL_COLD: usual}


def test_ratios_are_made_within_a_round_and_the_usual_way_is_not_in_all() -> None:
    found = building.targets(figures())
    assert [(one["median"], one["from"], one["to"], one["holds"]) for one in found] == [
        (10.0, 10.0, 10.0, True),
        (1.125, 1.0, 1.25, True),
        (0.5, 0.2, 0.8, True),
        (0.5, 0, 1, False),
    ]
    assert [one["most"] for one in found] == [False, True, True, True]


def test_a_page_is_made_of_any_figures() -> None:
    image = records.Image(
        digest=Digest.of(b""),
        inputs=Digest.of(b""),
        lock=Digest.of(b""),
        platforms={},
        annotations={},
        rehearsed=False,
    )
    document = building.describe({**figures(), BAKE: run(4.0, 4.0)}, image, OWN, INTENT.platforms)
    text = building.render(document)
    assert "Both take 1.10 × the processor time of one" in text
    assert "| usual, cold, both | 500.00 s |" in text
    assert "| `[linux/amd64 docker 1/1] RUN tar` | 3.0 s |" in text
    assert building.draw(document).startswith("<svg")
    assert "is not reached" not in text
    for told in document["figures"][USUAL_COLD]:
        told["seconds"] = 110.0
    assert "**8 times** is not reached: 2.0 on" in building.render(document)


def test_apt_is_given_debians_index_with_the_packages_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "tree/DEBIAN").mkdir(parents=True)
    (tmp_path / "tree/DEBIAN/control").write_text(
        "Package: x\nVersion: 1:2\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n", encoding="utf-8"
    )
    deb = tmp_path / "x_1%3a2_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(tmp_path / "tree"), str(deb)], check=True, capture_output=True)
    ((name, stanza),) = building._stanzas(tmp_path)
    assert name == "x"
    assert stanza.startswith("Package: x\n")
    assert stanza.endswith(f"\nFilename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {Digest.of_file(deb).hex}")
    whole = "Package: a\nVersion: 1\n\nPackage: x\nVersion: 9\n\nPackage: xx\nVersion: 1\n\n"
    assert building.index_with(whole, {name: stanza}) == (
        f"Package: a\nVersion: 1\n\nPackage: xx\nVersion: 1\n\n{stanza}\n"
    )


def test_the_page_names_the_file_system() -> None:
    assert lab.file_system(Path("/dev/shm")) == "tmpfs"
    assert lab.file_system(Path("/proc/self")) == "proc"


@pytest.mark.parametrize("suffix", ["md", "svg"])
def test_page_and_drawing_are_what_the_figures_give(suffix: str) -> None:
    folder = ROOT / "docs/benchmarks"
    document = json.loads((folder / "build.json").read_text(encoding="utf-8"))
    made = {"md": building.render, "svg": building.draw}[suffix](document)
    assert made == (folder / f"build.{suffix}").read_text(encoding="utf-8")
