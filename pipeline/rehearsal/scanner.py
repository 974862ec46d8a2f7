"""The rehearsal's scanner: a stub with grype's options that reads the image and knows no vulnerability.

No package registry has a database of vulnerabilities. The report states that it is from a stub, and `scan` accepts it
only for a rehearsed image.

    python -m pipeline.rehearsal.scanner oci-dir:FOLDER --output json --file FILE
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from pipeline.publish.scan import STUB


def main() -> None:
    """Write a report without findings about the one manifest of a layout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("--output", choices=["json"], required=True)
    parser.add_argument("--file", type=Path, required=True)
    parsed = parser.parse_args()
    folder = Path(parsed.source.removeprefix("oci-dir:"))
    (described,) = json.loads((folder / "index.json").read_text(encoding="utf-8"))["manifests"]
    algorithm, _, digest = described["digest"].partition(":")
    manifest = json.loads((folder / "blobs" / algorithm / digest).read_text(encoding="utf-8"))
    report = {
        "matches": [],
        "source": {
            "type": "image",
            "target": {"imageID": manifest["config"]["digest"], "manifestDigest": described["digest"]},
        },
        "descriptor": {
            "name": STUB,
            "version": "0",
            "db": {"status": {"built": datetime.now(UTC).isoformat(timespec="seconds"), "valid": True}},
        },
    }
    parsed.file.write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
