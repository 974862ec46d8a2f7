"""`bench`: one benchmark by its name, or several in one run, each when the machine has come to rest."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.bench import report
from pipeline.core.errors import Slower

if TYPE_CHECKING:
    from pipeline.workflow import Run

_REST = 180.0  # seconds at most: the load average of a minute ago is gone long before


def main(run: Run, names: Sequence[str], *, runs: int, write: bool, check: bool, rootfs: bool) -> None:
    """Measure each of `names`, print its page, compare or write.

    `runs`: rounds. `rootfs`: `start` with the checkout's rootfs/. Raises Slower, of several once all are done and with
    the regressions of all; EngineError, IntentError, UpstreamError, BuildFailed at once.
    """
    worse: list[Slower] = []
    for number, name in enumerate(names):
        if number:
            _rest(run)
        try:
            _one(run, name, runs=runs, write=write, check=check, rootfs=rootfs)
        except Slower as error:
            if len(names) == 1:
                raise
            run.log.warn(f"{name}: {error.summary}: {error.found}")
            worse.append(error)
    if worse:
        raise Slower(
            f"{len(worse)} of {len(names)} benchmarks have ratios that are worse than the committed ones",
            expected=worse[0].expected,
            found="; ".join(f"{error.found}" for error in worse),
            where=", ".join(f"{error.where}" for error in worse),
            next_step=worse[0].next_step,
        )


def _rest(run: Run) -> None:
    """The load average of the next one is not to be that of the one before."""
    deadline = time.monotonic() + _REST
    if os.getloadavg()[0] > report.BUSY:
        with run.log.step("waiting until the machine has come to rest"):
            while os.getloadavg()[0] > report.BUSY and time.monotonic() < deadline:
                time.sleep(1)


def _one(run: Run, name: str, *, runs: int, write: bool, check: bool, rootfs: bool) -> None:
    match name:
        case "build":
            from pipeline.bench import building

            building.main(run, runs=runs, write=write, check=check)
        case "cli":
            from pipeline.bench import commanding

            commanding.main(run.log, run.root, runs=runs, write=write, check=check)
        case "fetch":
            from pipeline.bench import fetching

            fetching.main(run.log, run.root, runs=runs, write=write, check=check)
        case "scale":
            from pipeline.bench import scaling

            scaling.main(run, runs=runs, write=write, check=check)
        case "size":
            from pipeline.bench import sizing

            sizing.main(run, write=write, check=check)
        case "smoke":
            from pipeline.bench import smoking

            smoking.main(run, write=write, check=check)
        case "start":
            from pipeline.bench import starting

            starting.main(run, runs=runs, write=write, check=check, rootfs=rootfs)
        case "update":
            from pipeline.bench import updating

            updating.main(run, runs=runs, write=write, check=check)
        case other:
            raise AssertionError(other)
