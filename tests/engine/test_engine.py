"""Real engines: the private one, and the choice between it and the user's."""

from __future__ import annotations

from pathlib import Path

import pytest
from python_on_whales import DockerClient

from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.engine import daemon
from pipeline.engine import engine as engines
from tests.helpers.examples import LOCK

pytestmark = pytest.mark.engine


def test_the_private_engine_runs_a_container(engine: DockerClient, busybox: str) -> None:
    assert engine.run(busybox, ["/bin/cat", "/proc/1/comm"], remove=True, networks=["none"]) == "cat"
    info = engine.system.info()
    assert str(info.docker_root_dir).startswith("/tmp/dind-k3s-tests-")


def test_a_second_run_on_the_same_folder_is_refused(engine: DockerClient) -> None:
    folder = Path(str(engine.system.info().docker_root_dir)).parent
    binaries = daemon.Binaries(bin=folder / "bin", config=folder / "config")
    with (
        pytest.raises(EngineError, match="another run uses the private engine"),
        daemon.run(binaries, folder, Log(quiet=True), sandboxed=True, network=False),
    ):
        pass


def test_a_dockerd_that_cannot_start_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    for name, text in {"dockerd": "echo no space on this moon; exit 3", "docker": "exit 1", "docker-init": ""}.items():
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\n{text or 'shift; exec ' + chr(34) + '$@' + chr(34)}\n", encoding="ascii")
        script.chmod(0o755)
    binaries = daemon.Binaries(bin=tmp_path, config=tmp_path)
    with (
        pytest.raises(EngineError, match="no space on this moon") as refused,
        daemon.run(binaries, tmp_path / "engine", Log(quiet=True), sandboxed=True, network=False),
    ):
        pass
    assert refused.value.exit_code == 11


def test_the_users_engine_is_used_when_it_can_build(
    engine: DockerClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = engine.client_config
    monkeypatch.setenv("DOCKER_HOST", str(config.host))
    monkeypatch.setenv("DOCKER_CONFIG", str(config.config))
    monkeypatch.setenv("PATH", str(Path(config.client_call[0]).parent), prepend=":")
    with engines.choose(LOCK, tmp_path, Log()) as chosen:
        assert chosen.builder == "default"
        assert chosen.docker.system.info().id == engine.system.info().id
    assert "your engine" in capsys.readouterr().err


def test_no_engine_and_an_empty_cache_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    with pytest.raises(Exception, match="nox -s fetch"), engines.choose(LOCK, tmp_path, Log(quiet=True)):
        pass


def test_without_root_a_private_engine_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with (
        pytest.raises(EngineError, match="needs root"),
        engines.private(LOCK, tmp_path, Log(quiet=True), sandboxed=True),
    ):
        pass
