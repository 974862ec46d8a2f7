"""A file that is being downloaded from one URL: its bytes so far, and beside them a record of how many are safe.

    <cache>/sha256/.<hex>.<url>.partial       the bytes
    <cache>/sha256/.<hex>.<url>.json          {"url", "etag", "size", "safe"}

`safe` bytes are on the disk (fsync) and hold what `etag` names. A run that was killed, even by a power failure, leaves
a record that is true: it is replaced in one step, and only after the bytes that it speaks of were synchronised.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from pipeline.core.names import Digest

_CHUNK = 1 << 20

# Synchronising waits for the disk; the threads that download do not.
_KEEPER = ThreadPoolExecutor(max_workers=2, thread_name_prefix="keeper")


class Partial:
    """The bytes of `url` on their way to `target`; `every` is the seconds between two records. One thread uses it."""

    def __init__(self, target: Path, url: str, *, every: float) -> None:
        name = f".{target.name}.{sha256(url.encode()).hexdigest()[:12]}"
        self.path = target.with_name(f"{name}.partial")
        self.record = target.with_name(f"{name}.json")
        self.url = url
        self.done = 0  # bytes that are written
        self.etag = ""  # strong, of the bytes so far; empty: they cannot be continued
        self.size: int | None = None  # of the whole, as the server told it
        self.resumed = False  # whether any of the bytes came in an earlier run or answer
        self._every = every
        self._state = sha256()
        self._pending: Future[None] | None = None
        self._told = time.monotonic()
        self._recorded = self.record.exists()
        self._moved = False
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._take_up()

    def _take_up(self) -> None:
        """Go on with what an earlier run left, as far as its record says that it is safe; the prefix is hashed once."""
        safe = 0
        try:
            told = json.loads(self.record.read_text(encoding="utf-8"))
            there = 0 < int(told["safe"]) <= os.fstat(self._file).st_size
            if there and told["url"] == self.url and str(told["etag"]).startswith('"'):
                safe, self.etag = int(told["safe"]), str(told["etag"])
                self.size = None if told["size"] is None else int(told["size"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            pass  # no record, or none of ours: nothing is safe
        if os.fstat(self._file).st_size != safe:
            os.ftruncate(self._file, safe)
        while self.done < safe and (chunk := os.pread(self._file, min(_CHUNK, safe - self.done), self.done)):
            self._state.update(chunk)
            self.done += len(chunk)
        self.resumed = self.done > 0
        if not self.done:
            self.etag = ""

    @property
    def digest(self) -> Digest:
        """Of the bytes so far."""
        return Digest(f"sha256:{self._state.hexdigest()}")

    def begin(self, etag: str, size: int | None) -> None:
        """Start from nothing; `etag`: a strong one, or empty."""
        self._settle()
        self._forget()
        if self.done:
            os.ftruncate(self._file, 0)
        self._state, self.done, self.resumed = sha256(), 0, False
        self.etag, self.size = etag, size

    def append(self, chunk: bytes | memoryview) -> None:
        """Write, hash, and now and then see to it that what was written is safe. Raises OSError."""
        view = memoryview(chunk)
        while view:
            written = os.pwrite(self._file, view, self.done)
            self._state.update(view[:written])
            self.done += written
            view = view[written:]
        now = time.monotonic()
        if self.etag and now - self._told >= self._every and (self._pending is None or self._pending.done()):
            self._settle()
            self._told = now
            self._pending = _KEEPER.submit(self._write_down, self.done, self.etag, self.size)

    def keep(self) -> None:
        """Make all bytes so far safe, if a later answer could continue them. Raises OSError."""
        self._settle()
        if self.etag and self.done:
            self._write_down(self.done, self.etag, self.size)

    def _write_down(self, safe: int, etag: str, size: int | None) -> None:
        os.fsync(self._file)
        self._recorded = True
        text = json.dumps({"url": self.url, "etag": etag, "size": size, "safe": safe}) + "\n"
        new = self.record.with_suffix(".new")
        with new.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(self.record)

    def _settle(self) -> None:
        """Wait for the record that is being written."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def move(self, target: Path) -> None:
        """All bytes are there: give them their name in one step, forget the record.

        They are not synchronised: a fetch hashes what the cache has before it is used, so a power failure right now
        costs this download and nothing else, while waiting for the disk would cost every fetch half of its speed.
        """
        self._settle()
        self.path.replace(target)
        self._moved = True
        self._forget()

    def _forget(self) -> None:
        if self._recorded:
            self.record.unlink(missing_ok=True)
            self._recorded = False

    def remove(self) -> None:
        """Leave nothing of it."""
        try:
            self._settle()
        finally:
            self.unlink()

    def unlink(self) -> None:
        """Take away its names; for other threads than the one that uses it."""
        self.path.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; what is on the disk stays. Bytes that no later run can use are removed."""
        try:
            self._settle()
        finally:
            os.close(self._file)
            if not self._moved and not self.record.exists():
                self.path.unlink(missing_ok=True)


def sweep(folder: Path, *, older: float) -> None:
    """Remove what no run will continue: bytes without a record, a record without bytes, both after `older` seconds
    or when the file is there.
    """
    oldest = time.time() - older
    for path in list(folder.glob(".*")):
        if path.suffix not in (".partial", ".json", ".new"):
            continue
        bytes_, record = path.with_suffix(".partial"), path.with_suffix(".json")
        useless = path.suffix == ".new" or not bytes_.exists() or not record.exists()
        there = folder / path.name.split(".")[1]
        if useless or there.exists() or bytes_.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
