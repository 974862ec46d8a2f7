"""`bench fetch`: the stage `fetch` beside aria2c, `curl --parallel` and sha256sum, on one origin of this machine.

Every program does the same job on the same files, one after the other in each round, so that what the machine does
beside it meets all of them; ratios are made within a round. A time is that of a whole process, start included.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bench import origin, plot, report
from pipeline.core import machine
from pipeline.core.errors import EngineError
from pipeline.core.log import Log, size
from pipeline.core.names import Digest
from pipeline.core.records import write_json, write_text

# Bytes, about what a lock has: docker, k3s, kubectl, buildx and compose for two platforms, and Debian's packages.
_SIZES = (*(85_700_000, 72_000_000, 60_000_000, 58_000_000, 32_000_000) * 2, *(400_000,) * 200)
_AT_ONCE = "8"  # what fetch itself does (pipeline/fetch/fetch.py)
_LIMIT = 125_000_000.0  # bytes a second: a line of 1 Gbit/s

FETCH = "fetch"
CHECKED = "aria2c, checked"
CURL_CHECKED = "curl --parallel, then sha256sum"
PLAIN = "aria2c, unchecked"
CURL_PLAIN = "curl --parallel, unchecked"
RANGES = "aria2c, checked, 4 ranges a file"
TOOLS = (FETCH, CHECKED, CURL_CHECKED, PLAIN, CURL_PLAIN, RANGES)
AGAIN = "fetch, all in the cache"
HASHING = "sha256sum on all cores"

SLOWER = 1.10  # × the faster of the tools that do the same job
MEMORY = 120_000_000  # bytes
HASH_SPEED = 0.80  # of sha256sum on all cores


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process."""

    seconds: float
    processor: float  # seconds of processor time, of all cores and of the kernel on its behalf
    memory: int  # bytes, the most that it had


def main(
    log: Log, root: Path, *, runs: int, write: bool, check: bool = False, sizes: Sequence[int] = _SIZES
) -> dict[str, Any]:
    """Measure, print the tables, compare with the committed report or renew it. Raises EngineError, Slower."""
    machine.ensure(["aria2c", "curl"], log)
    with tempfile.TemporaryDirectory(prefix="dind-k3s-bench-", dir=disk()) as name:
        folder = Path(name)
        with log.step(f"{len(sizes)} files, {size(sum(sizes))}"):
            files = _make(folder / "origin", sizes)
        found: dict[str, dict[str, list[Run]]] = {}
        for title, rate in (("no limit", 0.0), (f"{size(round(_LIMIT))}/s", _LIMIT)):
            with log.step(f"{title}, {runs} rounds"), origin.serve(folder / "origin", rate=rate) as served:
                found[title] = _rounds(folder, root, served, files, runs)
        with log.step(f"all in the cache, {runs} rounds"):
            found["in the cache"] = _again(folder, root, files, runs)
    document = report.stored(_document(found, sizes, runs))
    files = {"md": render(document), "svg": draw(document)}
    report.finish("fetch", document, files, root, log, write=write, check_=check)
    return document


def disk() -> str:
    """Where both copies go: a disk, as the cache is on one, rather than a /tmp in memory."""
    return os.environ.get("TMPDIR") or "/var/tmp"


def _make(folder: Path, sizes: Sequence[int]) -> dict[str, str]:
    """Files of random bytes; name → sha256 in hexadecimal digits."""
    folder.mkdir()
    chance = random.Random(1)
    for number, count in enumerate(sizes):
        with (folder / f"f{number:03}").open("wb") as stream:
            for start in range(0, count, 1 << 20):
                stream.write(chance.randbytes(min(1 << 20, count - start)))
    return {path.name: Digest.of_file(path).hex for path in sorted(folder.iterdir())}


def _rounds(
    folder: Path, root: Path, served: origin.Origin, files: Mapping[str, str], runs: int
) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {tool: [] for tool in TOOLS}
    for number in range(runs + 1):
        for tool in TOOLS if number % 2 else TOOLS[::-1]:
            target = folder / "target"
            target.mkdir()
            run = _run(_commands(tool, folder, target, served.url, files), root)
            if tool == FETCH:
                assert {path.name for path in (target / "sha256").iterdir()} == set(files.values())
            shutil.rmtree(target)
            if number:  # the first round only warms up
                found[tool].append(run)
    return found


