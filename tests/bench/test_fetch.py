"""`bench fetch`: its programs, its ratios, the tests' origin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.bench import fetch
from pipeline.bench.lab import Took
from pipeline.bench.report import Options
from pipeline.workflow import Run
from tests.helpers import origins
from tests.helpers.sites import committed


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = committed(tmp_path)
    with made.client:
        yield made


def took(*seconds: float, memory: int = 50_000_000) -> list[Took]:
    return [Took(seconds=value, processor=value / 2, memory=memory) for value in seconds]


def test_every_program_downloads_small_files(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "LINE", 5_000_000.0)
    document = fetch.measure(run, Options(runs=1), sizes=(200_000, 100_000, 1_000))
    scenarios = document["scenarios"]
    assert isinstance(scenarios, list)
    assert [[program["name"] for program in scenario["programs"]] for scenario in scenarios] == [
        list(fetch.TOOLS),
        list(fetch.TOOLS),
        [fetch.AGAIN, fetch.HASHING],
    ]
    for scenario in scenarios:
        for program in scenario["programs"]:
            assert min(program["seconds"]) > 0
            assert program["processor"] > 0
            if program["name"] in (fetch.FETCH, fetch.AGAIN):  # the others end before the first reading
                assert 10_000_000 < program["memory"] < fetch.MEMORY


def test_ratios_are_made_within_a_round_with_the_faster_tool() -> None:
    results = {
        "no limit": {
            **{tool: took(9, 9, 9) for tool in fetch.TOOLS},
            fetch.FETCH: took(1.0, 3.0, 2.0, memory=130_000_000),
            fetch.CHECKED: took(2.0, 1.5, 4.0),
            fetch.CURL_CHECKED: took(4.0, 3.0, 2.0),
            fetch.CURL_PLAIN: took(1.0, 1.0, 1.0),
        },
        "in the cache": {fetch.AGAIN: took(2.0, 1.0, 1.0), fetch.HASHING: took(1.0, 1.0, 0.5)},
    }
    targets = fetch.targets(results)
    assert isinstance(targets, list)
    assert [(target["median"], target["from"], target["to"], target["holds"]) for target in targets] == [
        (1.0, 0.5, 2.0, True),
        (2.0, 1.0, 3.0, False),
        (1.083, 1.083, 1.083, False),
        (0.5, 0.5, 1.0, False),
    ]


def test_the_origin_records_what_was_sent_and_limits_its_speed(tmp_path: Path) -> None:
    data = bytes(range(256)) * 400
    (tmp_path / "f").write_bytes(data)
    with origins.serve(tmp_path, rate=1_000_000.0) as served, httpx.Client() as client:
        first = client.get(f"{served.url}/f")
        part = client.get(f"{served.url}/f", headers={"Range": "bytes=1000-1999", "If-Range": first.headers["ETag"]})
        other = client.get(f"{served.url}/f", headers={"Range": "bytes=1000-", "If-Range": '"other"'})
        beyond = client.get(f"{served.url}/f", headers={"Range": f"bytes={len(data)}-"})
        missing = client.get(f"{served.url}/g")
    assert (first.content, part.content, other.content) == (data, data[1000:2000], data)
    assert part.headers["Content-Range"] == f"bytes 1000-1999/{len(data)}"
    assert beyond.headers["Content-Range"] == f"bytes */{len(data)}"
    assert [answer.status_code for answer in (first, part, other, beyond, missing)] == [200, 206, 200, 416, 404]
    assert [(asked.start, asked.sent) for asked in served.asked[:3]] == [(0, len(data)), (1000, 1000), (0, len(data))]
    assert first.elapsed.total_seconds() > 0.08  # 102,400 bytes at 1 MB/s
