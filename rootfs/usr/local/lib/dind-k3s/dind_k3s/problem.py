"""Why a daemon does not work, in its own words: /run/dind-k3s/PROGRAM.problem, one line, for dockerd and k3s.

keeper.py writes it when the program ended without being stopped, and while a server refuses this node's name.
keeper.py removes it when the program is ready again, and when somebody stops the program on purpose.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from dind_k3s.plan import Mistake, shown
from dind_k3s.root import RUN, at

# k3s logs with logrus. A failed component requests a shutdown, and then k3s exits with 0 (pkg/signals/signals.go);
# every other fatal error is a line at level=fatal (pkg/cli/cmds/root.go). The rest: our run-k3s, Go's runtime, dockerd.
_LOGRUS = re.compile(r'level=(fatal|panic|error) msg=("(?:[^"\\]|\\.)*"|\S+)')
# Kubernetes inside of k3s logs with klog; after a fatal line come the stacks of all goroutines, then exit code 255.
_KLOG = re.compile(r"F\d{4} [\d:.]+ +\d+ [\w.-]+:\d+\] (.*)")
_PLAIN = re.compile(r"(?:dind-k3s: error|panic): |failed to start daemon")
_REQUEST = "Shutdown request received"
REJECTED = b"Node password rejected"  # k3s: pkg/agent/config; an agent asks again for ever


def path(program: str) -> Path:
    return at(f"{RUN}/{program}.problem")


def read(program: str) -> str:
    """What was written last and not removed; empty when there is nothing."""
    try:
        return path(program).read_text(errors="replace").strip()
    except OSError:
        return ""


def write(program: str, text: str) -> None:
    """Whole or not at all."""
    file = path(program)
    temporary = file.with_suffix(".new")
    temporary.write_text(f"{text}\n")
    temporary.rename(file)


def reason(line: str) -> str:
    """The message of a log line that gives the reason of the program's end; empty for every other line."""
    level, message = _logrus(line)
    if level in ("fatal", "panic") or message.startswith(_REQUEST):
        return shown(message, 400)
    if match := _KLOG.match(line):
        return shown(match[1], 400)
    return shown(line.removeprefix("dind-k3s: error: "), 400) if _PLAIN.match(line) else ""


def error(line: str) -> str:
    """The message of a line at level=error; empty for every other line."""
    level, message = _logrus(line)
    return shown(message, 400) if level == "error" else ""


def _logrus(line: str) -> tuple[str, str]:
    match = _LOGRUS.search(line)
    if match is None:
        return "", ""
    level, message = match.groups()
    try:
        return level, str(json.loads(message)) if message.startswith('"') else message
    except ValueError:  # Go quotes bytes that are not text as \x..
        return level, message.strip('"')


def name_taken() -> str:
    """What to do when a server rejects this node's password."""
    from dind_k3s import k3s_config  # keeper.py needs it in this case alone, and what PID 1 imports stays in memory

    try:
        name = k3s_config.given(os.environ, "node-name", ours=True)["node-name"]
    except (Mistake, KeyError):  # a file that somebody edits
        name = "NAME"
    return (
        f"the node name {name} is taken: another machine uses it, or this one did with another volume at /app/k3s. If"
        f" that one is gone, run `kubectl delete node {name}` on the server, and this one joins by itself; otherwise"
        " set K3S_NODE_NAME to another name"
    )