def _commands(tool: str, folder: Path, target: Path, url: str, files: Mapping[str, str]) -> list[list[str]]:
    """What to run, one after the other."""
    sums = folder / "sums"
    write_text(sums, "".join(f"{hex_}  {target / name}\n" for name, hex_ in files.items()))
    if tool == FETCH:
        return [_fetch(folder, target, url, files)]
    if tool in (CURL_CHECKED, CURL_PLAIN):
        config = folder / "curl"
        write_text(config, "".join(f'url = "{url}/{name}"\noutput = "{target / name}"\n' for name in files))
        curl = [
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--no-progress-meter",
            "--parallel",
            "--parallel-max",
            _AT_ONCE,
        ]
        check = [["sh", "-c", _on_all_cores("sha256sum --check --quiet", sums)]] if tool == CURL_CHECKED else []
        return [[*curl, "--config", str(config)], *check]
    listed = folder / "aria2"
    checked = tool in (CHECKED, RANGES)
    lines = [
        f"{url}/{name}\n  out={name}\n" + (f"  checksum=sha-256={hex_}\n" if checked else "")
        for name, hex_ in files.items()
    ]
    write_text(listed, "".join(lines))
    ranges = "4" if tool == RANGES else "1"
    aria2c = ["aria2c", "--no-conf", "--quiet", "--file-allocation=none", "--async-dns=false", f"-j{_AT_ONCE}"]
    return [[*aria2c, f"-x{ranges}", f"-s{ranges}", "-k1M", "-d", str(target), "-i", str(listed)]]


def _fetch(folder: Path, target: Path, url: str, files: Mapping[str, str]) -> list[str]:
    listed = folder / "fetch.json"
    sizes = {name: (folder / "origin" / name).stat().st_size for name in files}
    entries = [
        {"name": name, "url": f"{url}/{name}", "sha256": hex_, "size": sizes[name]} for name, hex_ in files.items()
    ]
    write_json(listed, entries)
    return [sys.executable, "-m", "pipeline.bench.driver", str(listed), str(target)]


def _on_all_cores(command: str, lines: Path) -> str:
    """A shell line that splits a list of checksums over the processors, the large files evenly."""
    cores = os.cpu_count() or 1
    parts = (f"awk 'NR % {cores} == {number}' {lines} | {command}" for number in range(cores))
    return " & ".join(parts) + "; wait"


def _again(folder: Path, root: Path, files: Mapping[str, str], runs: int) -> dict[str, list[Run]]:
    """A full cache, hashed by fetch and by sha256sum."""
    cache = folder / "target"
    (cache / "sha256").mkdir(parents=True)
    for name, hex_ in files.items():
        os.link(folder / "origin" / name, cache / "sha256" / hex_)
    sums = folder / "sums"
    write_text(sums, "".join(f"{hex_}  {cache / 'sha256' / hex_}\n" for hex_ in files.values()))
    fetch = _fetch(folder, cache, "http://127.0.0.1:9", files)  # nobody listens there, and nobody is asked
    found: dict[str, list[Run]] = {AGAIN: [], HASHING: []}
    for number in range(runs + 1):
        for tool, command in (
            (AGAIN, fetch),
            (HASHING, ["sh", "-c", _on_all_cores("sha256sum --check --quiet", sums)]),
        ):
            run = _run([command], root)
            if number:
                found[tool].append(run)
    return found


def _run(commands: Sequence[Sequence[str]], root: Path) -> Run:
    """Run them one after the other; what the disk still has to do for others is done before. Raises EngineError."""
    os.sync()
    started, processor, memory = time.monotonic(), 0.0, 0
    for command in commands:
        child = os.posix_spawnp(command[0], list(command), {**os.environ, "PYTHONPATH": str(root)})
        with _watched(child) as most:
            _, status, used = os.wait4(child, 0)
        memory = max(memory, *most)
        processor += used.ru_utime + used.ru_stime
        if status != 0:
            raise EngineError(f"a program of the benchmark failed: {command[0]}", found=f"wait status {status}")
    return Run(seconds=time.monotonic() - started, processor=processor, memory=memory)


@contextmanager
def _watched(child: int) -> Iterator[list[int]]:
    """What a child's memory was at most, looked at now and then; ru_maxrss would begin with our own."""
    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            with suppress(OSError):
                found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{child}/status").read_text(encoding="utf-8"))
                if found:
                    most.append(int(found[1]) * 1024)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield most
    finally:
        ended.set()
        watching.join()


