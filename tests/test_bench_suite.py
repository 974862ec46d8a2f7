"""`bench` alone: which benchmarks there are, and what becomes of a regression when others are still to be measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipeline import __main__ as cli
from pipeline.bench import report, suite
from pipeline.core.errors import EngineError, Slower
from tests.sites import committed

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured, in that order: two are slower than they were, one has no engine."""
    names: list[str] = []

    def one(_run: object, name: str, **_options: object) -> None:
        names.append(name)
        if name in ("size", "scale"):
            raise Slower("1 of 2 ratios is worse", expected="less", found=f"{name}: 9.00", where=f"{name}.json")
        if name == "start":
            raise EngineError("no engine")

    monkeypatch.setattr(suite, "_one", one)
    monkeypatch.setattr(report, "BUSY", float("inf"))
    return names


def measure(tmp_path: Path, *names: str) -> None:
    run = committed(tmp_path)
    with run.client:
        suite.main(run, names, runs=1, write=False, check=True, rootfs=False)


def test_each_has_a_report_and_a_name_on_the_command_line() -> None:
    reports = {path.stem for path in (ROOT / report.FOLDER).glob("*.json")}
    assert reports == set(cli._BENCHES)


def test_all_are_measured_before_a_regression_is_told(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(Slower) as failed:
        measure(tmp_path, "cli", "size", "scale", "build")
    assert measured == ["cli", "size", "scale", "build"]
    assert failed.value.exit_code == 12
    assert failed.value.summary.startswith("2 of 4 benchmarks")
    assert (failed.value.found, failed.value.where) == ("size: 9.00; scale: 9.00", "size.json, scale.json")


def test_what_cannot_be_measured_ends_it_at_once(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine"):
        measure(tmp_path, "cli", "start", "build")
    assert measured == ["cli", "start"]


def test_one_alone_says_itself_what_is_worse(measured: list[str], tmp_path: Path) -> None:
    with pytest.raises(Slower, match="1 of 2 ratios is worse"):
        measure(tmp_path, "size")
    assert measured == ["size"]


def test_the_next_one_begins_when_the_machine_has_come_to_rest(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = iter([3.0, 3.0, 1.5, 0.5])
    waits: list[float] = []
    monkeypatch.setattr(report, "BUSY", 1.0)
    monkeypatch.setattr(os, "getloadavg", lambda: (next(loads), 0.0, 0.0))
    monkeypatch.setattr(time, "sleep", waits.append)
    measure(tmp_path, "cli", "build")
    assert measured == ["cli", "build"]
    assert len(waits) == 2
    assert next(loads, None) is None
