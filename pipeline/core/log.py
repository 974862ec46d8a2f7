"""Log output: steps with times, download bars, build lines, tables.

On a terminal rich draws bars; elsewhere (CI, a pipe) the same facts are logged as plain lines. On GitHub steps fold.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_SILENCE = 5.0  # seconds without a line, after which the running step or awaited event is named
_PLAIN_EVERY = 3.0  # seconds between two plain lines about one running transfer
_UNITS = (("kB", 10**3), ("MB", 10**6), ("GB", 10**9))

# Patterns of secrets, and their replacements. Text from servers and libraries is printed too, so every line is
# searched, whatever its origin.
_HIDDEN = (
    (
        re.compile(r"(?i)\b((?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:basic|bearer|token)\s+)?[^\s'\",]+"),
        r"\1…",
    ),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{12,}"), r"\1…"),
    (re.compile(r"(?i)\b((?:https?|ftp|git|ssh|socks5h?)://)[^\s/]*@"), r"\1…@"),
    (
        re.compile(
            r"(?i)([?&;][\w.%-]*(?:token|secret|passw(?:or)?d|signature|credential|api_?key|access_?key|sig|auth)[\w.%-]*=)"
            r"[^\s&;'\"<>]+"
        ),
        r"\1…",
    ),
    (re.compile(r"\b(?:gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,})"), "…"),
)


def redact(text: str) -> str:
    """Remove the values of credentials from a text: Authorization headers, `?token=` and the like, `user:password@`."""
    for pattern, replacement in _HIDDEN:
        text = pattern.sub(replacement, text)
    return text


@dataclass(kw_only=True, eq=False)
class Step:
    """A named part of the work, running or ended."""

    name: str
    depth: int  # 0: in no other step
    start: float  # time.monotonic
    end: float = 0.0
    mark: str = "✓"  # what its last line begins with: ✗ for one that failed, also without an exception


class Log:
    """Prints to standard error; nothing else does.

    Standard output is for the result of a command (a plan, a JSON matrix).
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.started = time.monotonic()
        self._console: Console | None = None
        self._github = os.environ.get("GITHUB_ACTIONS") == "true"
        self._threads = threading.local()
        self._open: list[tuple[str, float]] = []  # running steps and awaited events, and since when; the innermost last
        self._logged = time.monotonic()
        self._watcher: threading.Thread | None = None
        self.done: list[Step] = []  # in the order of their ends

    @property
    def _depth(self) -> int:
        """How many steps are open in this thread; a worker's lines are below the step that started it."""
        above = 0 if threading.current_thread() is threading.main_thread() else 1
        return int(getattr(self._threads, "depth", above))

    @_depth.setter
    def _depth(self, value: int) -> None:
        self._threads.depth = value

    @property
    def console(self) -> Console:
        """rich's console on standard error, created when first needed: importing rich costs time."""
        if self._console is None:
            from rich.console import Console

            wide = None if sys.stderr.isatty() else 160
            self._console = Console(
                stderr=True, highlight=False, emoji=False, markup=False, soft_wrap=not sys.stderr.isatty(), width=wide
            )
        return self._console

    def say(self, text: str) -> None:
        """Log a line at the depth of the running step."""
        self._logged = time.monotonic()
        if not self.quiet:
            self.console.print("  " * self._depth + redact(text), markup=False)

    def warn(self, text: str) -> None:
        """Log a warning; on GitHub an annotation."""
        text = redact(text)
        if self._github:
            print(f"::warning::{text}", file=sys.stderr)
        else:
            self.console.print("  " * self._depth + f"warning: {text}", style="yellow", markup=False)

    def command(self, arguments: Sequence[str]) -> None:
        """Log a command before it runs, quoted so that it can be pasted."""
        self.say("+ " + shlex.join(arguments))

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Log a named part of the work; its time is logged at the end, also after a failure."""
        top = self._depth == 0
        if top and self._github:
            print(f"::group::{redact(name)}", file=sys.stderr, flush=True)
        self.say(f"▶ {name}")
        step = Step(name=name, depth=self._depth, start=time.monotonic())
        self._depth += 1
        try:
            with self._running(f"still running: {name}"):
                yield step
        except BaseException:
            step.mark = "✗"
            raise
        finally:
            self._depth -= 1
            step.end = time.monotonic()
            self.say(f"{step.mark} {name} · {seconds(step.end - step.start)}")
            self.done.append(step)
            if top and self._github:
                print("::endgroup::", file=sys.stderr, flush=True)

    def waiting(self, event: str) -> AbstractContextManager[None]:
        """Name an event that the block waits for, in the lines after a long silence; unlike a step it logs no end."""
        return self._running(f"waiting for {event}")

    @contextmanager
    def _running(self, line: str) -> Iterator[None]:
        running = (line, time.monotonic())
        self._open.append(running)
        if self._watcher is None and not self.quiet:
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        try:
            yield
        finally:
            self._open.remove(running)

    def _watch(self) -> None:
        """Log the innermost step or event after a long silence."""
        while True:
            time.sleep(1)
            for line, start in self._open[-1:] if time.monotonic() - self._logged >= _SILENCE else ():
                self.say(f"{line} ({seconds(time.monotonic() - start)})")

    @contextmanager
    def transfers(self, files: int = 0) -> Iterator[Transfers]:
        """Show several transfers: bars on a terminal, else plain lines; also a total for more than one of `files`."""
        name = f"all {files} files" if files > 1 else None
        if self.quiet or not self.console.is_terminal:
            yield Transfers(self, None, name)
            return
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=self.console) as bars:
            yield Transfers(self, bars, name)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table of text."""
        from rich.table import Table

        table = Table(title=redact(title), title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(redact, row))
        self.console.print(table)

    @property
    def elapsed(self) -> float:
        """Seconds since this log was created."""
        return time.monotonic() - self.started


