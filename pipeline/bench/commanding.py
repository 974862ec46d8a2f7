"""`bench cli`: how long a person waits for the menu and for help, beside an interpreter that does nothing."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.bench import plot, report
from pipeline.core.errors import EngineError
from pipeline.core.log import Log

MENU, HELP, NOTHING = "nox -l", "python -m pipeline --help", "python -c pass"
LIMITS = {MENU: 0.4, HELP: 0.3}  # seconds
_OWN = "Python's own modules"


def main(log: Log, root: Path, *, runs: int, write: bool, check: bool = False) -> dict[str, Any]:
    """Measure, print, compare or write. Raises EngineError, Slower."""
    load = os.getloadavg()[0]
    menu = nox()
    commands = {
        MENU: [*menu, "-l"],
        HELP: [sys.executable, "-m", "pipeline", "--help"],
        NOTHING: [sys.executable, "-c", "pass"],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(4 * runs + 1):
        for name, command in commands.items():
            started = time.monotonic()
            _run(command, root)
            if number:  # the first round only warms up
                found[name].append(round(time.monotonic() - started, 4))
    imports = {name: _imports(command, root) for name, command in commands.items() if name in LIMITS}
    document = describe(found, imports, runs)
    document["machine"]["load"] = round(load, 1)
    document["versions"]["nox"] = _run([*menu, "--version"], root).strip().splitlines()[-1]
    document = report.stored(document)
    files = {"md": render(document), "svg": draw(document)}
    report.finish("cli", document, files, root, log, write=write, check_=check)
    return document


def nox() -> list[str]:
    """How nox is called here: as it was to start us, else from this Python or PATH. Raises EngineError."""
    try:
        parent = Path(f"/proc/{os.getppid()}")
        line = (parent / "cmdline").read_text(encoding="utf-8").rstrip("\0").split("\0")
        variables = (parent / "environ").read_text(encoding="utf-8", errors="replace").split("\0")
        path = next((one.removeprefix("PATH=") for one in variables if one.startswith("PATH=")), "")
        here = (parent / "cwd").readlink()
    except OSError:  # no Linux, or another user's
        line, path, here = [], "", Path()
    if called := started_by(line):
        python = str(here / called[0]) if "/" in called[0] else shutil.which(called[0], path=path)
        if python:
            return [python, *called[1:]]
    if importlib.util.find_spec("nox"):
        return [sys.executable, "-m", "nox"]
    if program := shutil.which("nox"):
        return [program]
    raise EngineError("nox cannot be found", next_step="nox -s bench -- cli, or: pip install nox")


def started_by(line: Sequence[str]) -> list[str]:
    """The beginning of a command line that is nox's; empty when it is another program's. Pure."""
    if list(line[1:3]) == ["-m", "nox"]:
        return list(line[:3])
    if len(line) > 1 and line[1].rpartition("/")[2] == "nox":
        return list(line[:2])
    return []


def _run(command: Sequence[str], root: Path, **environment: str) -> str:
    """What it says on standard error, or on standard output when that is nothing. Raises EngineError."""
    variables = {**os.environ, "PYTHONPATH": str(root), **environment}
    done = subprocess.run(
        command, cwd=root, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise EngineError(f"{' '.join(command)} failed", found=done.stderr.strip()[-400:])
    return done.stderr or done.stdout


def _imports(command: Sequence[str], root: Path) -> dict[str, float]:
    return packages(_run(command, root, PYTHONPROFILEIMPORTTIME="1"))


def packages(said: str) -> dict[str, float]:
    """Milliseconds of importing by package, the most first, out of what `-X importtime` writes. Pure."""
    found: dict[str, float] = {}
    for micro, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s*([\w.]+)", said, re.M):
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or package.startswith("_"):
            package = _OWN
        found[package] = found.get(package, 0.0) + int(micro) / 1000
    return _ordered({name: round(value, 1) for name, value in found.items()})


def _ordered(imports: Mapping[str, float]) -> dict[str, float]:
    """The most first."""
    return dict(sorted(imports.items(), key=lambda item: (-item[1], item[0])))


def describe(
    found: Mapping[str, Sequence[float]], imports: Mapping[str, Mapping[str, float]], runs: int
) -> dict[str, Any]:
    """Everything that a reader needs to judge or repeat it."""
    return {
        "rehearsed": False,
        "rounds": 4 * runs,
        "machine": report.machine(),
        "versions": {"Python": platform.python_version()},
        "targets": [report.target(name, found[name], limit, unit="s") for name, limit in LIMITS.items()],
        "seconds": {name: list(values) for name, values in found.items()},
        "imports": {name: dict(them) for name, them in imports.items()},
    }


def draw(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/cli.svg: the time of a bare interpreter, what is imported, and the rest."""
    bare = 1000 * statistics.median(document["seconds"][NOTHING])
    rows = []
    for name, limit in LIMITS.items():
        whole = 1000 * statistics.median(document["seconds"][name])
        parts = {"a bare interpreter": bare}
        # Tracing the imports slows them down, so they are scaled to what was measured without.
        imports = _ordered(document["imports"][name])
        scale = max(0.0, whole - bare) / sum(imports.values())
        top = dict(list(imports.items())[:4])
        parts |= {key: value * scale for key, value in top.items()}
        parts["other imports"] = (sum(imports.values()) - sum(top.values())) * scale
        rows.append(plot.Row(name=name if len(name) < 20 else "… --help", parts=parts, limit=1000 * limit))
    rows.append(plot.Row(name=NOTHING, parts={"a bare interpreter": bare}))
    return plot.bars("The menu and the help: where the milliseconds go", rows, "ms")


def render(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/cli.md."""
    times = [
        [f"`{name}`", *(f"{1000 * value:.0f} ms" for value in (statistics.median(them), min(them), max(them)))]
        for name, them in document["seconds"].items()
    ]
    lines = [
        "# Benchmark: command line",
        "",
        "Written by `nox -s bench -- cli --write`; every figure: [cli.json](cli.json).",
        "",
        f"{document['rounds']} rounds after one that warms up, each command once in each.",
        *report.busy(document),
        "",
        *report.machine_lines(document),
        "",
        *report.targets_table(document["targets"]),
        "",
        "![where the milliseconds go](cli.svg)",
        "",
        *report.table(["command", "median", "from", "to"], times),
        "",
        "The limit is the bare interpreter. What is above it is importing: the noxfile imports nothing of the "
        "pipeline, and the pipeline's grammar nothing but its errors and platforms; each command imports the rest "
        "when it runs.",
    ]
    for name, them in document["imports"].items():
        rows = [
            [f"`{key}`" if key != _OWN else key, f"{value:.0f} ms"] for key, value in list(_ordered(them).items())[:8]
        ]
        lines += ["", f"## What `{name}` imports", "", *report.table(["package", "traced, which slows it"], rows)]
    return "\n".join(lines) + "\n"
