"""What a person sees: steps with times, download bars, build lines, tables.

On a terminal rich draws bars; elsewhere (CI, a pipe) the same facts come as plain lines. On GitHub steps fold.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_SILENCE = 5.0  # seconds without a line, after which the running step is named again
_PLAIN_EVERY = 3.0  # seconds between two plain lines about one running transfer


# What must not be shown, and what is shown in its place. The words of others are printed too (a server's answer, an
# exception of a library), so this looks at the text and not at where it comes from.
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
    """A text without the values of credentials: Authorization headers, `?token=` and its like, `user:password@`."""
    for pattern, instead in _HIDDEN:
        text = pattern.sub(instead, text)
    return text


class Transfer(Protocol):
    """One running transfer of bytes."""

    def advance(self, count: int) -> None:
        """`count` more bytes have come."""

    def total(self, count: int) -> None:
        """The whole is `count` bytes."""


class Step:
    """A running step; `mark` is what its last line begins with: ✗ for one that failed without an exception."""

    mark = "✓"


@dataclass(frozen=True, kw_only=True)
class Done:
    """A step that has ended."""

    name: str
    depth: int  # 0: it stood in no other
    start: float  # seconds since the log began
    end: float
    mark: str


class Log:
    """The one place that prints. `stream` is for tests; None means standard error.

    Standard output is kept for what a command was asked to print (a plan, a JSON matrix).
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._started = time.monotonic()
        self._console: Console | None = None
        self._github = os.environ.get("GITHUB_ACTIONS") == "true"
        self._threads = threading.local()
        self._open: list[tuple[str, float]] = []  # running steps: name, start; the innermost last
        self._said = time.monotonic()
        self._heart: threading.Thread | None = None
        self.done: list[Done] = []  # in the order of their ends

    @property
    def _depth(self) -> int:
        """How many steps are open in this thread; a worker's lines stand below the step that started it."""
        above = 0 if threading.current_thread() is threading.main_thread() else 1
        return int(getattr(self._threads, "depth", above))

    @_depth.setter
    def _depth(self, value: int) -> None:
        self._threads.depth = value

    @property
    def console(self) -> Console:
        """rich's console on standard error, made when first needed: importing rich costs time."""
        if self._console is None:
            from rich.console import Console

            wide = None if sys.stderr.isatty() else 160
            self._console = Console(
                stderr=True, highlight=False, emoji=False, markup=False, soft_wrap=not sys.stderr.isatty(), width=wide
            )
        return self._console

    def say(self, text: str) -> None:
        """One line, at the depth of the running step."""
        self._said = time.monotonic()
        if not self.quiet:
            self.console.print("  " * self._depth + redact(text), markup=False)

    def warn(self, text: str) -> None:
        """A line that a reader should not miss; on GitHub an annotation."""
        text = redact(text)
        if self._github:
            print(f"::warning::{text}", file=sys.stderr)
        else:
            self.console.print("  " * self._depth + f"warning: {text}", style="yellow", markup=False)

    def command(self, arguments: Sequence[str]) -> None:
        """A command before it runs, quoted so that it can be pasted."""
        self.say("+ " + shlex.join(arguments))

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """A named part of the work; its time is told at the end, also when it fails."""
        top = self._depth == 0
        if top and self._github:
            print(f"::group::{redact(name)}", file=sys.stderr, flush=True)
        self.say(f"▶ {name}")
        self._depth += 1
        started = time.monotonic()
        self._open.append((name, started))
        self._beat()
        step = Step()
        try:
            yield step
        except BaseException:
            step.mark = "✗"
            raise
        finally:
            self._open.remove((name, started))
            self._depth -= 1
            ended = time.monotonic()
            self.say(f"{step.mark} {name} · {seconds(ended - started)}")
            self.done.append(
                Done(
                    name=redact(name),
                    depth=self._depth,
                    start=started - self._started,
                    end=ended - self._started,
                    mark=step.mark,
                )
            )
            if top and self._github:
                print("::endgroup::", file=sys.stderr, flush=True)

    def _beat(self) -> None:
        """Start the thread that breaks long silences: a person should see that the work goes on."""
        if self._heart is None and not self.quiet:
            self._heart = threading.Thread(target=self._watch, daemon=True)
            self._heart.start()

    def _watch(self) -> None:
        while True:
            time.sleep(1)
            running = self._open[-1:]
            if running and time.monotonic() - self._said >= _SILENCE:
                name, started = running[0]
                self.say(f"… {name} goes on, {seconds(time.monotonic() - started)}")

    @contextmanager
    def transfers(self, files: int = 0) -> Iterator[Transfers]:
        """Room for several transfers: bars on a terminal, else plain lines; a total too if `files` are several."""
        if not self.quiet and self.console.is_terminal:
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            with Progress(*columns, console=self.console, transient=False) as progress:
                whole = _BarTransfer(progress, f"all {files} files", 0, None) if files > 1 else None
                yield Transfers(self, progress, whole)
        else:
            yield Transfers(self, None, _PlainTransfer(self, f"all {files} files", 0, None) if files > 1 else None)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of text."""
        from rich.table import Table

        table = Table(title=redact(title), title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(redact, row))
        self.console.print(table)

    @property
    def elapsed(self) -> float:
        """Seconds since this log was made."""
        return time.monotonic() - self._started


class _Whole(Transfer, Protocol):
    """The sum of several transfers."""

    def more(self, count: int) -> None:
        """`count` more bytes are to come."""


class Transfers:
    """Starts the bars of `Log.transfers`. Thread-safe as far as rich is: one transfer per thread."""

    def __init__(self, log: Log, progress: Progress | None, whole: _Whole | None) -> None:
        self._log = log
        self._progress = progress
        self._whole = whole

    def start(self, name: str, total: int | None) -> Transfer:
        """A new transfer of `total` bytes (None: not known yet)."""
        if self._whole is not None and total is not None:
            self._whole.more(total)
        if self._progress is None:
            return _PlainTransfer(self._log, name, total, self._whole)  # it says its lines through the log
        return _BarTransfer(self._progress, redact(name), total, self._whole)


class _BarTransfer:
    """A bar; one of many goes away when it is full, for a terminal has fewer lines than a lock has files."""

    def __init__(self, progress: Progress, name: str, total: int | None, whole: _Whole | None) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=total)
        self._total = total
        self._done = 0
        self._whole = whole

    def advance(self, count: int) -> None:
        self._done += count
        self._progress.advance(self._task, count)
        if self._whole is not None:
            self._whole.advance(count)
            self._progress.update(self._task, visible=self._done != self._total)

    def total(self, count: int) -> None:
        if self._whole is not None and self._total is None:
            self._whole.more(count)
        self._total = count
        self._progress.update(self._task, total=count)

    def more(self, count: int) -> None:
        self.total((self._total or 0) + count)


class _PlainTransfer:
    """Lines; of many transfers only the whole tells them."""

    def __init__(self, log: Log, name: str, total: int | None, whole: _Whole | None) -> None:
        self._log = log
        self._name = name
        self._total = total
        self._whole = whole
        self._done = 0
        self._told = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        if self._whole is not None:
            self._whole.advance(count)
            return
        now = time.monotonic()
        if now - self._told >= _PLAIN_EVERY:
            self._told = now
            of = f" of {size(self._total)}" if self._total else ""
            self._log.say(f"{self._name}: {size(self._done)}{of}")

    def total(self, count: int) -> None:
        if self._whole is not None and self._total is None:
            self._whole.more(count)
        self._total = count

    def more(self, count: int) -> None:
        self.total((self._total or 0) + count)


def size(count: int) -> str:
    """Bytes for people: 1,234,567 → `1.2 MB` (decimal, as registries and vendors count)."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 1000 or unit == "GB":
            return f"{value:.1f} {unit}"
    raise AssertionError("unreachable")


def seconds(value: float) -> str:
    """A duration for people: `0.4 s`, `73 s`, `12 min 5 s`."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"
