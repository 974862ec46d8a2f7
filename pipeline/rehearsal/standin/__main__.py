"""The command line: `k3s --version`, `k3s server`, and a plain sentence for everything else.

Modules are imported only when a command needs them: `--version` is also asked under user-mode emulation, where every
import costs ten times what it costs natively.
"""

from __future__ import annotations

import sys
from pathlib import PurePath

from .about import PLATFORM, VERSION

# k3s is one binary under several names: invoked as kubectl it is kubectl (k3s: cmd/k3s/main.go).
OTHER_NAMES = ("kubectl", "crictl", "ctr")
ABSENT = (
    *OTHER_NAMES,
    "token",
    "etcd-snapshot",
    "secrets-encrypt",
    "certificate",
    "check-config",
    "completion",
)
USAGE = f"""k3s {VERSION}: a stand-in for rehearsals of the dind-k3s release, not k3s.

usage: k3s --version
       k3s server --docker [--config FILE] [flags as in k3s]
       k3s agent --docker --server URL --token TOKEN [flags as in k3s]
"""


def say(sentence: str) -> int:
    """Print the reason of a failure and give back the exit code that k3s has for all of them."""
    print(f"k3s stand-in: {sentence}", file=sys.stderr)
    return 1


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv if argv is None else argv
    name, arguments = PurePath(words[0]).name, words[1:]
    if name in OTHER_NAMES:
        return say(f"the stand-in has no {name}")
    if not arguments or arguments[0] in ("help", "-h", "--help"):
        print(USAGE, end="")
        return 0
    command = arguments[0]
    if command in ("--version", "-v"):
        print(f"k3s version {VERSION} (standin)\ngo version none, this is a stand-in for rehearsals")
        return 0
    if command in ("server", "agent"):
        return serve(command, arguments[1:])
    if command in ABSENT:
        return say(f"the stand-in has no {command}; it only has `k3s server`, `k3s agent` and `k3s --version`")
    return say(f"no such command: {command} (stand-in {VERSION}, {PLATFORM})")


def serve(command: str, arguments: list[str]) -> int:
    """Read the configuration and run the server, or the agent, until a signal ends it."""
    import os

    from . import log
    from .config import load
    from .failure import Failure

    if any(word in ("-h", "--help") for word in arguments):
        print(USAGE, end="")
        return 0
    try:
        config = load(arguments, os.environ, command=command)
        if command == "agent":
            from .agent import run as run_agent

            return run_agent(config)
        from .server import run

        return run(config)
    except Failure as failure:
        log.say(str(failure), level="fatal")
        return 1


if __name__ == "__main__":
    sys.exit(main())