def _document(found: Mapping[str, Mapping[str, Sequence[Run]]], sizes: Sequence[int], runs: int) -> dict[str, Any]:
    """Everything that a reader needs to judge or repeat it."""
    total = sum(sizes)
    scenarios = [
        {
            "title": title,
            "programs": [
                {
                    "name": tool,
                    "seconds": [round(run.seconds, 3) for run in them],
                    "median": round(statistics.median(run.seconds for run in them), 3),
                    "processor": round(statistics.median(run.processor for run in them), 3),
                    "memory": max(run.memory for run in them),
                }
                for tool, them in tools.items()
            ],
        }
        for title, tools in found.items()
    ]
    targets = []
    for title, tools in found.items():
        if FETCH in tools:
            ratios = [
                mine.seconds / min(aria2c.seconds, curl.seconds)
                for mine, aria2c, curl in zip(tools[FETCH], tools[CHECKED], tools[CURL_CHECKED], strict=True)
            ]
            targets.append(report.target(f"{title}: time beside the faster one", ratios, SLOWER, most=True))
            ratios = [
                mine.seconds / min(aria2c.seconds, curl.seconds)
                for mine, aria2c, curl in zip(tools[FETCH], tools[PLAIN], tools[CURL_PLAIN], strict=True)
            ]
            targets.append(report.target(f"{title}: the same, if those check nothing", ratios, SLOWER, most=True))
            memory = [run.memory / MEMORY for run in tools[FETCH]]
            targets.append(report.target(f"{title}: memory, in parts of {size(MEMORY)}", memory, 1.0, most=True))
        else:
            ratios = [other.seconds / mine.seconds for mine, other in zip(tools[AGAIN], tools[HASHING], strict=True)]
            targets.append(report.target("in the cache: speed beside sha256sum", ratios, HASH_SPEED, most=False))
    return {
        "files": len(sizes),
        "bytes": total,
        "rounds": runs,
        "machine": report.machine(),
        "versions": _versions(),
        "scenarios": scenarios,
        "targets": targets,
    }


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


def draw(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/fetch.svg: the seconds of each program; the mark on fetch's bar is its limit."""
    rows = []
    for scenario in document["scenarios"]:
        took = {told["name"]: told["median"] for told in scenario["programs"]}
        for name, value in took.items():
            limit = SLOWER * min(took[CHECKED], took[CURL_CHECKED]) if name == FETCH else None
            rows.append(plot.Row(name=_SHORT.get(name, name), parts={scenario["title"]: value}, limit=limit))
    return plot.bars("Seconds until all files are there", rows, "s")


_SHORT = {
    CURL_CHECKED: "curl, then sha256sum",
    CURL_PLAIN: "curl, unchecked",
    RANGES: "aria2c, 4 ranges a file",
    AGAIN: "fetch",
    HASHING: "sha256sum, all cores",
}


def _dominates(document: Mapping[str, Any]) -> list[str]:
    """What takes the time, what the limit is, and why a target does not hold: sentences made of the figures."""
    scenarios = document["scenarios"]
    free, limited = ({told["name"]: told for told in scenario["programs"]} for scenario in scenarios[:2])
    mine, curl = free[FETCH], free[CURL_PLAIN]
    lines = [
        f"**What dominates.** Without a limit it is processor time: fetch uses {mine['processor']:.2f} s of it in "
        f"{mine['median']:.2f} s, curl, which checks nothing, {curl['processor']:.2f} s. fetch hashes what it receives "
        "on its way to the disk, and those that check afterwards read all of it once more. From a line of 1 Gbit/s on "
        f"the line is the limit: the bytes alone need {document['bytes'] / _LIMIT:.2f} s, fetch needs "
        f"{limited[FETCH]['median']:.2f} s.",
    ]
    failed = [one for one in document["targets"] if not one["holds"]]
    if failed:
        told = "; ".join(f"«{one['name']}» is {one['median']:.2f} where {one['limit']:.2f} is asked" for one in failed)
        lines += [
            "",
            f"Not reached: {told}. Python's start, hashing, and threads that wait for the interpreter after each piece "
            "are what curl does not have; [docs/fetch.md](../fetch.md#how-fast-it-is) has their shares and what was "
            "tried. The next step would be a process for each core, or a Python whose threads run at once; on a line "
            "nobody would see it.",
        ]
    return lines


def render(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/fetch.md of a document."""
    scenarios = document["scenarios"]
    lines = [
        "# Benchmark: fetch",
        "",
        "Written by `nox -s bench -- fetch --write`; every figure: [fetch.json](fetch.json). What is measured and why:",
        "[docs/fetch.md](../fetch.md).",
        "",
        f"{document['files']} files, {size(int(str(document['bytes'])))}, from an origin on loopback of the same "
        f"machine; {document['rounds']} rounds, all programs in each.",
        "",
        *report.machine_lines(document),
        "",
        *report.targets_table(document["targets"]),
        "",
        "![seconds of each program](fetch.svg)",
        "",
        f"The mark is {SLOWER:.2f} × the faster one of those that check.",
        "",
        *_dominates(document),
    ]
    for scenario in scenarios:
        lines += [
            "",
            f"## {scenario['title']}",
            "",
            "| program | median | from | to | processor | memory |",
            "|---|---|---|---|---|---|",
        ]
        for told in scenario["programs"]:
            times = " | ".join(report.spread(told["seconds"]))
            lines.append(f"| {told['name']} | {times} | {told['processor']:.2f} s | {size(told['memory'])} |")
    return "\n".join(lines) + "\n"
