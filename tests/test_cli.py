from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import __main__ as cli
from pipeline.core.errors import PipelineError
from pipeline.core.platforms import Platform
from pipeline.inputs import versions
from tests.helpers.examples import INTENT

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


def test_the_platforms_are_those_of_versions_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = tmp_path / "versions.yaml"
    versions.write(asked, replace(INTENT, platforms=(Platform.ARM64,)))
    assert cli.main(["--versions", str(asked), "platforms", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["linux/arm64"]
    assert cli.main(["--versions", str(asked), "platforms"]) == 0
    assert capsys.readouterr().out == "linux/arm64\n"


def test_the_platforms_need_no_more_than_what_a_workflow_installs_first() -> None:
    """The plan's job has requirements/nox.txt and nothing else."""
    names = {
        file: set(re.findall(r"^([a-z0-9-]+)\S*==", (ROOT / f"requirements/{file}.txt").read_text(), re.MULTILINE))
        for file in ("nox", "pipeline")
    }
    lacking = {name.replace("-", "_") for name in names["pipeline"] - names["nox"]}
    assert {"httpx", "rich"} <= lacking
    code = (
        f"import sys; sys.modules |= dict.fromkeys({sorted(lacking)!r});"
        "from pipeline import __main__; sys.exit(__main__.main(['platforms', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)) == (0, ["linux/amd64", "linux/arm64"]), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--versions", "/nonexistent.yaml", "plan"], 2, "/nonexistent.yaml"),
        (["--versions", "/nonexistent.yaml", "platforms"], 2, "/nonexistent.yaml"),
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
