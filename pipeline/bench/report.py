"""Reports: ratios with a limit, the comparison with the committed ones, and the pages, docs/benchmarks/<name>.md.

`--check` compares ratios, since they are comparable between machines: each is made within one round on one machine.

The part of a page between two markers is generated from the JSON. The text around it is written by hand and stays when
the report is renewed; a test checks that its numbers are in the generated part.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core import markdown, records
from pipeline.core.errors import IntentError
from pipeline.core.log import Log, size

FOLDER = Path("docs/benchmarks")
FACTOR = 1.5  # `--check` fails on a ratio that is more than this many times worse than the committed median …
SLACK = 0.1  # … and worse by more than this share of its limit, so that the noise of a small one is no failure
EXACT = 1.02  # FACTOR of bytes, which are the same on all machines
BEGIN = "<!-- generated -->"
END = "<!-- end of the generated part -->"
BUSY = 1.0  # load average from which on other work is assumed

Document = Mapping[str, Any]  # a committed report, docs/benchmarks/*.json


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to measure."""

    runs: int  # rounds
    rootfs: bool = False  # `start` with this checkout's rootfs/ over a rehearsed image


def target(
    name: str, ratios: Sequence[float], limit: float, *, most: bool = True, unit: str = "", factor: float = FACTOR
) -> dict[str, Any]:
    """Return the ratios of all rounds with their limit.

    `most`: the limit is a maximum, else a minimum. `unit`: of a figure that is no ratio. `factor`: FACTOR or EXACT.
    """
    middle = statistics.median(ratios)
    return {
        "name": name,
        "median": round(middle, 3),
        "from": round(min(ratios), 3),
        "to": round(max(ratios), 3),
        "limit": limit,
        "holds": middle <= limit if most else middle >= limit,
        "most": most,
        **({"unit": unit} if unit else {}),
        **({"factor": factor} if factor != FACTOR else {}),
    }


def machine() -> dict[str, object]:
    """Return the properties of this machine that affect figures."""
    cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace") if sys.platform == "linux" else ""
    model = re.search(r"model name\s*: (.*)", cpus)
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "sha256 instructions": bool(re.search(r"\b(sha_ni|sha2)\b", cpus)),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
    }


def worse(committed: Mapping[str, Any], measured: Mapping[str, Any]) -> bool:
    """Whether a ratio is worse than the committed one by more than its factor and SLACK."""
    factor = float(committed.get("factor", FACTOR))
    slack = 0.0 if "factor" in committed else SLACK * float(committed["limit"])
    if committed["most"]:
        return bool(measured["median"] > committed["median"] * factor + 0.0005 + slack)
    return bool(measured["median"] < committed["median"] / factor - slack)


def regressions(committed: Document, measured: Document, log: Log) -> list[str]:
    """Compare the ratios of two reports; return those that are worse.

    A ratio that is in only one of them is logged: with a stub k3s it has another name than with a real one.
    """
    before = {entry["name"]: entry for entry in committed["targets"]}
    now = {entry["name"]: entry for entry in measured["targets"]}
    for name in sorted(before.keys() ^ now.keys()):
        log.say(f"not compared, in one of the reports only: {name}")
    slower = [
        f"{name}: {now[name]['median']:.2f}, committed {entry['median']:.2f}"
        for name, entry in before.items()
        if name in now and worse(entry, now[name])
    ]
    log.say(f"{len(before.keys() & now.keys())} ratios compared with the committed ones: {len(slower) or 'none'} worse")
    return slower


@dataclass(frozen=True, kw_only=True)
class Page:
    """What one benchmark adds to its page."""

    facts: Sequence[str] = ()  # a line each, in addition to machine, versions and rounds
    bars: Sequence[tuple[str, str, float, float]] = ()  # of a chart: section, name, from and to in seconds
    tables: Sequence[str] = ()  # from `table`


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with its heading."""
    return f"## {title}\n\n{markdown.table(columns, rows)}"


def spread(seconds: Sequence[float]) -> list[str]:
    """Return median, least and most, as three cells."""
    return [f"{value:.2f} s" for value in (statistics.median(seconds), min(seconds), max(seconds))]


def generated(name: str, document: Document, page: Page) -> str:
    """Return the generated part, without its markers."""
    more = " --dist dist/rehearsal" if document.get("rehearsed") else ""
    command = f"nox -s bench -- {name} --write{more}{' --rootfs' if document.get('overlaid') else ''}"
    lines = [
        f"Written by `{command}`; all figures: [{name}.json]({name}.json).",
        "",
        *(f"- {fact}" for fact in (*_facts(document), *page.facts)),
        "",
        _targets(document),
    ]
    if page.bars:
        bars = [(section, what, round(1000 * start), round(1000 * end)) for section, what, start, end in page.bars]
        lines += ["", markdown.gantt(f"{name}, medians", bars)]
    for each in page.tables:
        lines += ["", each]
    return "\n".join(lines)


def write(root: Path, name: str, document: Document, page: Page) -> None:
    """Write JSON and page, and keep the text around the page's markers. Raises IntentError without markers."""
    path = root / FOLDER / f"{name}.md"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Benchmark: {name}\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise IntentError(f"{path} lacks the markers of its generated part", expected=f"lines {BEGIN} and {END}")
    before, _, after = split(text)
    records.write_text(path, f"{before}{BEGIN}\n\n{generated(name, document, page)}\n\n{END}{after}")
    records.write_json(path.with_suffix(".json"), document)


def split(text: str) -> tuple[str, str, str]:
    """Return a page's text before, between and after the markers."""
    before, _, rest = text.partition(BEGIN)
    between, _, after = rest.partition(END)
    return before, between.strip("\n"), after


def _facts(document: Document) -> Iterator[str]:
    machine = document["machine"]
    yield (
        f"machine: {machine['processor']}, {machine['cores']} cores, {size(int(machine['memory']))}, "
        f"{machine['system']}, sha256 instructions: {'yes' if machine['sha256 instructions'] else 'no'}"
        + (f", cgroup v{machine['cgroup']}" if machine.get("cgroup") else "")
    )
    yield f"versions: {', '.join(f'{name} {version}' for name, version in sorted(document['versions'].items()))}"
    if document.get("stub k3s") or document.get("k3s", {}).get("stub"):
        yield "k3s: a stub, so what depends on k3s is not what a real one needs"
    if rounds := document.get("rounds"):
        yield f"rounds: {rounds}"
    # Before, and in newer reports after.
    if loads := re.findall(r"[\d.]+", str(machine.get("load", ""))):
        busy = "; the machine was busy with other work: judge ratios, not seconds" if float(loads[0]) > BUSY else ""
        yield f"load average: {' before, '.join(loads)}{' after' if len(loads) > 1 else ' before'}{busy}"


def _targets(document: Document) -> str:
    rows = []
    for target in document["targets"]:
        unit = f" {target['unit']}" if target.get("unit") else ""
        figures = [f"{target[key]:.2f}{unit}" for key in ("median", "from", "to")]
        limit = f"{'≤' if target['most'] else '≥'} {target['limit']:.2f}{unit}"
        rows.append([target["name"], *figures, limit, "holds" if target["holds"] else "does not hold"])
    return markdown.table(["ratio", "median", "from", "to", "target", "result"], rows)
