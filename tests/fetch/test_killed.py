"""kill -9 at fifty random moments of a fetch: the next run completes it without requesting safe bytes again."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

from pipeline.bench import driver
from pipeline.core.names import Digest
from tests.helpers import origins

ROOT = Path(__file__).resolve().parents[2]
KILLS = 50
SIZES = (700_000, 400_000, 400_000, 150_000, 20_000, 1_000)  # bytes
RATE = 3_000_000.0  # bytes a second: a fetch takes about half a second
DEADLINE = 60.0  # seconds


def test_fifty_kills(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"random.Random({seed})")  # shown after a failure
    chance = random.Random(seed)
    folder = tmp_path / "origin"
    folder.mkdir()
    for number, size in enumerate(SIZES):
        (folder / f"f{number}").write_bytes(chance.randbytes(size))
    by_hex = {Digest.of_file(path).hex: f"/{path.name}" for path in folder.iterdir()}
    resumed = finished = 0
    with origins.serve(folder, rate=RATE) as served:
        files = [
            {
                "name": path,
                "url": f"{served.url}{path}",
                "sha256": hex_,
                "size": (folder / path[1:]).stat().st_size,
            }
            for hex_, path in by_hex.items()
        ]
        listed = tmp_path / "list.json"
        listed.write_text(json.dumps(files), encoding="utf-8")
        for number in range(KILLS):
            cache = tmp_path / f"cache{number}"
            _kill_after(chance.randrange(sum(SIZES)), served, listed, cache)
            safe = _safe(cache, by_hex)
            resumed += sum(0 < count < (folder / path[1:]).stat().st_size for path, count in safe.items())
            finished += sum(count == (folder / path[1:]).stat().st_size for path, count in safe.items())
            served.asked.clear()
            served.server.rate = 0.0
            driver.main([str(listed), str(cache)])
            served.server.rate = RATE
            for asked in served.asked:
                assert asked.start >= safe.get(asked.path, 0), f"round {number}: {asked} although {safe} were safe"
            assert len(served.asked) <= len(SIZES)
            assert {path.name for path in (cache / "sha256").iterdir()} == set(by_hex)
            for path in (cache / "sha256").iterdir():
                assert Digest.of_file(path).hex == path.name
    print(f"{KILLS} kills; {resumed} files were continued in their middle, {finished} were complete already")
    assert resumed >= KILLS  # the kills interrupted downloads that can be resumed
    assert finished


def _kill_after(count: int, served: origins.Recorded, listed: Path, cache: Path) -> None:
    """Fetch in a separate process; kill it after `count` bytes left the origin, or when it ends.

    Its connections have a thread each in the origin, which may still read a request: wait until they have ended.
    """
    served.asked.clear()
    threads = threading.active_count()
    command = [sys.executable, "-m", "pipeline.bench.driver", str(listed), str(cache), "0.01"]
    with subprocess.Popen(command, cwd=ROOT) as running:
        deadline = time.monotonic() + DEADLINE
        while sum(asked.sent for asked in served.asked) < count or not served.asked:
            assert time.monotonic() < deadline
            if running.poll() is not None:
                break
            time.sleep(0.001)
        running.kill()
    while threading.active_count() > threads:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _safe(cache: Path, by_hex: dict[str, str]) -> dict[str, int]:
    """Return the origin's path of a file → its safe bytes in the cache."""
    safe = {}
    for path in (cache / "sha256").iterdir():
        if re.fullmatch("[0-9a-f]{64}", path.name):
            safe[by_hex[path.name]] = path.stat().st_size
        elif path.suffix == ".json":
            record = json.loads(path.read_text(encoding="utf-8"))
            safe.setdefault("/" + record["url"].rpartition("/")[2], record["safe"])
    return safe
