"""A file that is being downloaded from one URL: its bytes so far, and a record of how many of them are safe.

    <folder>/.<name>.<url>.partial       the bytes
    <folder>/.<name>.<url>.json          {"url", "etag", "size", "safe"}

`safe` bytes are on the disk (fsync) and hold what `etag` names. A run that was killed, even by a power failure, leaves
a record that is true: it is replaced in one step, and only after the bytes that it counts were synchronised.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from pipeline.core.names import Digest

_CHUNK = 1 << 20


class Partial:
    """The bytes of `url` on their way to the file `name` in `folder`; `every`: seconds between two records.

    One thread uses it. Every method may raise OSError.
    """

    def __init__(self, folder: Path, name: str, url: str, *, every: float) -> None:
        self.path, self.record = _paths(folder, name, url)
        self.url = url
        self.done = 0  # bytes that are written
        self.etag = ""  # strong, of the bytes so far; empty: they cannot be continued
        self.size: int | None = None  # of the whole, as the server reports it
        self.resumed = False  # whether any of the bytes came in an earlier run or answer
        self._every = every
        self._state = sha256()
        self._recorded_at = time.monotonic()
        self._moved = False
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._take_up()

    def _take_up(self) -> None:
        """Continue what an earlier try left, as far as its record says that it is safe; these bytes are hashed once."""
        safe = 0
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            is_there = 0 < int(record["safe"]) <= os.fstat(self._file).st_size
            if is_there and record["url"] == self.url and str(record["etag"]).startswith('"'):
                safe, self.etag = int(record["safe"]), str(record["etag"])
                self.size = None if record["size"] is None else int(record["size"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            pass  # no record, or not one of ours: nothing is safe
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
        """SHA-256 of the bytes written so far."""
        return Digest(f"sha256:{self._state.hexdigest()}")

    def begin(self, etag: str, size: int | None) -> None:
        """Start from nothing; `etag`: a strong one, or empty."""
        self.record.unlink(missing_ok=True)
        os.ftruncate(self._file, 0)
        self._state, self.done, self.resumed = sha256(), 0, False
        self.etag, self.size = etag, size

    def append(self, chunk: bytes | memoryview) -> None:
        """Write and hash; every few seconds make safe what was written."""
        view = memoryview(chunk)
        while view:
            written = os.pwrite(self._file, view, self.done)
            self._state.update(view[:written])
            self.done += written
            view = view[written:]
        if time.monotonic() - self._recorded_at >= self._every:
            self.keep()

    def keep(self) -> None:
        """Make all bytes so far safe, if a later answer could continue them."""
        self._recorded_at = time.monotonic()
        if not self.etag or not self.done:
            return
        os.fsync(self._file)
        record = {"url": self.url, "etag": self.etag, "size": self.size, "safe": self.done}
        new = self.record.with_suffix(".new")
        with new.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(self.record)

    def move(self, target: Path) -> None:
        """Give the bytes, which are complete, their name in one step.

        They are not synchronised: a fetch hashes what the cache has before it is used, so a power failure right now
        costs this download and nothing else, while waiting for the disk would cost every fetch half of its speed.
        """
        self.path.replace(target)
        self._moved = True
        self.record.unlink(missing_ok=True)

    def remove(self) -> None:
        """Leave nothing of it."""
        self.path.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; its bytes are removed if no later try can continue them."""
        os.close(self._file)
        if not self._moved and not self.record.exists():
            self.path.unlink(missing_ok=True)


def remove(folder: Path, name: str, urls: Iterable[str]) -> None:
    """Remove what is there of a file from these URLs."""
    for url in urls:
        for path in _paths(folder, name, url):
            path.unlink(missing_ok=True)


def _paths(folder: Path, name: str, url: str) -> tuple[Path, Path]:
    """The bytes and their record."""
    beginning = f".{name}.{sha256(url.encode()).hexdigest()[:12]}"
    return folder / f"{beginning}.partial", folder / f"{beginning}.json"


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
        is_there = (folder / path.name.split(".")[1]).exists()
        if useless or is_there or bytes_.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
