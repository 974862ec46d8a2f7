"""record MANIFEST PARTS [BELOW]: the manifest with the digest of each component's files. For the image's build alone.

PARTS/COMPONENT holds the files of one component as they will lie in the image. Without such a folder they are those
that the manifest BELOW states, of the image that this one is built on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dind_k3s.manifest import digest


def main() -> int:
    manifest, parts, *below = map(Path, sys.argv[1:])
    entries = json.loads(manifest.read_text())
    known = {entry["component"]: entry["files"] for one in below for entry in json.loads(one.read_text())}
    for entry in entries:
        folder = parts / entry["component"]
        if folder.is_dir():
            # A link that leads out of the folder leads nowhere yet, and is no program.
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            entry["files"] = {f"/{path.relative_to(folder)}": digest(path) for path in files}
        else:
            entry["files"] = known[entry["component"]]
    print(json.dumps(entries, indent=2, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
