"""The benchmark itself: that its programs do the job that is compared, that its ratios are right, that docs follow."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from pipeline.bench import fetching, origin
from pipeline.bench.fetching import Run
from pipeline.core.log import Log

ROOT = Path(__file__).resolve().parent.parent


def runs(*seconds: float, memory: int = 50_000_000) -> list[Run]:
    return [Run(seconds=value, processor=value / 2, memory=memory) for value in seconds]


def test_every_program_brings_and_checks_small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_LIMIT", 5_000_000.0)
    document = fetching.main(Log(quiet=True), ROOT, runs=1, write=False, sizes=(200_000, 100_000, 1_000))
    scenarios = document["scenarios"]
    assert isinstance(scenarios, list)
    assert [[program["name"] for program in scenario["programs"]] for scenario in scenarios] == [
        list(fetching.TOOLS),
        list(fetching.TOOLS),
        [fetching.AGAIN, fetching.HASHING],
    ]
    for scenario in scenarios:
        for program in scenario["programs"]:
            assert program["median"] > 0
            assert program["processor"] > 0
            if program["name"] in (fetching.FETCH, fetching.AGAIN):  # the others end before they are looked at
                assert 10_000_000 < program["memory"] < fetching.MEMORY


def test_ratios_are_made_within_a_round_against_the_faster_one_that_does_the_same() -> None:
    found = {
        "no limit": {
            **{tool: runs(9, 9, 9) for tool in fetching.TOOLS},
            fetching.FETCH: runs(1.0, 3.0, 2.0, memory=130_000_000),
            fetching.CHECKED: runs(2.0, 1.5, 4.0),
            fetching.CURL_CHECKED: runs(4.0, 3.0, 2.0),
            fetching.CURL_PLAIN: runs(1.0, 1.0, 1.0),
        },
        "in the cache": {fetching.AGAIN: runs(2.0, 1.0, 1.0), fetching.HASHING: runs(1.0, 1.0, 0.5)},
    }
    targets = fetching._document(found, (1, 2), 3)["targets"]
    assert isinstance(targets, list)
    assert [(target["median"], target["from"], target["to"], target["holds"]) for target in targets] == [
        (1.0, 0.5, 2.0, True),
        (2.0, 1.0, 3.0, False),
        (1.083, 1.083, 1.083, False),
        (0.5, 0.5, 1.0, False),
    ]


def test_page_and_drawing_are_what_the_figures_give() -> None:
    folder = ROOT / "docs/benchmarks"
    document = json.loads((folder / "fetch.json").read_text(encoding="utf-8"))
    assert fetching.render(document) == (folder / "fetch.md").read_text(encoding="utf-8")
    assert fetching.draw(document) == (folder / "fetch.svg").read_text(encoding="utf-8")


def test_the_origin_writes_down_what_went_out_and_all_share_its_line(tmp_path: Path) -> None:
    data = bytes(range(256)) * 400
    (tmp_path / "f").write_bytes(data)
    with origin.serve(tmp_path, rate=1_000_000.0) as served, httpx.Client() as client:
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
