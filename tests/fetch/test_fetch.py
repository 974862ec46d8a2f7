from __future__ import annotations

import http.server
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from pipeline.core import log as logs
from pipeline.core.cache import path_of
from pipeline.core.errors import DigestMismatch, UpstreamError
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.fetch import fetch
from pipeline.inputs.lock import Lock
from tests.helpers.examples import INTENT, LOCK, artifact
from tests.helpers.servers import Server, running

LOG = Log(quiet=True)


@pytest.fixture
def origin() -> Iterator[Server]:
    with running() as server:
        yield server


def served(origin: Server, *, wrong: bool = False) -> Lock:
    """Return a lock of four files of the origin, one of them for the guest."""
    files = []
    for name in ("docker", "k3s"):
        for platform in Platform:
            data = f"{name} for {platform}".encode()
            file = artifact(name, platform, data)
            origin.gives(f"/{file.path}", b"something else" if wrong else data)
            files.append(replace(file, url=f"{origin.url}/{file.path}"))
    return replace(LOCK, artifacts=tuple(files[:3]), packages=(), guest=tuple(files[3:]))


def test_every_file_is_downloaded_once(origin: Server, client: httpx.Client, tmp_path: Path) -> None:
    lock = served(origin)
    first = fetch.run(INTENT, lock, tmp_path, client, LOG)
    assert (first.downloaded, first.kept) == (4, 0)
    asked = len(origin.asked)
    second = fetch.run(INTENT, lock, tmp_path, client, LOG)
    assert (second.downloaded, second.kept, len(origin.asked)) == (0, 4, asked)
    for file in lock.all_files:
        assert Digest.of_file(path_of(tmp_path, file.digest)) == file.digest


def test_a_changed_file_in_the_cache_is_quarantined_and_downloaded_again(
    origin: Server, client: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = served(origin)
    fetch.run(INTENT, lock, tmp_path, client, LOG)
    path = path_of(tmp_path, lock.artifacts[0].digest)
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    again = fetch.run(INTENT, lock, tmp_path, client, LOG)
    assert again.downloaded == 1
    assert Digest.of_file(path) == lock.artifacts[0].digest
    assert path.with_name(f"{path.name}.bad").read_bytes() == data
    assert lock.artifacts[0].digest.text in capsys.readouterr().err


def test_offline_reports_missing_files_without_requests(origin: Server, client: httpx.Client, tmp_path: Path) -> None:
    lock = served(origin)
    with pytest.raises(UpstreamError, match="4 files of the lock are not in the cache"):
        fetch.run(INTENT, lock, tmp_path, client, LOG, offline=True)
    assert origin.asked == []


def test_a_mirror_is_tried_first_and_can_be_wrong(origin: Server, client: httpx.Client, tmp_path: Path) -> None:
    lock = served(origin)
    with running() as mirror:
        for file in lock.all_files:
            mirror.gives(f"/{file.path}", b"stale")
        intent = replace(INTENT, mirrors={"docker": (mirror.url,)})
        assert fetch.run(intent, lock, tmp_path, client, LOG).downloaded == 4
        assert len(mirror.asked) == 4


def test_a_wrong_digest_stops_the_run_and_leaves_no_temporary_file(
    origin: Server, client: httpx.Client, tmp_path: Path
) -> None:
    with pytest.raises(DigestMismatch):
        fetch.run(INTENT, served(origin, wrong=True), tmp_path, client, LOG)
    assert list((tmp_path / "sha256").iterdir()) == []


def test_leftovers_of_a_killed_run_are_removed(origin: Server, client: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "sha256").mkdir()
    left = tmp_path / "sha256" / f".{'0' * 64}.999999999.partial"
    left.write_bytes(b"half")
    fetch.run(INTENT, served(origin), tmp_path, client, LOG)
    assert not left.exists()


def test_two_runs_at_once_share_a_cache_and_the_second_one_waits(
    origin: Server, client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = served(origin)
    arrived, waiting, go_on = threading.Event(), threading.Event(), threading.Event()
    first = f"/{lock.artifacts[0].path}"
    quick = origin.answers[first]

    def held(handler: http.server.BaseHTTPRequestHandler) -> None:
        arrived.set()
        assert go_on.wait(60)
        quick(handler)

    origin.answers[first] = held
    second = Log(quiet=True)
    monkeypatch.setattr(second, "say", lambda text: waiting.set() if "another run writes to" in text else None)
    with ThreadPoolExecutor(max_workers=2) as pool:
        one = pool.submit(fetch.run, INTENT, lock, tmp_path, client, LOG)
        assert arrived.wait(60)
        two = pool.submit(fetch.run, INTENT, lock, tmp_path, client, second)
        assert waiting.wait(60)
        assert not two.done()
        go_on.set()
        assert (one.result().downloaded, two.result().downloaded) == (4, 0)
    assert len(origin.asked) == 4


def test_a_partial_download_is_kept_for_two_weeks(origin: Server, client: httpx.Client, tmp_path: Path) -> None:
    folder = tmp_path / "sha256"
    folder.mkdir()
    for name, days in (("young", 13), ("old", 15)):
        for suffix in ("partial", "json"):
            path = folder / f".{name}.{suffix}"
            path.write_text("{}")
            os.utime(path, (time.time() - days * 86400,) * 2)
    (folder / ".alone.json").write_text("{}")
    lock = served(origin)
    fetch.run(INTENT, lock, tmp_path, client, LOG)
    for suffix in ("partial", "json"):
        (folder / f".{lock.artifacts[0].digest.hex}.x.{suffix}").write_text("{}")
    fetch.run(INTENT, lock, tmp_path, client, LOG)
    assert sorted(path.name for path in folder.glob(".*")) == [".young.json", ".young.partial"]


@pytest.mark.parametrize("terminal", [True, False])
def test_many_files_have_a_total(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr(logs, "_PLAIN_EVERY", 0.0)
    log = Log()
    log.console._force_terminal = terminal
    with log.transfers(2) as transfers:
        one, two = transfers.start("one", 3_000_000), transfers.start("two", None)
        one.advance(1_000_000)
        two.total(2_000_000)
        two.advance(1_500_000)
        one.advance(-500_000)
    lines = capsys.readouterr().err
    assert "all 2 files" in lines
    assert ("2.0/5.0 MB" if terminal else "2.0 MB of 5.0 MB") in lines
