"""`python -m pipeline.bench.driver LIST CACHE [EVERY]`: the stage `fetch` on a list of files instead of a lock.

LIST is JSON: [{"url", "sha256", "size"}, …]. It is what the benchmark times and what the tests kill: a lock would also
want a base image, from a registry. EVERY: seconds between two records of what is safe.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline import fetch, transport
from pipeline.download import Rules
from pipeline.errors import PipelineError
from pipeline.lock import Artifact, Base, Evidence, Lock
from pipeline.log import Log
from pipeline.oci import Digest
from pipeline.platforms import Platform
from pipeline.versions import Intent


def lock_of(files: Sequence[dict[str, str]]) -> Lock:
    """A lock that has these files and nothing else."""
    source = "a benchmark"
    artifacts = tuple(
        Artifact(
            component=Path(file["url"]).name,
            version="1",
            platform=Platform.AMD64,
            origin="docker",
            path=Path(file["url"]).name,
            url=file["url"],
            digest=Digest.of_hex(file["sha256"]),
            size=int(file["size"]),
            evidence=Evidence.FIRST_USE,
            source=source,
        )
        for file in files
    )
    nothing = Digest.of(b"")
    return Lock(
        intent=nothing,
        date="2026-01-01",
        base=Base(image="none", digest=nothing, evidence=Evidence.FIRST_USE, source=source),
        versions={},
        artifacts=artifacts,
        packages=(),
        guest=(),
    )


INTENT = Intent(
    names=(),
    title="",
    description="",
    source="",
    licenses="",
    platforms=(Platform.AMD64,),
    components={},
    base="none",
    suites={},
    packages=(),
    upstream={},
    mirrors={},
)


def main(arguments: Sequence[str]) -> int:
    """Fetch; returns the exit code of the pipeline."""
    listed, cache, *every = arguments
    lock = lock_of(json.loads(Path(listed).read_text(encoding="utf-8")))
    rules = replace(Rules(), every=float(every[0])) if every else Rules()
    log = Log(quiet=True)
    try:
        with transport.make_client() as client:
            fetch.run(INTENT, lock, Path(cache), client, log, rules=rules)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
