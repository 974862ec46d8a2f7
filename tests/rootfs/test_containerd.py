"""docker is ready only while dockerd has a containerd."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from dind_k3s import board, containerd, docker_api, watch
from dind_k3s.board import Board
from dind_k3s.docker_api import Docker


class Dockerd(socketserver.ThreadingUnixStreamServer):
    """Answers pings, whatever has become of its containerd."""

    daemon_threads = True
    has_containerd = True
    on_ping: Callable[[], object] = staticmethod(lambda: None)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline().decode()
            while self.rfile.readline().strip():
                pass
            if "/_ping" in line:
                self.server.on_ping()  # type: ignore[attr-defined]
            names = ["Engine", *(["containerd"] if self.server.has_containerd else [])]  # type: ignore[attr-defined]
            body = json.dumps({"Components": [{"Name": name} for name in names]}) if "/version" in line else "OK"
            self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


@pytest.fixture
def dockerd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dockerd]:
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    monkeypatch.setattr(docker_api, "SOCKET", str(tmp_path / "d"))
    monkeypatch.setattr(containerd, "SOCKET", str(tmp_path / "c"))
    monkeypatch.setattr(containerd, "PID", tmp_path / "pid")
    with Dockerd(docker_api.SOCKET, Dockerd.Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@contextmanager
def living(tmp_path: Path) -> Iterator[list[socket.socket]]:
    """A containerd, as far as a connection can tell; gives its ends of those that there are."""
    (tmp_path / "pid").write_text("1")
    (tmp_path / "c").unlink(missing_ok=True)
    connections: list[socket.socket] = []

    def accept(listener: socket.socket) -> None:
        try:
            while True:
                connections.append(listener.accept()[0])
        except OSError:
            pass

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "c"))
        listener.listen()
        accepting = threading.Thread(target=accept, args=(listener,))
        accepting.start()
        try:
            yield connections
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()  # else it appends another after the last was closed
            for connection in connections:
                connection.close()


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def follow(dockerd: Dockerd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Board]]:
    """Starts the watcher's thread; it ends with the test, else it would write into the next one's board."""
    monkeypatch.setattr(watch, "STEADY", watch.QUICK)
    made = Board(board.ALONE, "none")
    threads: list[threading.Thread] = []

    def run() -> None:
        with suppress(SystemExit):
            watch.follow_containerd(Docker(), made)

    def start() -> Board:
        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        return made

    yield start

    def end(*_arguments: object, **_options: object) -> None:
        raise SystemExit

    made.report = end  # type: ignore[method-assign]
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_its_end_is_noticed_and_it_is_back_when_dockerd_has_found_it(
    dockerd: Dockerd, follow: Callable[[], Board], tmp_path: Path
) -> None:
    with living(tmp_path) as connections:
        found = follow()
        until(lambda: connections and not found.problem("containerd"))
        dockerd.has_containerd = False
        # The kernel closes one of its sockets after the other: others still take a connection.
        connections.pop(0).close()
        until(lambda: found.problem("containerd") == "containerd has ended")
    until(lambda: "containerd does not answer" in found.problem("containerd"))
    assert Docker().problem() == ""  # a ping alone would not tell
    with living(tmp_path):
        time_of_a_look = time.monotonic() + 2 * watch.QUICK
        until(lambda: time.monotonic() > time_of_a_look)
        assert "containerd does not answer" in found.problem("containerd")
        dockerd.has_containerd = True
        until(lambda: not found.problem("containerd"))


def test_a_containerd_from_elsewhere_is_not_waited_for(follow: Callable[[], Board]) -> None:
    found = follow()
    until(lambda: not found.problem("containerd"))


def test_a_dockerd_that_starts_its_containerd_while_we_look_has_its_own(
    dockerd: Dockerd, follow: Callable[[], Board], tmp_path: Path
) -> None:
    """The pid is written before the first answer, and may be written after we looked for a socket."""
    pinged = threading.Event()

    def starts() -> None:
        (tmp_path / "pid").write_text("1")
        pinged.set()

    dockerd.on_ping = starts
    found = follow()
    assert pinged.wait(5)
    until(lambda: "containerd does not answer" in found.problem("containerd"))
    with living(tmp_path):
        until(lambda: not found.problem("containerd"))
    state = json.loads((tmp_path / "run/dind-k3s/state.json").read_text())
    assert state["disabled"] == []
