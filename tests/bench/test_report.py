"""Reports: ratios, the comparison with the committed ones, the page, the chart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import parser
from pipeline.bench import report, suite
from pipeline.bench.report import Page
from pipeline.core.errors import IntentError
from pipeline.core.log import Log

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"processor": "x", "cores": 2, "memory": 1, "system": "Linux", "sha256 instructions": True}


def document(*targets: dict[str, Any]) -> dict[str, Any]:
    return {"targets": list(targets)}


@pytest.mark.parametrize(
    ("committed", "measured", "worse"),
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
    committed: tuple[float, float, bool], measured: float, worse: bool
) -> None:
    value, limit, most = committed
    one, other = (report.target("x", [number], limit, most=most) for number in (value, measured))
    assert report.worse(one, other) is worse


def test_a_size_has_a_smaller_factor() -> None:
    one = report.target("x", [0.7], 1.0, factor=1.02)
    assert not report.worse(one, report.target("x", [0.713], 1.0))
    assert report.worse(one, report.target("x", [0.716], 1.0))


def test_every_regression_is_named_and_only_ratios_of_both_are_compared() -> None:
    before = document(*(report.target(name, [1.0], 1.1) for name in ("a", "b", "c")))
    after = document(report.target("a", [1.9], 1.1), report.target("b", [1.0], 1.1), report.target("d", [9.0], 1.1))
    assert report.regressions(before, after, Log(quiet=True)) == ["a: 1.90, committed 1.00"]
    assert report.regressions(before, document(report.target("b", [1.2], 1.1)), Log(quiet=True)) == []


def written(folder: Path, median: float) -> str:
    """Write a report of one ratio below that folder; return its page."""
    content = {
        "machine": MACHINE,
        "versions": {"docker": "29.1.0"},
        **document(report.target("a", [median], 1.1)),
    }
    report.write(folder, "x", content, Page(tables=[report.table("T", ["c"], [["v"]])]))
    return (folder / report.FOLDER / "x.md").read_text(encoding="utf-8")


def test_handwritten_text_stays_when_the_report_is_renewed(tmp_path: Path) -> None:
    text = written(tmp_path, 1.0)
    assert sorted(path.name for path in (tmp_path / report.FOLDER).iterdir()) == ["x.json", "x.md"]
    assert "| a | 1.00 | 1.00 | 1.00 | ≤ 1.10 | holds |" in text
    path = tmp_path / report.FOLDER / "x.md"
    path.write_text(f"# By hand\n\n{text}\nAlso by hand.\n", encoding="utf-8")
    before, between, after = report.split(written(tmp_path, 1.2))
    assert before.startswith("# By hand\n\n# Benchmark: x\n")
    assert "| a | 1.20 | 1.20 | 1.20 | ≤ 1.10 | does not hold |" in between
    assert after == "\n\nAlso by hand.\n"


def test_a_page_without_its_markers_is_not_overwritten(tmp_path: Path) -> None:
    written(tmp_path, 1.0)
    path = tmp_path / report.FOLDER / "x.md"
    path.write_text("# By hand\n", encoding="utf-8")
    with pytest.raises(IntentError, match=r"x\.md") as failure:
        written(tmp_path, 1.0)
    assert report.BEGIN in str(failure.value)
    assert path.read_text(encoding="utf-8") == "# By hand\n"


@pytest.mark.parametrize("name", suite.BENCHMARKS)
def test_the_page_is_generated_from_the_figures(name: str) -> None:
    folder = ROOT / report.FOLDER
    committed = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    made = suite.BENCHMARKS[name].page(committed)
    _, between, _ = report.split((folder / f"{name}.md").read_text(encoding="utf-8"))
    assert between == report.generated(name, committed, made)


@pytest.mark.parametrize("name", suite.BENCHMARKS)
def test_numbers_in_handwritten_text_are_in_the_generated_part(name: str) -> None:
    before, between, after = report.split((ROOT / report.FOLDER / f"{name}.md").read_text(encoding="utf-8"))
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", before + after)
    number = r"(?<![\w.,-])\d+(?:[.,]\d+)*(?!\w)"
    assert {*re.findall(number, prose)} <= {*re.findall(number, between)}


def test_the_chart_is_a_diagram_of_milliseconds() -> None:
    empty = {"machine": MACHINE, "versions": {}, "targets": []}
    text = report.generated(
        "x", empty, Page(bars=[("a", "one", 0.0, 1.5), ("a", "two", 1.5, 2.0), ("b", "one", 0.0, 0.25)])
    )
    diagram = text[text.index("```mermaid") : text.rindex("```")]
    assert "section a\n    one :0, 1500\n    two :1500, 2000\n    section b\n    one :0, 250\n" in diagram


def test_dist_is_an_option_before_and_after_the_command() -> None:
    for words in (["--dist", "x", "bench", "size"], ["bench", "size", "--dist", "x"]):
        assert parser().parse_args(words).dist == Path("x")
    assert parser().parse_args(["bench", "size"]).dist.name == "dist"
    overlaid = {"machine": MACHINE, "versions": {}, "targets": [], "rehearsed": True, "overlaid": True}
    text = report.generated("start", overlaid, Page())
    assert text.startswith("Written by `nox -s bench -- start --write --dist dist/rehearsal --rootfs`;")
