from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import __main__ as cli
from pipeline.errors import PipelineError

ROOT = Path(__file__).resolve().parent.parent


def test_every_failure_has_its_own_exit_code() -> None:
    codes = [kind.exit_code for kind in PipelineError.__subclasses__()]
    assert len(codes) == len(set(codes))
    assert min(codes) == 2


def test_the_exit_codes_of_the_documentation_are_those_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["errors"]) == 0
    for line in capsys.readouterr().out.splitlines():
        code, _, text = line.strip().partition("  ")
        kind = text.partition(":")[0]
        assert f"| {code} | {kind} |" in (ROOT / "docs/exit-codes.md").read_text(encoding="utf-8")


def test_platforms_as_a_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["platforms", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["linux/amd64", "linux/arm64"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--versions", "/nonexistent.yaml", "plan"], 2, "/nonexistent.yaml"),
        (["--lock", "/nonexistent.yaml", "plan"], 5, "nox -s resolve"),
        (["--dist", "/nonexistent", "verify"], 2, "nox -s build"),
        (["smoke", "--tier", "nothing"], 2, "files, commands, boot"),
        (["rehearse", "--k3s", "linux/s390x=/bin/true"], 2, "PLATFORM=PATH"),
    ],
)
def test_bad_input_is_a_sentence_and_a_code(arguments: list[str], code: int, sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy() -> None:
    """What --help and nox -l do not need is not imported: it would be felt at every call."""
    code = (
        "import sys; from pipeline import __main__; __main__.parser();"
        "print([name for name in ('httpx', 'rich', 'python_on_whales', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
