"""A partial download from one URL: the bytes so far, and a record of how many of them are safe.

    <folder>/.<name>.<url>.partial       the bytes
    <folder>/.<name>.<url>.json          {"url", "etag", "size", "safe"}

`safe` bytes are on the disk (fsync) and belong to `etag`. The record is replaced atomically after the fsync, so it is
true even after a power failure.
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
    """The bytes of `url` for the file `name` in `folder`; `every`: seconds between two records.

    For one thread. Every method can raise OSError.
    """

    def __init__(self, folder: Path, name: str, url: str, *, every: float) -> None:
        self.path, self.record = _paths(folder, name, url)
        self.url = url
        self.done = 0  # bytes
        self.etag = ""  # strong, of the bytes so far; empty: no resume
        self.size: int | None = None  # of the whole file, as the server reports it
        self.resumed = False  # whether some bytes are of an earlier run or response
        self._every = every
        self._state = sha256()
        self._recorded_at = time.monotonic()
        self._moved = False
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._resume()

    def _resume(self) -> None:
        """Keep the safe bytes of an earlier attempt, and hash them."""
        safe = 0
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            is_there = 0 < int(record["safe"]) <= os.fstat(self._file).st_size
            if is_there and record["url"] == self.url and str(record["etag"]).startswith('"'):
                safe, self.etag = int(record["safe"]), str(record["etag"])
                self.size = None if record["size"] is None else int(record["size"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            pass  # no record, or an invalid one
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
        """Start again; `etag`: a strong one, or empty."""
        self.record.unlink(missing_ok=True)
        os.ftruncate(self._file, 0)
        self._state, self.done, self.resumed = sha256(), 0, False
        self.etag, self.size = etag, size

    def append(self, chunk: bytes | memoryview) -> None:
        """Write and hash; make the bytes safe every few seconds."""
        view = memoryview(chunk)
        while view:
            written = os.pwrite(self._file, view, self.done)
            self._state.update(view[:written])
            self.done += written
            view = view[written:]
        if time.monotonic() - self._recorded_at >= self._every:
            self.keep()

    def keep(self) -> None:
        """Make all bytes so far safe, if a later response can continue them."""
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
        """Move the complete file to its place atomically.

        Without fsync, which would halve the speed of a fetch: files in the cache are hashed before use, so a power
        failure only costs this download.
        """
        self.path.replace(target)
        self._moved = True
        self.record.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the bytes and the record."""
        self.path.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; remove it if a later attempt cannot continue it."""
        os.close(self._file)
        if not self._moved and not self.record.exists():
            self.path.unlink(missing_ok=True)


def remove(folder: Path, name: str, urls: Iterable[str]) -> None:
    """Remove the partial downloads of a file from these URLs."""
    for url in urls:
        for path in _paths(folder, name, url):
            path.unlink(missing_ok=True)


def _paths(folder: Path, name: str, url: str) -> tuple[Path, Path]:
    stem = f".{name}.{sha256(url.encode()).hexdigest()[:12]}"
    return folder / f"{stem}.partial", folder / f"{stem}.json"


def sweep(folder: Path, *, older: float) -> None:
    """Remove partial downloads that no run will resume: incomplete, older than `older` seconds, or of a file that is
    complete.
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
