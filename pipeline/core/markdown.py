"""Markdown for GitHub: tables, folded sections, diagrams."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; `|` in a cell is escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def folded(summary: str, body: str) -> str:
    """Return a section that is folded until a reader opens it."""
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def gantt(title: str, bars: Iterable[tuple[str, str, int, int]]) -> str:
    """Return a Mermaid diagram of a run; a bar: section, name, start and end in milliseconds.

    Syntax: https://mermaid.js.org/syntax/gantt.html. The axis begins at 00:00.
    """
    lines = ["```mermaid", "gantt", f"    title {_plain(title)}", "    dateFormat x", "    axisFormat %M:%S"]
    current = None
    for section, name, start, end in bars:
        if section != current:
            current = section
            lines.append(f"    section {_plain(section)}")
        lines.append(f"    {_plain(name)} :{start}, {max(end, start + 1)}")
    return "\n".join([*lines, "```"])


def _plain(text: str) -> str:
    """Remove what Mermaid reads as syntax: a colon, a semicolon, a comment."""
    return re.sub(r"[:;#%]+", " ", text).strip() or "-"
