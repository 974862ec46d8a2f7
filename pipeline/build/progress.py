"""Converts BuildKit's progress (JSON lines of `--progress=rawjson`) to readable lines. No I/O.

Each line is a client.SolveStatus: vertexes (build steps), statuses (parts of a step), logs (their output, base64) and
warnings. Source: docker/buildx, `--progress` reference; moby/buildkit client/graph.go.
"""

from __future__ import annotations

import base64
import json
import re
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

_TAIL = 40  # last output lines of a step, kept for the error message


@dataclass
class _Step:
    name: str
    seconds: float = 0.0
    cached: bool = False
    error: str = ""
    done: bool = False
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL))


class Solve:
    """The progress of one build."""

    def __init__(self) -> None:
        self._steps: dict[str, _Step] = {}
        self._other: deque[str] = deque(maxlen=_TAIL)

    def feed(self, line: str) -> list[str]:
        """Take a line of the stream; return the lines to log: a step that ended, with its time, or a warning."""
        try:
            status: Any = json.loads(line)
        except ValueError:
            status = None
        if not isinstance(status, dict):
            if line.strip():
                self._other.append(line.rstrip())
            return []
        ended: list[str] = []
        for vertex in status.get("vertexes") or ():
            ended += self._vertex(vertex)
        for entry in status.get("logs") or ():
            step = self._steps.get(entry.get("vertex", ""))
            if step is not None:
                text = base64.b64decode(entry.get("data") or "").decode("utf-8", "replace")
                step.tail.extend(line for line in text.splitlines() if line.strip())
        for warning in status.get("warnings") or ():
            short = base64.b64decode(warning.get("short") or "").decode("utf-8", "replace")
            ended.append(f"warning: {short}")
        return ended

    def _vertex(self, vertex: dict[str, Any]) -> list[str]:
        step = self._steps.setdefault(vertex["digest"], _Step(vertex.get("name", "?")))
        step.cached = step.cached or bool(vertex.get("cached"))
        if vertex.get("error"):
            step.error = vertex["error"]
        if not vertex.get("completed") or step.done:
            return []
        step.done = True
        if vertex.get("started"):  # a cached step has no such time
            began, ended = (datetime.fromisoformat(vertex[key]) for key in ("started", "completed"))
            step.seconds = (ended - began).total_seconds()
        # BuildKit transfers each file of a context in a separate step; only slow ones are logged.
        small = step.name.startswith("[context") and step.seconds < 0.5
        if (step.name.startswith("[internal]") or small) and not step.error:
            return []
        result = "failed" if step.error else "cached" if step.cached else f"{step.seconds:.1f} s"
        return [f"{result:>8}  {_short(step.name)}"]

    @property
    def cached(self) -> int:
        """Number of steps that came from the cache."""
        return sum(step.cached for step in self._of_dockerfile)

    @property
    def ran(self) -> int:
        """Number of steps that ran."""
        return sum(not step.cached for step in self._of_dockerfile)

    @property
    def slowest(self) -> list[tuple[str, float]]:
        """The three slowest steps: name, seconds."""
        ordered = sorted(self._steps.values(), key=lambda step: -step.seconds)
        return [(_short(step.name), step.seconds) for step in ordered[:3] if step.seconds >= 0.05]

    @property
    def _of_dockerfile(self) -> list[_Step]:
        """The ended steps of the Dockerfile, without those that BuildKit adds."""
        return [step for step in self._steps.values() if step.done and re.match(r"\[(?!internal|context)", step.name)]

    def failure(self) -> tuple[str, list[str]]:
        """Return the failed step and its last output lines; the last unparsed lines if no step failed."""
        for step in self._steps.values():
            if step.error and "context canceled" not in step.error:
                # BuildKit repeats the whole command; the exit code is at the end.
                return _short(step.name), [*step.tail, step.error[-200:] if len(step.error) > 400 else step.error]
        return "buildx itself", list(self._other)


def _short(name: str) -> str:
    """Return a step's name in one short line: a RUN may have many."""
    text = " ".join(name.split())
    return text if len(text) <= 110 else text[:109] + "…"
