"""`python -m tests.helpers.shell_files TOOL …`: run a tool over every shell file (by shebang or .sh)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def shell_files() -> list[Path]:
    """Every tracked or new file that a shell runs."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    found = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if not path.is_file() or path.is_symlink():
            continue
        with path.open("rb") as stream:
            first = stream.readline(80)
        if path.suffix == ".sh" or (first.startswith(b"#!") and first.rstrip().endswith((b"/sh", b"bash", b" sh"))):
            found.append(path)
    return found


if __name__ == "__main__":
    files = shell_files()
    assert files, "no shell file found: the list is broken"
    sys.exit(subprocess.run([*sys.argv[1:], *map(str, files)], cwd=ROOT, check=False).returncode)
