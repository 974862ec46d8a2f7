"""/usr/share/dind-k3s/manifest.json: which version of what is in this image, from where, and its files' digests."""

from __future__ import annotations

import json
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
