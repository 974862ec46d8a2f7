"""`bench`: runs one benchmark or several, each when the machine is idle again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline.bench import build, fetch, report, size, start
from pipeline.bench.report import Document, Options, Page
from pipeline.core import records
from pipeline.core.errors import Slower
from pipeline.workflow import Run

_REST = 180.0  # seconds at most; load averages of one minute fall faster


class Benchmark(Protocol):
    """Interface of a benchmark's module."""

    def measure(self, run: Run, options: Options, /) -> dict[str, Any]:
        """Return the report: targets, versions and figures."""

    def page(self, document: Document, /) -> Page:
        """Return what the page shows of a report."""


BENCHMARKS: Mapping[str, Benchmark] = {"build": build, "fetch": fetch, "size": size, "start": start}


def main(run: Run, names: Sequence[str], options: Options, *, write: bool, check: bool) -> None:
    """Measure each of `names`, print its page, compare or write; a report with a regression is not written.

    Raises Slower with the regressions of all benchmarks after the last one; other errors at once.
    """
    worse: dict[str, list[str]] = {}
    for number, name in enumerate(names):
        if number:
            _rest(run)
        document = _measure(run, name, options)
        path = report.FOLDER / f"{name}.json"
        if check:
            committed = records.read_json(run.root / path, next_step=f"make one: nox -s bench -- {name} --write")
            if regressions := report.regressions(committed, document, run.log):
                worse[str(path)] = regressions
                run.log.warn(f"{name}: {'; '.join(regressions)}")
        if write and str(path) not in worse:
            report.write(run.root, name, document, BENCHMARKS[name].page(document))
    if worse:
        raise Slower(
            f"ratios of {len(worse)} of {len(names)} benchmarks are worse than the committed ones",
            expected=f"at most {report.FACTOR:g} times the committed median and {report.SLACK:.0%} of the limit "
            f"(sizes: {report.EXACT:g} times)",
            found="; ".join(entry for entries in worse.values() for entry in entries),
            where=", ".join(worse),
            next_step="run it again on a quiet machine; if it stays, find the cause, or renew the report with --write",
        )


def _measure(run: Run, name: str, options: Options) -> Document:
    """Return the report as it is read from its file (figures with four digits), and print its page."""
    before = os.getloadavg()[0]
    document = BENCHMARKS[name].measure(run, options)
    load = [round(before, 1), round(os.getloadavg()[0], 1)]
    document["machine"] = {**report.machine(), **document.get("machine", {}), "load": load}
    text = json.dumps(document, sort_keys=True)
    stored: Document = json.loads(text, parse_float=lambda figure: float(f"{float(figure):.4g}"))
    run.log.say(report.generated(name, stored, BENCHMARKS[name].page(stored)))
    return stored


def _rest(run: Run) -> None:
    """Wait until the machine is idle after the previous benchmark."""
    deadline = time.monotonic() + _REST
    with run.log.step("waiting until the machine is idle"):
        while os.getloadavg()[0] > report.BUSY and time.monotonic() < deadline:
            time.sleep(1)
