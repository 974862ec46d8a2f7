"""What all tests share: no accidental network or docker, a real engine for those that ask, no skips in CI."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skip is a failure: CI promises every test."""
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, which promises this test: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches out by accident fails with a word that says so."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = address[0] if isinstance(address, tuple) else ""
            assert str(host).startswith("127.") or host in ("::1", "localhost"), f"a test tried to reach {address}"
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _no_docker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test without the marker `engine` meets no docker daemon."""
    if request.node.get_closest_marker("engine") is None:
        monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")


@pytest.fixture(scope="session")
def supplies_folder() -> Path:
    """The rehearsal's folder, which holds real engine binaries once a rehearsal ran on this machine."""
    from pipeline import cache

    return cache.folder() / "rehearsal"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Our own flag."""
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")
