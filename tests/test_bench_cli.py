"""`bench cli`: how nox was called, what is imported, the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pipeline.bench import commanding
from pipeline.bench.commanding import HELP, MENU, NOTHING
from pipeline.core.log import Log

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("line", "called"),
    [
        (["/v/bin/python", "/v/bin/nox", "-s", "bench"], ["/v/bin/python", "/v/bin/nox"]),
        (["python3", "-m", "nox", "-s", "bench", "--", "cli"], ["python3", "-m", "nox"]),
        (["bash", "-c", "nox -s bench"], []),
        (["nox"], []),
        ([], []),
    ],
)
def test_nox_is_called_as_it_was_to_start_us(line: list[str], called: list[str]) -> None:
    assert commanding.started_by(line) == called


def test_imports_are_added_up_by_package() -> None:
    said = """\
import time: self [us] | cumulative | imported package
import time:      1000 |       1000 |   re
import time:      2000 |       2000 |       httpx._client
import time:      3500 |       5500 |     httpx
import time:       500 |       6000 | pipeline.errors
usage: …
"""
    assert commanding.packages(said) == {"httpx": 5.5, "Python's own modules": 1.0, "pipeline": 0.5}


def test_help_and_an_interpreter_are_run_and_the_menus_imports_are_the_menus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # nox itself is not among the packages of the tests; any program that takes -l stands in for it.
    menu = tmp_path / "menu.py"
    menu.write_text("import sys, tomllib\nprint(sys.argv[1:], file=sys.stderr)\n", encoding="utf-8")
    monkeypatch.setattr(commanding, "nox", lambda: [sys.executable, str(menu)])
    document = commanding.main(Log(quiet=True), ROOT, runs=1, write=False)
    assert {name: len(them) for name, them in document["seconds"].items()} == {MENU: 4, HELP: 4, NOTHING: 4}
    assert document["versions"]["nox"] == "['--version']"
    assert "pipeline" in document["imports"][HELP]
    assert "pipeline" not in document["imports"][MENU]
    heavy = {"httpx", "rich", "yaml", "python_on_whales", "cryptography", "sigstore"}
    assert not heavy & document["imports"][HELP].keys(), "help needs none of them"


def test_page_and_drawing_are_what_the_figures_give() -> None:
    folder = ROOT / "docs/benchmarks"
    document = json.loads((folder / "cli.json").read_text(encoding="utf-8"))
    assert commanding.render(document) == (folder / "cli.md").read_text(encoding="utf-8")
    assert commanding.draw(document) == (folder / "cli.svg").read_text(encoding="utf-8")
