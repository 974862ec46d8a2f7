"""docs/claims.md names tests that exist, and only such; its column says with which k3s each claim was seen."""

from __future__ import annotations

import ast
import re
from datetime import date
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/claims.md").read_text(encoding="utf-8")
TEST = re.compile(r"`((?:\w+/)?\w+\.py)::(\w+)`")
NAMED = sorted(set(TEST.findall(PAGE)))
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| feature", "| report"))]
REAL = re.compile(r"real v1\.\d+\.\d+, (\d{4}-\d\d-\d\d)")


def seen_with(row: str) -> str:
    """The last cell."""
    return row.rstrip("| ").rpartition("|")[2].strip()


def in_containers(row: str) -> list[tuple[str, str]]:
    """Those of a row's tests in which a k3s runs."""
    return [
        (file, name)
        for file, name in TEST.findall(row)
        if file.startswith("image/") or file == "engine/test_virtual.py"
    ]


@cache
def marks(file: str, name: str) -> set[str]:
    """Of real_k3s and stub_k3s, what a test or its module is marked with."""
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    texts = [ast.unparse(node.value) for node in tree.body if isinstance(node, ast.Assign)]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            texts += map(ast.unparse, node.decorator_list)
    return {mark for mark in ("real_k3s", "stub_k3s") if any(f"mark.{mark}" in text for text in texts)}


def test_every_row_names_a_test() -> None:
    assert len(ROWS) > 50
    assert [row for row in ROWS if "::test_" not in row] == []


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_it_exists(file: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2:40])
def test_every_row_says_with_which_k3s_it_was_seen(row: str) -> None:
    found = seen_with(row)
    if real := REAL.fullmatch(found):
        assert date.fromisoformat(real[1]).year >= 2026
        assert any("stub_k3s" not in marks(*test) for test in in_containers(row)), "no test of it runs with a real k3s"
    elif found == "stub":
        assert any("real_k3s" not in marks(*test) for test in in_containers(row)), "no test of it runs with the stub"
    else:
        assert found in ("not shown", "no k3s"), found


@pytest.mark.parametrize("page", ["README.md", "docs/rehearsal.md"])
def test_what_a_stub_shows_is_said_where_it_is_run(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert re.search(r"\bstub\b[^.]*seen with a real (?:one|k3s)[^.]*\[(?:docs/)?claims\.md\]", text)
