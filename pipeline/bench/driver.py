"""`python -m pipeline.bench.driver LIST CACHE [EVERY]`: the stage `fetch` on a list of files instead of a lock.

The benchmark times it and a test kills it. A lock would need a base image, and that a registry. LIST is JSON:
[{"name", "url", "sha256", "size"}, …]; EVERY: seconds between two records of the bytes that are on the disk.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.fetch import fetch
from pipeline.http import transport
from pipeline.http.download import Rules


def main(arguments: Sequence[str]) -> None:
    """Fetch. Raises PipelineError."""
    listed, cache, *every = arguments
    rules = Rules(every=float(every[0])) if every else Rules()
    files = [
        fetch.Wanted(name=file["name"], urls=(file["url"],), digest=Digest.of_hex(file["sha256"]), size=file["size"])
        for file in json.loads(Path(listed).read_text(encoding="utf-8"))
    ]
    with transport.make_client() as client:
        fetch.download(files, Path(cache), client, Log(quiet=True), rules=rules)


if __name__ == "__main__":
    main(sys.argv[1:])
