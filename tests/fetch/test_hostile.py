"""Fetch from broken or hostile origins: the right bytes or the documented exit code, and a clean cache."""

from __future__ import annotations

import email.utils
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from pipeline.core.cache import path_of
from pipeline.core.errors import DigestMismatch, PipelineError, UpstreamError
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.fetch import fetch
from pipeline.http import transport
from pipeline.http.download import Rules
from pipeline.http.retries import PAUSES
from pipeline.inputs.lock import Lock
from tests.helpers import hostile
from tests.helpers.examples import INTENT, LOCK, artifact
from tests.helpers.servers import Answer, Server, running

DATA = bytes(range(256)) * 400  # about 100 kB
RULES = Rules(pauses=(0.0, 0.0, 0.0), trial=0.1, window=0.2, least=1000, every=0.0, slow=10_000)
DEADLINE = 10.0  # seconds for any hostile origin; most take a tenth of a second


@dataclass
class Place:
    """A lock of one file, a cache, and servers for the file, in order."""

    client: httpx.Client
    cache: Path
    over: threading.Event
    servers: list[Server]

    def lock(self, size: int | None = len(DATA)) -> Lock:
        file = replace(artifact("k3s", Platform.AMD64, DATA), size=size, url=f"{self.servers[-1].url}/k3s/amd64")
        return replace(LOCK, artifacts=(file,), packages=(), guest=())

    def fetch(self, *answers: Answer, rules: Rules = RULES, size: int | None = len(DATA)) -> None:
        for server, answer in zip(self.servers[-len(answers) :], answers, strict=True):
            server.answers["/k3s/amd64"] = answer
        mirrors = tuple(server.url for server in self.servers[-len(answers) : -1])
        started = time.monotonic()
        try:
            files = fetch.files_of(self.lock(size), replace(INTENT, mirrors={"docker": mirrors}))
            fetch.download(files, self.cache, self.client, Log(quiet=True), rules=rules)
        finally:
            assert time.monotonic() - started < DEADLINE
            self.check()

    @property
    def path(self) -> Path:
        return path_of(self.cache, Digest.of(DATA))

    def left(self, pattern: str) -> list[Path]:
        return sorted((self.cache / "sha256").glob(pattern))

    def check(self) -> None:
        """Check that the cache only has right files, quarantined ones, and partial ones with a true record."""
        for path in self.left("*"):
            if re.fullmatch("[0-9a-f]{64}", path.name):
                assert Digest.of_file(path).hex == path.name
            elif path.suffix == ".json":
                record = json.loads(path.read_text(encoding="utf-8"))
                assert 0 < record["safe"] <= path.with_suffix(".partial").stat().st_size
                assert record["etag"].startswith('"')
            else:
                assert path.suffix == ".bad" or path.with_suffix(".json").exists(), path

    @property
    def asked(self) -> list[dict[str, str]]:
        return [headers for _, _, headers in self.servers[-1].asked]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    over = threading.Event()
    with (
        running() as first,
        running() as second,
        running() as third,
        transport.make_client(read=0.3) as client,
    ):
        yield Place(client=client, cache=tmp_path, over=over, servers=[first, second, third])
        over.set()


HALF = len(DATA) // 2

# Failures that another attempt may not have.
PASSING: dict[str, Callable[[threading.Event], Answer]] = {
    "truncated": lambda over: hostile.truncated(DATA, HALF),
    "truncated without a length": lambda over: hostile.unannounced(DATA, HALF),
    "reset": lambda over: hostile.reset(DATA, HALF),
    "reset before the first byte": lambda over: hostile.reset(DATA, 0),
    "stalled": lambda over: hostile.stalled(DATA, HALF, over),
    "silent": hostile.silent,
    "trickle": lambda over: hostile.trickle(DATA, over),
    "429": lambda over: hostile.busy(429),
    "503": lambda over: hostile.busy(503),
    "500": lambda over: hostile.busy(500),
    "redirect to nonsense": lambda over: hostile.redirect("http://[::bad"),
}

