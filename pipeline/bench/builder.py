"""`python -m pipeline.bench.builder VERSIONS LOCK DIST CACHE [rehearsed]`: what `nox -s build` runs, as one process.

That is `python -m pipeline build --offline`, but for what is made of a rehearsal's stand-ins, which must say so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.errors import PipelineError
from pipeline.core.log import Log
from pipeline.workflow import Run

ROOT = Path(__file__).resolve().parent.parent.parent


def main(arguments: Sequence[str]) -> int:
    """Check the cache, choose the engine, build; returns the exit code of the pipeline."""
    intent, lock, dist, cache = map(Path, arguments[:4])
    run = Run(
        root=ROOT,
        intent_path=intent,
        lock_path=lock,
        dist=dist,
        cache=cache,
        log=Log(),
        rehearsed=arguments[4:] == ["rehearsed"],
    )
    try:
        with run:
            run.fetch(offline=True)
            run.build()
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