class Transfers:
    """Starts the bars of `Log.transfers`. Thread-safe as far as rich is: one transfer per thread."""

    def __init__(self, log: Log, bars: Progress | None, name: str | None) -> None:
        self._log = log
        self._bars = bars
        self._whole = Transfer(log, bars, name, total=0) if name else None

    def start(self, name: str, total: int | None) -> Transfer:
        """Start a transfer of `total` bytes (None: not known yet)."""
        if self._whole is not None and total is not None:
            self._whole.grow(total)
        return Transfer(self._log, self._bars, name, total=total, whole=self._whole)


class Transfer:
    """A running transfer, or the sum of several: a bar, or lines. Without bars only the sum is logged."""

    def __init__(
        self, log: Log, bars: Progress | None, name: str, *, total: int | None, whole: Transfer | None = None
    ) -> None:
        self._log = log
        self._bars = bars
        self._bar = bars.add_task(redact(name), total=total) if bars else None
        self._name = name
        self._total = total
        self._whole = whole
        self._done = 0
        self._logged = time.monotonic()

    def advance(self, count: int) -> None:
        """Add `count` transferred bytes."""
        self._done += count
        if self._whole is not None:
            self._whole.advance(count)
        if self._bars is not None and self._bar is not None:
            # One of several is hidden when complete: a terminal has fewer lines than a lock has files.
            self._bars.update(self._bar, advance=count, visible=self._whole is None or self._done != self._total)
        elif self._whole is None and time.monotonic() - self._logged >= _PLAIN_EVERY:
            self._logged = time.monotonic()
            of = f" of {size(self._total)}" if self._total else ""
            self._log.say(f"{self._name}: {size(self._done)}{of}")

    def total(self, count: int) -> None:
        """Set the size of the whole, in bytes."""
        if self._whole is not None and self._total is None:
            self._whole.grow(count)
        self._total = count
        if self._bars is not None and self._bar is not None:
            self._bars.update(self._bar, total=count)

    def grow(self, count: int) -> None:
        """Add to the expected bytes."""
        self.total((self._total or 0) + count)


def size(count: int) -> str:
    """Format bytes: 1,234,567 → `1.2 MB` (decimal, as registries and vendors count)."""
    if count < 1000:
        return f"{count} B"
    unit, value = next((unit, count / limit) for unit, limit in _UNITS if count < 1000 * limit or unit == "GB")
    return f"{value:.1f} {unit}"


def seconds(value: float) -> str:
    """Format a duration: `0.4 s`, `73 s`, `12 min 5 s`."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"