# Failures that are final, and the error if no other origin has the file.
FINAL: dict[str, tuple[Callable[[threading.Event], Answer], type[PipelineError]]] = {
    "404": (lambda over: hostile.busy(404), UpstreamError),
    "403": (lambda over: hostile.busy(403), UpstreamError),
    "wrong bytes": (lambda over: hostile.honest(DATA[:-1] + b"?"), DigestMismatch),
    "wrong length": (lambda over: hostile.honest(DATA[:-1]), DigestMismatch),
    "an error page": (lambda over: hostile.honest(b"<html>blocked"), DigestMismatch),
    "endless": (hostile.endless, DigestMismatch),
    "gzip bomb": (lambda over: hostile.bomb(), UpstreamError),
    "redirect loop": (lambda over: hostile.redirect("/k3s/amd64"), UpstreamError),
    "redirect to a file": (lambda over: hostile.redirect("file:///etc/passwd"), UpstreamError),
}


@pytest.mark.parametrize("what", PASSING)
def test_a_temporary_failure_is_retried(place: Place, what: str) -> None:
    place.fetch(hostile.in_turn(PASSING[what](place.over), hostile.honest(DATA)))
    assert place.path.read_bytes() == DATA
    assert [path.name for path in place.left("*")] == [place.path.name]
    assert len(place.asked) == 2


@pytest.mark.parametrize("what", PASSING)
def test_a_permanent_failure_is_exit_code_3(place: Place, what: str) -> None:
    with pytest.raises(UpstreamError):
        place.fetch(PASSING[what](place.over))
    assert 1 < len(place.asked) <= 1 + len(RULES.pauses)
    assert not place.path.exists()
    assert place.left("*.bad") == []


@pytest.mark.parametrize("what", FINAL)
def test_a_final_failure_is_not_retried_and_has_its_exit_code(place: Place, what: str) -> None:
    answer, error = FINAL[what]
    with pytest.raises(error) as refused:
        place.fetch(answer(place.over))
    assert len(place.asked) == (6 if what == "redirect loop" else 1)
    assert refused.value.next_step
    assert place.left(".*") == []


@pytest.mark.parametrize("what", [*PASSING, *FINAL])
def test_the_next_mirror_is_used_after_any_failure(place: Place, what: str) -> None:
    answer = PASSING[what] if what in PASSING else FINAL[what][0]
    place.fetch(answer(place.over), hostile.honest(DATA))
    assert place.path.read_bytes() == DATA
    assert place.left(".*") == []


def test_two_hostile_mirrors_before_a_good_upstream(place: Place) -> None:
    place.fetch(hostile.stalled(DATA, 5, place.over), hostile.honest(bytes(len(DATA))), hostile.honest(DATA))
    assert place.path.read_bytes() == DATA


def test_a_slow_mirror_is_skipped(place: Place) -> None:
    """The download would take a quarter of an hour without a single timeout."""
    gone = threading.Event()

    def watched(handler: hostile.Handler) -> None:
        try:
            hostile.trickle(DATA, place.over)(handler)
        except OSError:
            gone.set()

    place.fetch(watched, hostile.honest(DATA), rules=replace(RULES, window=60))
    assert place.path.read_bytes() == DATA
    assert gone.wait(DEADLINE), "the connection is still open"
    assert place.left(".*") == []


def test_a_slow_origin_is_resumed_if_no_other_has_the_file(place: Place) -> None:
    rules = replace(RULES, slow=1e9, trial=0.05)
    place.fetch(hostile.slow(DATA, place.over), hostile.busy(404), rules=rules)
    assert place.path.read_bytes() == DATA
    first, second = (headers.get("Range") for _, _, headers in place.servers[-2].asked)
    assert first is None
    assert second is not None
    assert len(place.asked) == 1
    assert place.left(".*") == []


def test_only_the_first_origin_is_used_if_it_is_fast(place: Place) -> None:
    place.fetch(hostile.honest(DATA), hostile.honest(DATA), rules=replace(RULES, trial=5.0))
    assert place.servers[-1].asked == []


def test_wrong_bytes_everywhere_are_exit_code_4_with_every_quarantine(place: Place) -> None:
    wrong = [bytes([number]) * len(DATA) for number in range(3)]
    with pytest.raises(DigestMismatch) as refused:
        place.fetch(*(hostile.honest(data) for data in wrong))
    assert refused.value.exit_code == 4
    assert sorted(path.read_bytes() for path in place.left("*.bad")) == wrong
    for data in wrong:
        assert Digest.of(data).text in str(refused.value)


