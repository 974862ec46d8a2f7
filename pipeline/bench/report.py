"""What every benchmark's report has: ratios with a limit, the machine, the versions; JSON first, Markdown made of it.

A ratio is what a reader can hold against another machine, so ratios are what `--check` compares with the committed
report. Each is made within one round, where both sides met the same machine.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core import records
from pipeline.core.errors import Slower
from pipeline.core.log import Log, size

FOLDER = Path("docs/benchmarks")
FACTOR = 1.5  # how many times worse than the committed median a ratio has to be for `--check` to fail …
SLACK = 0.1  # … and by how much of its limit, so that the noise of a small one is no failure
BUSY = 1.0  # a load average above this, before a benchmark begins, is told on its page


def target(
    name: str, ratios: Sequence[float], limit: float, *, most: bool = True, unit: str = "", factor: float = FACTOR
) -> dict[str, Any]:
    """One line of the table: the ratios of all rounds and their limit.

    `most`: the limit is the most that holds, else the least. `unit`: for a figure that is no ratio. `factor`: FACTOR,
    or a smaller one for what no machine changes.
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
    """What the machine is like, as far as it decides figures."""
    cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace") if sys.platform == "linux" else ""
    model = re.search(r"model name\s*: (.*)", cpus)
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "sha256 instructions": bool(re.search(r"\b(sha_ni|sha2)\b", cpus)),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
    }


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table."""
    lines = [list(map(str, columns)), ["---"] * len(columns), *(list(map(str, row)) for row in rows)]
    return ["| " + " | ".join(line) + " |" if line[0] != "---" else "|" + "|".join(line) + "|" for line in lines]


def command(what: str, document: Mapping[str, Any]) -> str:
    """What writes that report."""
    more = " --dist dist/rehearsal" if document["rehearsed"] else ""
    return f"nox -s bench -- {what} --write{more}{' --rootfs' if document.get('overlaid') else ''}"


def stored(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document as the committed file gives it back, its keys sorted: what a page is made of now and later."""
    found: dict[str, Any] = json.loads(json.dumps(document, sort_keys=True))
    return found


def rounds(document: Mapping[str, Any]) -> str:
    """How often, in words."""
    return "1 round" if document["rounds"] == 1 else f"{document['rounds']} rounds"


def busy(document: Mapping[str, Any]) -> list[str]:
    """A paragraph about other work that the machine had when it began; nothing for a quiet one."""
    one = document["machine"]
    if float(one.get("load", 0)) <= BUSY:
        return []
    return [
        "",
        f"**The machine was busy with other work** (load average {one['load']:g} before, on {one['cores']} cores): "
        "seconds are more than a quiet machine needs. Ratios are closer to the truth, for both sides of each met it.",
    ]


def machine_lines(document: Mapping[str, Any]) -> list[str]:
    """The machine and the versions, a line each."""
    one, versions = document["machine"], document["versions"]
    return [
        f"- machine: {one['processor']}, {one['cores']} cores, {size(int(one['memory']))}, "
        f"{one['system']}, sha256 instructions: {'yes' if one['sha256 instructions'] else 'no'}"
        + (f", {one['disk']}" if one.get("disk") else ""),
        f"- versions: {', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}",
    ]


def targets_table(targets: Iterable[Mapping[str, Any]]) -> list[str]:
    """The ratios, each with its limit and whether it holds."""
    rows = []
    for one in targets:
        unit = f" {one['unit']}" if one.get("unit") else ""
        figures = [f"{one[key]:.2f}{unit}" for key in ("median", "from", "to")]
        sign = "≤" if one["most"] else "≥"
        limit = f"{sign} {one['limit']:.2f}{unit}"
        rows.append([one["name"], *figures, limit, "holds" if one["holds"] else "does not hold"])
    # No words in the last column's head: it only says whether the limit holds.
    head = table(["ratio", "median", "from", "to", "target", ""], rows)
    return [head[0].replace("|  |", "| |"), *head[1:]]


def spread(values: Sequence[float], unit: str = "s") -> list[str]:
    """Median, least and most, as three cells."""
    return [f"{value:.2f} {unit}" for value in (statistics.median(values), min(values), max(values))]


def worse(committed: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a ratio is worse than the committed one beyond its factor and SLACK."""
    factor, slack = float(committed.get("factor", FACTOR)), SLACK * float(committed["limit"])
    if committed.get("factor"):
        slack = 0.0
    if committed["most"]:
        return bool(found["median"] > committed["median"] * factor + 0.0005 + slack)
    return bool(found["median"] < committed["median"] / factor - slack)


def check(committed: Mapping[str, Any], found: Mapping[str, Any], log: Log, where: str) -> None:
    """Compare the ratios of two reports. Raises Slower that names each regression; new and missing ones are said."""
    before = {one["name"]: one for one in committed["targets"]}
    now = {one["name"]: one for one in found["targets"]}
    for name in sorted(before.keys() ^ now.keys()):
        log.say(f"not compared, in one of the reports only: {name}")
    told = [
        f"{name}: {now[name]['median']:.2f}, committed {one['median']:.2f}"
        for name, one in before.items()
        if name in now and worse(one, now[name])
    ]
    if told:
        raise Slower(
            f"{len(told)} of {len(before)} ratios are worse than the committed ones",
            expected=f"at most {FACTOR:g} times the committed median and {SLACK:.0%} of the limit (sizes: their own)",
            found="; ".join(told),
            where=where,
            next_step="run it again on a quiet machine; if it stays, find the cause, or renew the report with --write",
        )
    log.say(f"{len(before.keys() & now.keys())} ratios compared with {where}: none is worse")


def finish(
    what: str, document: Mapping[str, Any], files: Mapping[str, str], root: Path, log: Log, *, write: bool, check_: bool
) -> None:
    """Print the page; then compare with the committed report, or write the new one. Raises Slower.

    `files`: suffix → text of what goes beside the JSON: md, svg.
    """
    log.say(files["md"])
    path = root / FOLDER / f"{what}.json"
    if check_:
        next_step = f"make one: nox -s bench -- {what} --write"
        check(records.read_json(path, next_step=next_step), document, log, str(FOLDER / path.name))
    if write:
        records.write_json(path, document)
        for suffix, text in files.items():
            records.write_text(path.with_suffix(f".{suffix}"), text)
