"""`python3 -I -S /usr/local/lib/dind-k3s COMMAND …`: the image's programs in Python, and which module each is.

Running the folder puts it first on Python's path; -I -S leaves out everything else but the standard library, which
halves the time of a start. /usr/local/bin/dind-k3s is the way in for people, and its other names are commands.
"""

from __future__ import annotations

import importlib
import os
import sys

# Called by the image's own scripts, and by its build.
INTERNAL = (
    *("address", "configure", "data-root", "drain", "etcd", "guard", "join", "keeper", "manifests"),
    *("old-data", "preload", "record", "reload", "room", "watch"),
)
COMMANDS = {  # of people → what `dind-k3s` alone prints about them
    "doctor": "what this container found in its host, and what to do about it",
    "kubeconfig": "a kubeconfig for use from outside",
    "snapshot": "the cluster's state in one file, while k3s runs",
    "restore": "the cluster as it was in a snapshot",
    "reset": "a new cluster, no images, or both, without a new container",
    "collect-logs": "a tarball for a bug report, without secrets",
    "verify": "whether the programs in here are those that were built into the image",
}


def main() -> int:
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name not in COMMANDS and name not in INTERNAL:
        wrong = name not in ("--help", "-h", "help")
        lines = [f"  {command:14} {what}" for command, what in COMMANDS.items()]
        messages = [*([f"dind-k3s: there is no {name}"] if wrong else []), "usage: dind-k3s COMMAND [--help]", *lines]
        print("\n".join(messages), file=sys.stderr if wrong else sys.stdout)
        return 2 if wrong else 0
    sys.argv = [name, *rest]
    if name not in ("guard", "configure"):  # which check the user's variables
        from dind_k3s import clients  # here, because each start waits for guard

        clients.settle(os.environ)
    module = importlib.import_module(f"dind_k3s.{name.replace('-', '_')}")
    status: int = module.main()
    return status


if __name__ == "__main__":
    sys.exit(main())