def test_wrong_bytes_and_an_origin_that_is_down_are_exit_code_3(place: Place) -> None:
    """The origin that is down may have the right ones."""
    with pytest.raises(UpstreamError, match="503"):
        place.fetch(hostile.honest(bytes(len(DATA))), hostile.busy(503))
    assert len(place.left("*.bad")) == 1


def test_a_range_is_requested_with_the_strong_etag(place: Place) -> None:
    place.fetch(hostile.in_turn(hostile.truncated(DATA, HALF), hostile.honest(DATA)))
    assert place.asked[1]["Range"] == f"bytes={HALF}-"
    assert place.asked[1]["If-Range"] == '"one"'
    assert {headers["Accept-Encoding"] for headers in place.asked} == {"identity"}


@pytest.mark.parametrize("etag", ['W/"one"', "one", ""])
def test_without_a_strong_etag_the_download_restarts(place: Place, etag: str) -> None:
    place.fetch(hostile.in_turn(hostile.truncated(DATA, HALF, etag), hostile.honest(DATA)))
    assert "Range" not in place.asked[1]
    assert place.path.read_bytes() == DATA


def test_200_for_a_range_restarts_the_download(place: Place) -> None:
    place.fetch(hostile.in_turn(hostile.truncated(DATA, HALF), hostile.whole(DATA)))
    assert place.path.read_bytes() == DATA


def test_another_etag_restarts_the_download(place: Place) -> None:
    old = DATA[::-1]
    place.fetch(hostile.in_turn(hostile.truncated(old, HALF, '"old"'), hostile.honest(DATA, '"new"')))
    assert place.asked[1]["If-Range"] == '"old"'
    assert place.path.read_bytes() == DATA


def test_an_etag_that_always_changes_fails(place: Place) -> None:
    def restless(handler: hostile.Handler) -> None:
        hostile.truncated(DATA, HALF, f'"{time.monotonic_ns()}"')(handler)

    with pytest.raises(UpstreamError):
        place.fetch(restless)
    assert len(place.asked) <= 1 + len(RULES.pauses)


def test_another_range_than_requested_is_never_appended(place: Place) -> None:
    with pytest.raises(UpstreamError):
        place.fetch(hostile.other_range(DATA))
    place.fetch(hostile.honest(DATA))
    assert place.path.read_bytes() == DATA


def test_wrong_bytes_after_a_resume_are_downloaded_again_as_a_whole(place: Place) -> None:
    place.fetch(hostile.in_turn(hostile.truncated(DATA, HALF), hostile.spliced(DATA)))
    assert [headers.get("Range") for headers in place.asked] == [None, f"bytes={HALF}-", None]
    assert place.path.read_bytes() == DATA
    assert place.left("*.bad") == []


def test_the_next_run_resumes_a_download(place: Place) -> None:
    with pytest.raises(UpstreamError):
        place.fetch(hostile.in_turn(hostile.truncated(DATA, HALF), hostile.busy(503)))
    asked = len(place.asked)
    place.fetch(hostile.honest(DATA))
    assert [headers.get("Range") for headers in place.asked[asked:]] == [f"bytes={HALF}-"]
    assert place.path.read_bytes() == DATA
    assert place.left(".*") == []


def test_only_safe_bytes_are_kept_and_damaged_ones_are_detected(place: Place) -> None:
    with pytest.raises(UpstreamError):
        place.fetch(hostile.in_turn(hostile.truncated(DATA, HALF), hostile.busy(503)))
    (partial,) = place.left(".*.partial")
    partial.write_bytes(b"X" + partial.read_bytes()[1:] + b"rubbish")
    place.fetch(hostile.honest(DATA))
    assert place.path.read_bytes() == DATA


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"url": 1', '{"url": "", "etag": "x", "size": 1, "safe": 9}'])
def test_a_broken_record_restarts_the_download(place: Place, text: str) -> None:
    with pytest.raises(UpstreamError):
        place.fetch(hostile.in_turn(hostile.truncated(DATA, HALF), hostile.busy(503)))
    (record,) = place.left(".*.json")
    record.write_text(text, encoding="utf-8")
    asked = len(place.asked)
    place.fetch(hostile.honest(DATA))
    assert [headers.get("Range") for headers in place.asked[asked:]] == [None]


