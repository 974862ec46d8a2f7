"""Markdown as GitHub shows it: what several reports are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a bar in a cell would begin another one."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def folded(summary: str, body: str) -> str:
    """What is read by who opens it."""
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def gantt(title: str, bars: Iterable[tuple[str, str, int, int]]) -> str:
    """A Mermaid diagram of a run: section, name, and from when to when in milliseconds since its start.

    Syntax: https://mermaid.js.org/syntax/gantt.html. The times on its axis are those of a clock that begins at 00:00
    in UTC.
    """
    lines = ["```mermaid", "gantt", f"    title {_plain(title)}", "    dateFormat x", "    axisFormat %M:%S"]
    section = None
    for named, name, start, end in bars:
        if named != section:
            section = named
            lines.append(f"    section {_plain(named)}")
        lines.append(f"    {_plain(name)} :{start}, {max(end, start + 1)}")
    return "\n".join([*lines, "```"])


def _plain(text: str) -> str:
    """Without what Mermaid reads as its own: a colon, a semicolon, a comment."""
    return re.sub(r"[:;#%]+", " ", text).strip() or "-"
