"""reload PID [DOCKERD ARGUMENT…]: dockerd, which has that process id, reads its configuration again.

keeper.py runs this at a SIGHUP. As with docker itself, that counts for the keys below; all others wait for the next
start of the container.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dind_k3s import dockerd, registries
from dind_k3s.configure import version_of, write
from dind_k3s.plan import Mistake
from dind_k3s.root import RUN, at, facts

# docs.docker.com/reference/cli/dockerd, "Configuration reload behavior"
KEYS = (
    *("authorization-plugins", "debug", "default-runtime", "features", "insecure-registries", "labels"),
    *("max-concurrent-downloads", "max-concurrent-uploads", "max-download-attempts", "registry-mirrors", "runtimes"),
    "shutdown-timeout",
)


def renewed(env: Mapping[str, str], extra: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """daemon.json with what the user's files hold now, and the keys that changed. Raises Mistake."""
    _, settings = registries.plan()
    profile = env.get("PROFILE") or "dev"
    plan = dockerd.plan(env, extra, facts(), version_of("docker"), profile, settings)
    asked = json.loads(plan.files[f"{RUN}/daemon.json"])
    current = json.loads(at(f"{RUN}/daemon.json").read_text())
    changed = [key for key in KEYS if asked.get(key) != current.get(key)]
    kept = {key: value for key, value in current.items() if key not in changed}
    return kept | {key: asked[key] for key in changed if key in asked}, changed


def main() -> int:
    pid, *extra = sys.argv[1:]
    try:
        config, changed = renewed(os.environ, extra)
    except Mistake as mistake:
        for message in mistake.messages:
            print(f"[dind-k3s] signal: error: SIGHUP changes nothing: {message}", flush=True)
        return 2
    write({f"{RUN}/daemon.json": json.dumps(config, indent=2, sort_keys=True) + "\n"})
    if int(pid):
        os.kill(int(pid), signal.SIGHUP)
    print(
        f"[dind-k3s] signal: SIGHUP: dockerd reloads its configuration ({', '.join(changed) or 'no change'})",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
