"""`bench`: its list of benchmarks, regressions in several of them, errors, and idle time between two."""

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
    """A benchmark without figures: with a regression, or an error."""

    def __init__(self, name: str, measured: list[str]) -> None:
        self.name = name
        self.measured = measured

    def measure(self, _run: object, _options: Options) -> dict[str, Any]:
        self.measured.append(self.name)
        if self.name == "start":
            raise EngineError("no engine")
        median = 9.0 if self.name in ("size", "build") else 1.0
        return {"versions": {}, "targets": [report.target(f"{self.name}: of 1", [median], 1.1)], "figure": 1.23456}

    def page(self, _document: Document) -> Page:
        return Page()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names in the order of their measurements; size and build have a regression, start has an error."""
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


def test_all_are_measured_before_a_regression_is_reported(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(Slower) as failed:
        measure(tmp_path, "size", "build", "fetch")
    assert measured == ["size", "build", "fetch"]
    assert failed.value.exit_code == 12
    assert failed.value.summary.startswith("ratios of 2 of 3 benchmarks")
    assert failed.value.found == "size: of 1: 9.00, committed 1.00; build: of 1: 9.00, committed 1.00"
    assert failed.value.where == "docs/benchmarks/size.json, docs/benchmarks/build.json"
    written = {path.stem for path in (tmp_path / report.FOLDER).glob("*.md")}
    assert written == {"fetch"}, "a regression is not written"
    assert '"figure": 1.235' in (tmp_path / report.FOLDER / "fetch.json").read_text(encoding="utf-8")


def test_an_error_ends_it_at_once(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine"):
        measure(tmp_path, "fetch", "start", "size")
    assert measured == ["fetch", "start"]


def test_the_next_one_begins_when_the_machine_is_idle(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = iter([0.0, 0.0, 3.0, 1.5, 0.5, 0.0, 0.0])  # two around each, three while it waits
    waits: list[float] = []
    monkeypatch.setattr(report, "BUSY", 1.0)
    monkeypatch.setattr(os, "getloadavg", lambda: (next(loads), 0.0, 0.0))
    monkeypatch.setattr(time, "sleep", waits.append)
    measure(tmp_path, "fetch", "size", check=False)
    assert measured == ["fetch", "size"]
    assert len(waits) == 2
    assert next(loads, None) is None
