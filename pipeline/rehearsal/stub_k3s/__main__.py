"""The command line: `k3s --version`, `k3s server`, `k3s agent`.

Modules are imported only when a command needs them: `--version` is also asked under user-mode emulation, where every
import costs ten times what it costs natively.
"""

from __future__ import annotations

import sys

from .about import PLATFORM, VERSION


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code, which is 1 for every failure, as k3s's is."""
    command, *others = (sys.argv[1:] if arguments is None else arguments) or [""]
    if command in ("--version", "-v"):
        print(f"k3s version {VERSION} (stub)\ngo version none, this is a stub for rehearsals")
        return 0
    if command in ("server", "agent"):
        return serve(command, others)
    print(f"k3s stub {VERSION} for {PLATFORM}: only server, agent and --version, not {command!r}", file=sys.stderr)
    return 1


def serve(command: str, arguments: list[str]) -> int:
    """Read the configuration and run the server, or the agent, until a signal ends it."""
    import os

    from . import log
    from .config import load
    from .failure import Failure

    try:
        config = load(arguments, os.environ, command=command)
        log.say(f"this is a stub for rehearsals, not k3s: {VERSION} for {PLATFORM}, pods are containers of dockerd")
        for warning in config.warnings:
            log.say(warning, level="warning")
        if command == "agent":
            from .agent import run as run_agent

            run_agent(config)
        from .server import run

        run(config)
    except Failure as failure:
        log.say(str(failure), level="fatal")
        return 1
