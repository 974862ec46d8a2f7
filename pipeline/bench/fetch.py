"""`bench fetch`: the stage `fetch` compared with aria2c, `curl --parallel` and sha256sum, on an origin on loopback.

Every program does the same job on the same files, one after the other in each round, so that other load on the machine
affects all of them; ratios are made within a round. A time is that of a whole process, including its start.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.bench import lab, origin, report
from pipeline.bench.lab import Took
from pipeline.bench.report import Document, Options, Page, spread
from pipeline.core import machine
from pipeline.core.log import size
from pipeline.core.names import Digest
from pipeline.core.records import write_json, write_text
from pipeline.workflow import Run

# Bytes, about what a lock has: docker, k3s, kubectl, buildx and compose for two platforms, and Debian's packages.
_SIZES = (*(85_700_000, 72_000_000, 60_000_000, 58_000_000, 32_000_000) * 2, *(400_000,) * 200)
_AT_ONCE = "8"  # what fetch itself does (pipeline/fetch/fetch.py)
LINE = 125_000_000.0  # bytes a second: a line of 1 Gbit/s

FETCH = "fetch"
CHECKED = "aria2c, checked"
CURL_CHECKED = "curl --parallel, then sha256sum"
PLAIN = "aria2c, unchecked"
CURL_PLAIN = "curl --parallel, unchecked"
TOOLS = (FETCH, CHECKED, CURL_CHECKED, PLAIN, CURL_PLAIN)
AGAIN = "fetch, all in the cache"
HASHING = "sha256sum on all cores"

SLOWER = 1.10  # × the faster of the tools that do the same job
MEMORY = 120_000_000  # bytes
HASH_SPEED = 0.80  # of sha256sum on all cores

Results = dict[str, dict[str, list[Took]]]  # scenario → program → its rounds


def measure(run: Run, options: Options, sizes: Sequence[int] = _SIZES) -> dict[str, Any]:
    """Return the report. Raises EngineError. `sizes`: of the files, in bytes."""
    machine.ensure(["aria2c", "curl"], run.log)
    runs, results = options.runs, Results()
    with lab.temporary() as folder:
        with run.log.step(f"{len(sizes)} files, {size(sum(sizes))}"):
            job = _Job(folder, run.root, sizes)
        for title, rate in (("no limit", 0.0), (f"{size(round(LINE))}/s", LINE)):
            with run.log.step(f"{title}, {runs} rounds"), origin.serve(job.origin, rate=rate) as served:
                results[title] = job.download(served.url, runs)
        with run.log.step(f"all in the cache, {runs} rounds"):
            results["in the cache"] = job.check(runs)
    return {
        "files": len(sizes),
        "bytes": sum(sizes),
        "rounds": runs,
        "versions": _versions(),
        "scenarios": [
            {"title": title, "programs": [_program(name, rounds) for name, rounds in programs.items()]}
            for title, programs in results.items()
        ],
        "targets": targets(results),
    }


class _Job:
    """Files of random bytes in a folder, and the commands that download or check them."""

    def __init__(self, folder: Path, root: Path, sizes: Sequence[int]) -> None:
        self.folder, self.root = folder, root
        self.origin, self.target, self.sums = folder / "origin", folder / "target", folder / "sums"
        self.origin.mkdir()
        chance = random.Random(1)
        for number, count in enumerate(sizes):
            (self.origin / f"f{number:03}").write_bytes(chance.randbytes(count))
        # Name → sha256 in hexadecimal digits.
        self.files = {path.name: Digest.of_file(path).hex for path in sorted(self.origin.iterdir())}

    def download(self, url: str, runs: int) -> dict[str, list[Took]]:
        """Let every program download all files in each round."""

        def download(tool: str) -> Took:
            self.target.mkdir()
            took = self._run(self._commands(tool, url))
            if tool == FETCH:
                assert {path.name for path in (self.target / "sha256").iterdir()} == set(self.files.values())
            shutil.rmtree(self.target)
            return took

        return _rounds(TOOLS, runs, download)

    def check(self, runs: int) -> dict[str, list[Took]]:
        """Let fetch and sha256sum hash a full cache."""
        cache = self.target / "sha256"
        cache.mkdir(parents=True)
        for name, checksum in self.files.items():
            os.link(self.origin / name, cache / checksum)
        write_text(self.sums, "".join(f"{checksum}  {cache / checksum}\n" for checksum in self.files.values()))
        unused = "http://127.0.0.1:9"  # nothing listens there, and no request is sent
        commands = {AGAIN: self._fetch(unused), HASHING: self._sha256sum()}
        return _rounds([*commands], runs, lambda tool: self._run([commands[tool]]))

    def _run(self, commands: Sequence[Sequence[str]]) -> Took:
        """Run them one after the other. Raises EngineError."""
        os.sync()  # pending writes of others are not measured
        steps = [lab.timed(command, self.root) for command in commands]
        return Took(
            seconds=sum(step.seconds for step in steps),
            processor=sum(step.processor for step in steps),
            memory=max(step.memory for step in steps),
        )

    def _commands(self, tool: str, url: str) -> list[list[str]]:
        """Return the command lines of a tool, to be run one after the other."""
        if tool == FETCH:
            return [self._fetch(url)]
        if tool in (CURL_CHECKED, CURL_PLAIN):
            config = self.folder / "curl"
            entries = (f'url = "{url}/{name}"\noutput = "{self.target / name}"\n' for name in self.files)
            write_text(config, "".join(entries))
            write_text(self.sums, "".join(f"{sum_}  {self.target / name}\n" for name, sum_ in self.files.items()))
            curl = ["curl", "--silent", "--show-error", "--fail", "--no-progress-meter"]
            curl += ["--parallel", "--parallel-max", _AT_ONCE, "--config", str(config)]
            return [curl, self._sha256sum()] if tool == CURL_CHECKED else [curl]
        listed = self.folder / "aria2"
        lines = (
            f"{url}/{name}\n  out={name}\n" + (f"  checksum=sha-256={checksum}\n" if tool == CHECKED else "")
            for name, checksum in self.files.items()
        )
        write_text(listed, "".join(lines))
        aria2c = ["aria2c", "--no-conf", "--quiet", "--file-allocation=none", "--async-dns=false"]
        return [[*aria2c, f"-j{_AT_ONCE}", "-x1", "-s1", "-d", str(self.target), "-i", str(listed)]]

    def _fetch(self, url: str) -> list[str]:
        listed = self.folder / "fetch.json"
        entries = [
            {"name": name, "url": f"{url}/{name}", "sha256": checksum, "size": (self.origin / name).stat().st_size}
            for name, checksum in self.files.items()
        ]
        write_json(listed, entries)
        return [sys.executable, "-m", "pipeline.bench.driver", str(listed), str(self.target)]

    def _sha256sum(self) -> list[str]:
        """Split the list of checksums over the cores, the large files evenly."""
        cores = os.cpu_count() or 1
        parts = (f"awk 'NR % {cores} == {core}' {self.sums} | sha256sum --check --quiet" for core in range(cores))
        return ["sh", "-c", " & ".join(parts) + "; wait"]


def _rounds(tools: Sequence[str], runs: int, run: Callable[[str], Took]) -> dict[str, list[Took]]:
    """Run each tool in each round, in alternating order; a first round only warms up."""
    results: dict[str, list[Took]] = {tool: [] for tool in tools}
    for number in range(runs + 1):
        for tool in tools if number % 2 else tools[::-1]:
            took = run(tool)
            if number:
                results[tool].append(took)
    return results


def _program(name: str, rounds: Sequence[Took]) -> dict[str, Any]:
    seconds = [round(took.seconds, 3) for took in rounds]
    return {
        "name": name,
        "seconds": seconds,
        "median": statistics.median(seconds),
        "processor": round(statistics.median(took.processor for took in rounds), 3),
        "memory": max(took.memory for took in rounds),
    }


def targets(results: Results) -> list[dict[str, Any]]:
    """Return the ratios, each within one round."""
    entries = []
    for title, programs in results.items():
        if AGAIN in programs:
            pairs = zip(programs[AGAIN], programs[HASHING], strict=True)
            ratios = [other.seconds / ours.seconds for ours, other in pairs]
            entries.append(
                report.target("in the cache: speed, compared with sha256sum", ratios, HASH_SPEED, most=False)
            )
            continue
        for name, others in (
            ("time, compared with the faster tool that verifies", (CHECKED, CURL_CHECKED)),
            ("time, compared with the faster tool that does not", (PLAIN, CURL_PLAIN)),
        ):
            rounds = zip(programs[FETCH], *(programs[other] for other in others), strict=True)
            ratios = [ours.seconds / min(other.seconds for other in them) for ours, *them in rounds]
            entries.append(report.target(f"{title}: {name}", ratios, SLOWER))
        memory = [took.memory / MEMORY for took in programs[FETCH]]
        entries.append(report.target(f"{title}: memory, as a share of {size(MEMORY)}", memory, 1.0))
    return entries


def _versions() -> dict[str, str]:
    def first_line(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]

    return {
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("httpx", "httpcore", "h11")},
        "aria2c": first_line("aria2c", "--version").rpartition(" ")[2],
        "curl": first_line("curl", "--version").split()[1],
        "sha256sum": first_line("sha256sum", "--version").rpartition(" ")[2],
    }


def page(document: Document) -> Page:
    """Return chart and table of each scenario's programs."""
    bars, tables = [], []
    for scenario in document["scenarios"]:
        bars += [(scenario["title"], entry["name"], 0.0, entry["median"]) for entry in scenario["programs"]]
        rows = [
            [entry["name"], *spread(entry["seconds"]), f"{entry['processor']:.2f} s", size(entry["memory"])]
            for entry in scenario["programs"]
        ]
        tables.append(report.table(scenario["title"], ["program", "median", "from", "to", "processor", "memory"], rows))
    return Page(
        bars=bars,
        tables=tables,
        facts=[
            f"{document['files']} files, {size(document['bytes'])}, all programs in each round",
            f"with {size(round(LINE))}/s the bytes alone need {document['bytes'] / LINE:.2f} s",
        ],
    )
