"""The table of origins and mirrors, measured on real servers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from pipeline import mirrors, transport
from pipeline.errors import UpstreamError
from pipeline.lock import Lock
from pipeline.log import Log
from pipeline.platforms import Platform
from tests import hostile
from tests.examples import INTENT, LOCK, artifact
from tests.servers import Server, running

DATA = bytes(300_000)


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with transport.make_client(read=0.5) as client:
        yield client


def lock_at(upstream: Server, *names: str) -> Lock:
    files = [artifact(name, Platform.AMD64, DATA) for name in names]
    return replace(
        LOCK,
        artifacts=tuple(replace(file, url=f"{upstream.url}/{file.path}") for file in files),
        packages=(),
        guest=(),
    )


def test_latency_speed_and_freshness_of_each(client: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    with running() as upstream, running() as stale, running() as gone:
        lock = lock_at(upstream, "docker", "k3s")
        for name in ("docker", "k3s"):
            upstream.answers[f"/{name}/amd64"] = hostile.honest(DATA)
        stale.answers["/docker/amd64"] = hostile.honest(DATA[:-1])
        stale.answers["/k3s/amd64"] = hostile.honest(DATA)
        gone_url = gone.url
        intent = replace(INTENT, mirrors={"docker": (stale.url, gone_url)})
        gone.answers["/docker/amd64"] = gone.answers["/k3s/amd64"] = hostile.reset(DATA, 0)
        found = mirrors.run(intent, lock, client, Log())
    assert [(m.base, m.mirror, m.has, m.of) for m in found] == [
        (stale.url, True, 1, 2),
        (gone_url, True, 0, 2),
        (upstream.url, False, 2, 2),
    ]
    assert "299999 bytes instead of 300000" in found[0].problem
    assert found[1].problem
    assert found[1].latency is None
    assert found[2].latency is not None
    assert 0 < found[2].latency < 0.5
    assert found[2].speed is not None
    assert found[2].speed > 100_000
    table = capsys.readouterr().err
    for text in (stale.url, gone_url, upstream.url, "mirror", "upstream", "2 of 2", "HTTP/1.1", "B/s"):
        assert text in table


def test_the_speed_of_an_endless_or_slow_file_is_measured_in_bounded_time(client: httpx.Client) -> None:
    over = threading.Event()
    with running() as upstream:
        lock = lock_at(upstream, "k3s")

        def slow(handler: hostile.Handler) -> None:
            (hostile.honest(DATA) if handler.command == "HEAD" else hostile.trickle(DATA, over))(handler)

        upstream.answers["/k3s/amd64"] = slow
        (found,) = mirrors.run(INTENT, lock, client, Log(quiet=True), seconds=0.2)
        over.set()
    assert found.speed is not None
    assert found.speed < 10_000


def test_an_origin_whose_files_nobody_has_is_exit_code_3(client: httpx.Client) -> None:
    with running() as upstream, pytest.raises(UpstreamError, match="status 404") as refused:
        mirrors.run(INTENT, lock_at(upstream, "k3s"), client, Log(quiet=True))
    assert refused.value.exit_code == 3