@pytest.mark.parametrize(
    "change",
    [
        {"safe": -1},
        {"safe": 0},
        {"safe": 10**30},
        {"safe": "x"},
        {"safe": 1e999},
        {"etag": 'W/"one"'},
        {"url": "http://x"},
    ],
)
def test_an_invalid_record_restarts_the_download(place: Place, change: dict[str, object]) -> None:
    with pytest.raises(UpstreamError):
        place.fetch(hostile.in_turn(hostile.truncated(DATA, HALF), hostile.busy(503)))
    (record,) = place.left(".*.json")
    record.write_text(json.dumps({**json.loads(record.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    asked = len(place.asked)
    place.fetch(hostile.honest(DATA))
    assert [headers.get("Range") for headers in place.asked[asked:]] == [None]


@pytest.mark.parametrize(
    "content_range", ["bytes 5-6/7", "bytes */5", "lines 0-1/2", "", f"bytes {HALF}-{'9' * 5000}/{'9' * 5000}"]
)
def test_an_invalid_content_range_is_harmless(place: Place, content_range: str) -> None:
    def odd(handler: hostile.Handler) -> None:
        hostile._head(handler, 206, ETag='"one"', Content_Range=content_range, Content_Length=HALF)
        handler.wfile.write(DATA[HALF:])

    place.fetch(hostile.in_turn(hostile.truncated(DATA, HALF), odd, hostile.honest(DATA)))
    assert place.path.read_bytes() == DATA


def test_a_run_killed_after_the_last_byte_is_completed(place: Place) -> None:
    """416 with the size completes the file; a size in the lock needs no request."""
    for size, asked in ((None, 1), (len(DATA), 0)):
        with pytest.raises(UpstreamError):
            place.fetch(hostile.in_turn(hostile.truncated(DATA, HALF), hostile.busy(503)), size=size)
        (partial,), (record,) = place.left(".*.partial"), place.left(".*.json")
        partial.write_bytes(DATA)
        content = json.loads(record.read_text(encoding="utf-8"))
        record.write_text(json.dumps({**content, "safe": len(DATA)}), encoding="utf-8")
        before = len(place.asked)
        place.fetch(hostile.honest(DATA), size=size)
        assert len(place.asked) - before == asked
        assert place.path.read_bytes() == DATA
        place.path.unlink()


def test_a_file_of_unknown_size_is_cut_off_at_the_cap(place: Place) -> None:
    rules = replace(RULES, most=200_000)
    with pytest.raises(DigestMismatch, match="more than 200000"):
        place.fetch(hostile.endless(place.over), rules=rules, size=None)
    with pytest.raises(DigestMismatch, match="more than 200000"):
        place.fetch(hostile.honest(bytes(200_001)), rules=rules, size=None)
    assert all(path.stat().st_size <= 200_001 for path in place.left("*.bad"))
    place.fetch(hostile.honest(DATA), rules=rules, size=None)


def test_retry_after_in_seconds_and_as_a_date_is_respected_up_to_the_limit(place: Place) -> None:
    pauses: list[float] = []
    rules = Rules(sleep=pauses.append, longest_pause=60.0)
    date = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    busy = [hostile.busy(429, Retry_After=value) for value in ("7", date, "86400")]
    place.fetch(hostile.in_turn(*busy, hostile.honest(DATA)), rules=rules)
    assert pauses[0] == 7.0
    assert 25 < pauses[1] <= 30
    assert pauses[2] == 60.0


@pytest.mark.parametrize("value", ["-5", "soon", "Thu, 99 Foo 2020 00:00:00 GMT", "٣", "9" * 400])
def test_an_invalid_retry_after_is_harmless(place: Place, value: str) -> None:
    pauses: list[float] = []

    def busy(handler: hostile.Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 429 x\r\nContent-Length: 0\r\nRetry-After: " + value.encode() + b"\r\n\r\n")

    place.fetch(hostile.in_turn(busy, hostile.honest(DATA)), rules=Rules(sleep=pauses.append))
    assert len(pauses) == 1
    assert 0 <= pauses[0] <= 60


def test_pauses_grow_and_have_jitter(place: Place) -> None:
    runs: list[list[float]] = []
    for _ in range(2):
        runs.append([])
        with pytest.raises(UpstreamError):
            place.fetch(hostile.busy(503), rules=Rules(sleep=runs[-1].append))
        assert len(runs[-1]) == len(PAUSES)
        assert runs[-1] == sorted(runs[-1])
        assert 0.75 * sum(PAUSES) <= sum(runs[-1]) <= 1.25 * sum(PAUSES)
    assert runs[0] != runs[1]


def test_progress_resets_the_retries(place: Place) -> None:
    """An origin that breaks off ten times, but sends more each time, is retried."""
    part = len(DATA) // 10

    def breaking(handler: hostile.Handler) -> None:
        start = hostile._start(handler)
        content_range = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
        headers = {"ETag": '"one"', "Content_Length": len(DATA) - start}
        hostile._head(handler, 206 if start else 200, **headers, **({"Content_Range": content_range} if start else {}))
        handler.wfile.write(DATA[start : start + part])
        handler.close_connection = True

    place.fetch(breaking, rules=replace(RULES, gained=part))
    assert place.path.read_bytes() == DATA
    assert len(place.asked) >= 10


def test_a_redirect_to_another_host_is_followed_and_logged(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    other = place.servers[0]
    other.answers["/there"] = hostile.honest(DATA)
    place.servers[-1].answers["/k3s/amd64"] = hostile.redirect(f"{other.url.replace('127.0.0.1', 'localhost')}/there")
    fetch.download(fetch.files_of(place.lock(), INTENT), place.cache, place.client, Log(), rules=RULES)
    assert place.path.read_bytes() == DATA
    assert "127.0.0.1 redirects downloads to localhost" in capsys.readouterr().err


def test_redirects_are_followed_again_by_a_resume(place: Place) -> None:
    other = place.servers[0]
    other.answers["/there"] = hostile.in_turn(hostile.truncated(DATA, HALF), hostile.honest(DATA))
    place.fetch(hostile.redirect(f"{other.url}/there"))
    assert [headers.get("Range") for _, _, headers in other.asked] == [None, f"bytes={HALF}-"]


def test_one_failure_stops_the_run_and_partial_downloads_are_kept(place: Place) -> None:
    server = place.servers[-1]
    files = []
    for name, answer in (("k3s", hostile.stalled(DATA, HALF, place.over)), ("docker", hostile.busy(404))):
        file = artifact(name, Platform.AMD64, DATA if name == "k3s" else b"docker")
        server.answers[f"/{file.path}"] = answer
        files.append(replace(file, url=f"{server.url}/{file.path}"))
    lock = replace(LOCK, artifacts=tuple(files), packages=(), guest=())
    patient, rules = transport.make_client(read=30), replace(RULES, trial=30, window=30)
    started = time.monotonic()
    with patient, pytest.raises(UpstreamError, match="404"):
        fetch.download(fetch.files_of(lock, INTENT), place.cache, patient, Log(quiet=True), rules=rules)
    assert time.monotonic() - started < DEADLINE  # less than the read timeout of the silent one
    place.check()


def test_an_untrusted_certificate_is_exit_code_3(place: Place) -> None:
    server_context, trusting = hostile.certificate()
    with running(server_context) as server:
        server.answers["/k3s/amd64"] = hostile.honest(DATA)
        place.servers.append(server)
        with pytest.raises(UpstreamError, match=r"(?i)certificate"):
            place.fetch(hostile.honest(DATA))
        assert place.left("*") == []
        with transport.make_client(verify=trusting) as client:
            replace(place, client=client).fetch(hostile.honest(DATA))
        assert place.path.read_bytes() == DATA


def test_a_redirect_from_https_to_http_is_refused(place: Place) -> None:
    plain = place.servers[0]
    plain.answers["/there"] = hostile.honest(DATA)
    server_context, trusting = hostile.certificate()
    with running(server_context) as server, transport.make_client(verify=trusting) as client:
        place.servers.append(server)
        with pytest.raises(UpstreamError, match="from https to http"):
            replace(place, client=client).fetch(hostile.redirect(f"{plain.url}/there"))
    assert plain.asked == []


def test_a_compressed_or_endless_response_is_refused(place: Place) -> None:
    server = place.servers[0]
    server.answers["/list"] = hostile.bomb()
    with pytest.raises(UpstreamError, match="compressed"):
        transport.get(place.client, f"{server.url}/list", what="a list")
    server.answers["/list"] = hostile.endless(place.over)
    with pytest.raises(UpstreamError, match="does not end"):
        transport.get(place.client, f"{server.url}/list", what="a list")
    server.answers["/list"] = hostile.redirect("/list")
    with pytest.raises(UpstreamError, match="redirects"):
        transport.get(place.client, f"{server.url}/list", what="a list")
