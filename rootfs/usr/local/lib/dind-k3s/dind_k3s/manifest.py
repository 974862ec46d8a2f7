"""/usr/share/dind-k3s/manifest.json: which version of what is in this image, from where, and its files' digests.

A list of objects: component, version, sha256 (of the published file), url, licence, embedded (name → version, where
the files state it), files (path → sha256). The image's own entry is dind-k3s, with the date of its versions in `built`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dind_k3s.root import at

MANIFEST = "/usr/share/dind-k3s/manifest.json"


def components() -> list[dict[str, Any]]:
    """An entry for each component; none when there is no manifest that can be read."""
    try:
        entries = json.loads(at(MANIFEST).read_text())
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def digest(path: Path) -> str:
    """sha256 of a file, or of what a link leads to. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
