"""`bench`: one benchmark by its name, or several in one run, each when the machine is idle again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline.bench import build, fetch, report, scale, size, start, update
from pipeline.bench.report import Document, Options, Page
from pipeline.core import records
from pipeline.core.errors import Slower
from pipeline.workflow import Run

_REST = 180.0  # seconds at most: the load average of a minute ago is gone long before


class Benchmark(Protocol):
    """What each module of a benchmark has."""

    def measure(self, run: Run, options: Options, /) -> dict[str, Any]:
        """Return the report: targets, versions and figures."""

    def page(self, document: Document, /) -> Page:
        """Return what the page shows of a report."""


BENCHMARKS: Mapping[str, Benchmark] = {
    "build": build,
    "fetch": fetch,
    "scale": scale,
    "size": size,
    "start": start,
    "update": update,
}


def main(run: Run, names: Sequence[str], options: Options, *, write: bool, check: bool) -> None:
    """Measure each of `names`, print its page, compare or write; a regression is not written.

    Raises Slower with the regressions of all benchmarks, once all are done; other errors at once.
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
    """Return the report as its file gives it back, figures with four digits, and print its page."""
    before = os.getloadavg()[0]
    document = BENCHMARKS[name].measure(run, options)
    load = [round(before, 1), round(os.getloadavg()[0], 1)]
    document["machine"] = {**report.machine(), **document.get("machine", {}), "load": load}
    text = json.dumps(document, sort_keys=True)
    stored: Document = json.loads(text, parse_float=lambda figure: float(f"{float(figure):.4g}"))
    run.log.say(report.generated(name, stored, BENCHMARKS[name].page(stored)))
    return stored


def _rest(run: Run) -> None:
    """Wait until the load of the benchmark before has gone."""
    deadline = time.monotonic() + _REST
    with run.log.step("waiting until the machine is idle"):
        while os.getloadavg()[0] > report.BUSY and time.monotonic() < deadline:
            time.sleep(1)
