"""What every benchmark's report has: ratios, the comparison with the committed one, the drawing."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import parser
from pipeline.bench import plot, report
from pipeline.core.errors import Slower
from pipeline.core.log import Log


def document(*targets: dict[str, Any]) -> dict[str, Any]:
    return {"targets": list(targets)}


@pytest.mark.parametrize(
    ("committed", "found", "worse"),
    [
        ((1.0, 1.1, True), 1.6, False),  # within 1.5 times and a tenth of the limit
        ((1.0, 1.1, True), 1.62, True),
        ((0.02, 0.5, True), 0.06, False),  # three times of nearly nothing is noise
        ((0.02, 0.5, True), 0.09, True),
        ((0.0, 0.0, True), 1.0, True),  # what must not be at all
        ((2.9, 0.8, False), 1.9, False),
        ((2.9, 0.8, False), 1.8, True),
    ],
)
def test_a_ratio_is_worse_beyond_the_factor_and_a_tenth_of_its_limit(
    committed: tuple[float, float, bool], found: float, worse: bool
) -> None:
    value, limit, most = committed
    one, other = (report.target("x", [number], limit, most=most) for number in (value, found))
    assert report.worse(one, other) is worse


def test_a_size_has_a_factor_of_its_own() -> None:
    one = report.target("x", [0.7], 1.0, factor=1.02)
    assert not report.worse(one, report.target("x", [0.713], 1.0))
    assert report.worse(one, report.target("x", [0.716], 1.0))


def test_check_names_every_regression_and_passes_over_what_one_side_lacks() -> None:
    before = document(*(report.target(name, [1.0], 1.1) for name in ("a", "b", "c")))
    after = document(report.target("a", [1.9], 1.1), report.target("b", [1.0], 1.1), report.target("d", [9.0], 1.1))
    with pytest.raises(Slower) as failure:
        report.check(before, after, Log(quiet=True), "x.json")
    assert failure.value.exit_code == 12
    assert failure.value.found == "a: 1.90, committed 1.00"
    report.check(before, document(report.target("b", [1.2], 1.1)), Log(quiet=True), "x.json")


def test_finish_writes_the_page_and_the_drawing_beside_the_figures(tmp_path: Path) -> None:
    one = document(report.target("a", [1.0], 1.1))
    files = {"md": "# page\n", "svg": "<svg/>\n"}
    report.finish("x", one, files, tmp_path, Log(quiet=True), write=True, check_=False)
    assert sorted(path.name for path in (tmp_path / report.FOLDER).iterdir()) == ["x.json", "x.md", "x.svg"]
    report.finish("x", one, files, tmp_path, Log(quiet=True), write=False, check_=True)
    slow = document(report.target("a", [1.9], 1.1))
    with pytest.raises(Slower):
        report.finish("x", slow, files, tmp_path, Log(quiet=True), write=True, check_=True)
    assert '"median": 1.0' in (tmp_path / report.FOLDER / "x.json").read_text(), "a regression is not written"


def test_bars_lie_end_to_end_on_one_scale_with_a_limit() -> None:
    rows = [plot.Row(name="a & b", parts={"one": 30.0, "two": 10.0}, limit=80.0), plot.Row(name="c", parts={"two": 20})]
    drawn = ElementTree.fromstring(plot.bars("title", rows, "MB"))
    space = "{http://www.w3.org/2000/svg}"
    bars = [bar for bar in drawn.iter(f"{space}rect") if bar.find(f"{space}title") is not None]
    placed = [(float(bar.attrib["x"]), float(bar.attrib["width"]), bar.attrib["fill"]) for bar in bars]
    (first, second, third) = placed
    assert first[0] + first[1] == pytest.approx(second[0], abs=0.1)
    assert first[1] / second[1] == pytest.approx(3, abs=0.05)
    assert third[1] / second[1] == pytest.approx(2, abs=0.05)
    assert second[2] == third[2] != first[2]
    assert [bar[0].text for bar in bars] == ["one: 30.0 MB", "two: 10.0 MB", "two: 20.0 MB"]
    assert "a & b" in {text.text for text in drawn.iter(f"{space}text")}


def test_the_image_of_a_rehearsal_is_named_behind_the_command_too() -> None:
    for words in (["--dist", "x", "bench", "size"], ["bench", "size", "--dist", "x"]):
        assert parser().parse_args(words).dist == Path("x")
    assert parser().parse_args(["bench", "size"]).dist.name == "dist"
    assert report.command("start", {"rehearsed": True, "overlaid": True}) == (
        "nox -s bench -- start --write --dist dist/rehearsal --rootfs"
    )
