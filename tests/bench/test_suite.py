"""`bench` alone: which benchmarks there are, and what becomes of a regression when others are still to be measured."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import __main__ as cli
from pipeline.bench import report, suite
from pipeline.bench.report import Document, Options, Page
from pipeline.core import records
from pipeline.core.errors import EngineError, Slower
from tests.helpers.sites import committed

ROOT = Path(__file__).resolve().parents[2]


class Fake:
    """A benchmark without figures: a ratio that the committed report has better, or no engine."""

    def __init__(self, name: str, measured: list[str]) -> None:
        self.name = name
        self.measured = measured

    def measure(self, _run: object, _options: Options) -> dict[str, Any]:
        self.measured.append(self.name)
        if self.name == "start":
            raise EngineError("no engine")
        median = 9.0 if self.name in ("size", "scale") else 1.0
        return {"versions": {}, "targets": [report.target(f"{self.name}: of 1", [median], 1.1)], "figure": 1.23456}

    def page(self, _document: Document) -> Page:
        return Page()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured, in that order: two are slower than they were, one has no engine."""
    names: list[str] = []
    monkeypatch.setattr(suite, "BENCHMARKS", {name: Fake(name, names) for name in cli._BENCHES})
    monkeypatch.setattr(report, "BUSY", float("inf"))
    return names


def measure(tmp_path: Path, *names: str, check: bool = True) -> None:
    for name in names:
        records.write_json(
            tmp_path / report.FOLDER / f"{name}.json", {"targets": [report.target(f"{name}: of 1", [1.0], 1.1)]}
        )
    run = replace(committed(tmp_path), root=tmp_path)
    with run.client:
        suite.main(run, names, Options(runs=1), write=True, check=check)


def test_each_has_a_report_and_a_name_on_the_command_line() -> None:
    reports = {path.stem for path in (ROOT / report.FOLDER).glob("*.json")}
    assert reports == {*cli._BENCHES} == suite.BENCHMARKS.keys()


def test_all_are_measured_before_a_regression_is_told(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(Slower) as failed:
        measure(tmp_path, "fetch", "size", "scale", "build")
    assert measured == ["fetch", "size", "scale", "build"]
    assert failed.value.exit_code == 12
    assert failed.value.summary.startswith("ratios of 2 of 4 benchmarks")
    assert failed.value.found == "size: of 1: 9.00, committed 1.00; scale: of 1: 9.00, committed 1.00"
    assert failed.value.where == "docs/benchmarks/size.json, docs/benchmarks/scale.json"
    written = {path.stem for path in (tmp_path / report.FOLDER).glob("*.md")}
    assert written == {"fetch", "build"}, "a regression is not written"
    assert '"figure": 1.235' in (tmp_path / report.FOLDER / "build.json").read_text(encoding="utf-8")


def test_what_cannot_be_measured_ends_it_at_once(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine"):
        measure(tmp_path, "fetch", "start", "build")
    assert measured == ["fetch", "start"]


def test_one_alone_names_what_is_worse(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(Slower, match="ratios of 1 of 1"):
        measure(tmp_path, "size")
    assert measured == ["size"]


def test_the_next_one_begins_when_the_machine_has_come_to_rest(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = iter([0.0, 0.0, 3.0, 1.5, 0.5, 0.0, 0.0])  # two around each, three while it waits
    waits: list[float] = []
    monkeypatch.setattr(report, "BUSY", 1.0)
    monkeypatch.setattr(os, "getloadavg", lambda: (next(loads), 0.0, 0.0))
    monkeypatch.setattr(time, "sleep", waits.append)
    measure(tmp_path, "fetch", "build")
    assert measured == ["fetch", "build"]
    assert len(waits) == 2
    assert next(loads, None) is None
