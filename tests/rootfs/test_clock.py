"""The clock of the day is set while everything runs: that is reported once, and what it costs a cluster comes back."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dind_k3s import board, certificates, clock, containerd, docker_api, trial, watch
from dind_k3s.board import Board

HOUR, DAY = 3600.0, 86400.0


class Clocks:
    """What the kernel's clocks say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clocks = {time.CLOCK_REALTIME: 1.8e9, time.CLOCK_BOOTTIME: 1000.0, time.CLOCK_MONOTONIC: 900.0}
        monkeypatch.setattr(time, "clock_gettime", self.clocks.__getitem__)

    def go_on(self, seconds: float, *, asleep: bool = False) -> None:
        for which in self.clocks:
            if not (asleep and which == time.CLOCK_MONOTONIC):
                self.clocks[which] += seconds

    def set_by(self, seconds: float) -> None:
        self.clocks[time.CLOCK_REALTIME] += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    (tmp_path / "run/dind-k3s").mkdir(parents=True)


def test_a_jump_is_seen_once_and_a_suspend_or_a_correction_is_none(clocks: Clocks) -> None:
    seen = clock.Clock()
    clocks.go_on(10)
    assert seen.jump() == 0
    clocks.go_on(8 * HOUR, asleep=True)
    assert seen.jump() == 0
    for by in (2 * HOUR, -DAY):
        clocks.set_by(by)
        clocks.go_on(10)
        assert seen.jump() == pytest.approx(by)
        clocks.go_on(10)
        assert seen.jump() == 0
    for _ in range(100):
        clocks.set_by(0.005)  # ntpd slews by 500 ppm
        clocks.go_on(10)
        assert seen.jump() == 0


def test_in_words() -> None:
    now = datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)
    assert clock.description(7200.4, now) == "the clock was set forward by 2:00:00, to 2026-03-01 12:00:05 UTC"
    assert clock.description(-DAY, now) == "the clock was set back by 1 day, 0:00:00, to 2026-03-01 12:00:05 UTC"


def test_the_watcher_tells_it_once(
    clocks: Clocks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docker_api, "SOCKET", str(tmp_path / "none"))
    monkeypatch.setattr(containerd, "SOCKET", str(tmp_path / "none"))
    for thread in ("follow_docker", "follow_containerd"):  # they would outlive the test
        monkeypatch.setattr(watch, thread, lambda *_: None)
    monkeypatch.setattr(trial, "follow", lambda *_: None)
    turns: Iterator[Callable[[], None]] = iter([lambda: None, lambda: clocks.set_by(2 * HOUR), *[lambda: None] * 3])

    def wait(_wake: watch.Wake, _seconds: float) -> bool:
        next(turns)()
        clocks.go_on(10)
        return False

    monkeypatch.setattr(watch.Wake, "wait", wait)
    with pytest.raises(StopIteration):
        watch.main()
    messages = [line for line in capsys.readouterr().out.splitlines() if "clock" in line]
    assert len(messages) == 1
    assert messages[0].startswith("the clock was set forward by 2:00:00, to ")


def pem(begin: datetime, end: datetime) -> bytes:
    times = [f"{time:%y%m%d%H%M%S}Z".encode() for time in (begin, end)]
    der = b"0\x82..." + b"".join(b"\x17\r" + time for time in times)
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def test_a_certificate_has_its_time() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    one = pem(now, now + timedelta(days=365))
    assert certificates.problem(one, now + timedelta(days=364)) == certificates.problem(b"none", now) == ""
    assert "are not valid before 2026-03-01 00:00 UTC" in certificates.problem(one, now - timedelta(hours=1))
    assert "ended on 2027-03-01" in certificates.problem(one, now + timedelta(days=366))


@pytest.mark.parametrize(
    ("age", "by", "means", "restarts"),
    [
        (2, 2 * HOUR, "the cluster's certificates are good for that, too", 0),
        (2, -200.0, "the cluster's certificates are good for that, too", 0),
        # The tokens of pods were made in what is the future now: a new kubelet asks for others.
        (2, -DAY, "k3s was restarted, because the tokens that pods have are not valid yet", 1),
        # A restart would end what still runs: k3s does not start with such certificates.
        (-1, -DAY, "are not valid before", 0),
        (400, 400 * DAY, "ended on", 1),
    ],
)
def test_what_a_jump_means_to_a_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, age: int, by: float, means: str, restarts: int
) -> None:
    """`age`: of its certificates after the jump, in days."""
    ran: list[str] = []
    monkeypatch.setattr(watch, "restart_k3s", lambda: ran.append("restart"))
    cluster = watch.Cluster("server", Board(board.STAGES, "server"), watch.Wake())
    begin = datetime.now(UTC) - timedelta(days=age)
    cluster._kubernetes.certificate = pem(begin, begin + timedelta(days=365))
    cluster.look()
    assert ran == []  # k3s does not run: it renews them by itself when it starts, and it may have been stopped by hand
    cluster._kubernetes.up.set()
    assert means in cluster.mind_the_clock(by)
    cluster.look()
    assert ran == ["restart"] * restarts


def test_an_api_that_cannot_answer_for_the_time_being_is_not_asked_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten handshakes a second, each with a line in k3s's log, perhaps for hours."""
    found = Board(board.STAGES, "server")
    cluster = watch.Cluster("server", found, watch.Wake())
    monkeypatch.setattr(cluster._kubernetes, "problem", lambda: "the API server does not answer (whatever)")
    assert cluster.probe() == watch.PROBE
    begin = datetime.now(UTC) + timedelta(hours=1)
    cluster._kubernetes.certificate = pem(begin, begin + timedelta(days=365))
    assert cluster.probe() == watch.PROBE  # it may be about to start, with other certificates
    cluster._started = True
    assert cluster.probe() == watch.STEADY
    assert "are not valid before" in found.problem("api")
