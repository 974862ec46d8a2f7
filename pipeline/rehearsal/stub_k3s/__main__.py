"""The command line: `k3s --version`, `k3s server`, `k3s agent`.

Modules are imported only by the command that needs them: `--version` also runs under user-mode emulation, where an
import takes ten times as long as natively.
"""

from __future__ import annotations

import sys

from .about import PLATFORM, VERSION


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code, which is 1 for every failure, as of k3s."""
    command, *others = (sys.argv[1:] if arguments is None else arguments) or [""]
    if command in ("--version", "-v"):
        print(f"k3s version {VERSION} (stub)\ngo version none, this is a stub for rehearsals")
        return 0
    if command in ("server", "agent"):
        return serve(command, others)
    print(f"k3s stub {VERSION} for {PLATFORM}: no command {command!r}, only server, agent, --version", file=sys.stderr)
    return 1


def serve(command: str, arguments: list[str]) -> int:
    """Run the server or the agent until a signal ends it."""
    import os

    from .config import load
    from .errors import Failure
    from .process import say

    try:
        say(f"this is a stub for rehearsals, not k3s: {VERSION} for {PLATFORM}, pods are containers of dockerd")
        config = load(arguments, os.environ, command=command)
        if command == "agent":
            from .agents import run as run_agent

            run_agent(config)
        from .server import run

        run(config)
    except Failure as failure:
        say(str(failure), level="fatal")
        return 1
