"""Writing files so that a reader, or a run after a crash, sees either the old or the new content."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, content: str, *, mode: int = 0o600) -> None:
    """Replace `path` in one step; its folder is made when it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
