"""The stop, within what `docker stop` allows; and what PID 1 owes to everybody else."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from tests.image.box import Box
from tests.image.objects import create, pod, wait_for_pods

pytestmark = pytest.mark.engine

STUBBORN = "trap : TERM; while :; do sleep 1; done"


def stop(box: Box, seconds: int = 10) -> tuple[float, object]:
    """How long `docker stop` took, and the exit code."""
    began = time.monotonic()
    box.docker.stop(box.name, time=seconds)
    return time.monotonic() - began, box.state()["exit_code"]


def test_ten_pods_that_ignore_sigterm_are_stopped_within_ten_seconds(boxes: Callable[..., Box]) -> None:
    box = boxes().up()
    box.build("mine:1")
    create(box, *(pod(f"pod-{number}", "/bin/sh", "-c", STUBBORN) for number in range(10)))
    wait_for_pods(box)
    took, code = stop(box)
    assert code == 0
    assert took < 10
    report = next(line for line in reversed(box.log().splitlines()) if "stop: done" in line)
    # A real k3s has more than these: pods of two containers each, and CoreDNS.
    found = re.search(r"done after ([\d.]+) s \(k3s [\d.]+ s, .*dockerd [\d.]+ s, (\d+) containers did not end", report)
    assert found, report
    assert int(found[2]) >= 10


@pytest.mark.parametrize(("ports", "command"), [(300, "trap exit TERM; while :; do sleep 0.1; done"), (100, STUBBORN)])
def test_hundreds_of_published_ports_are_taken_back_within_ten_seconds(
    boxes: Callable[..., Box], ports: int, command: str
) -> None:
    box = boxes(environment={"K3S_DISABLE": "1"}).up("docker")
    box.build("mine:1")
    published = f"20000-{19999 + ports}"
    run = [
        "docker",
        "run",
        "--detach",
        "--name",
        "many",
        "--restart",
        "always",
        "--publish",
        f"{published}:{published}",
    ]
    box.do(*run, "mine:1", "/bin/sh", "-c", command)
    took, code = stop(box)
    print(took, box.log())
    assert (code, took < 10) == (0, True), box.log()
    # dockerd ended by itself: it had time to note what became of the container, and starts it again.
    assert "killed by a signal" not in box.log()
    box.up("docker")
    box.until("the container to run again", lambda: box.do("docker", "port", "many").count("->") >= ports)


def test_drain_gives_a_database_the_time_that_it_asks_for(boxes: Callable[..., Box]) -> None:
    box = boxes(environment={"DIND_K3S_STOP": "drain", "DIND_K3S_STOP_GRACE": "1"}).up()
    box.build("mine:1")
    # Longer than the grace, which does not count now, and shorter than the pod's own.
    slow = "trap 'sleep 3; echo flushed >>/data/file; exit' TERM; while :; do sleep 0.1; done"
    box.do("mkdir", "/app/k3s/database")
    host = {"hostPath": {"path": "/app/k3s/database"}}
    create(box, pod("database", "/bin/sh", "-c", slow, volume=host, grace=20))
    wait_for_pods(box)
    _, code = stop(box, 60)
    assert code == 0
    assert "all the time that they asked for" in box.log()
    box.start()
    assert box.do("cat", "/app/k3s/database/file") == "flushed"


def test_a_stop_during_the_start_is_quick_and_clean(boxes: Callable[..., Box]) -> None:
    box = boxes(environment={"K3S_DISABLE": "1"})
    box.create()
    for step in ("privileges", "storage", "start"):
        box.start()
        box.until(step, lambda step=step: f" {step} " in box.log().split("=====")[-1], 20)  # type: ignore[misc]
        took, code = stop(box)
        assert code == 0, box.log()
        assert took < 8
        box.docker.remove(box.name, force=True)
        box.create()


@pytest.mark.parametrize("init", [False, True])
def test_signals_that_are_no_stop_end_nothing(boxes: Callable[..., Box], init: bool) -> None:
    box = boxes(environment={"K3S_DISABLE": "1"}, command=["--label", "size=small"], options={"init": init})
    box.create()
    for step in (" privileges ", " start ", "[watch]"):  # the shell, Python not there yet, the supervisor
        box.start()
        box.until(step, lambda step=step: step in box.log(), 20)  # type: ignore[misc]
        for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH"):
            box.docker.kill(box.name, signal=name)
        box.ready("docker")
        assert box.state()["running"]
        if step != "[watch]":
            box.docker.remove(box.name, force=True)
            box.create()
    programs = [box.pid(program) for program in ("dockerd", "watch")]
    box.do("mkdir", "-p", "/etc/docker")
    box.shell(
        """echo '{"debug": true, "insecure-registries": ["r.example:5000"], "mtu": 1400}' >/etc/docker/daemon.json"""
    )
    box.docker.kill(box.name, signal="SIGHUP")
    box.until("dockerd to reload", lambda: "r.example:5000" in box.do("docker", "info"))
    assert "dockerd reloads its configuration (debug, insecure-registries)" in box.log()
    assert "size=small" in box.do("docker", "info")
    box.shell("echo '{' >/etc/docker/daemon.json")
    box.docker.kill(box.name, signal="SIGHUP")
    box.until(
        "the mistake to be told", lambda: "SIGHUP changes nothing: /etc/docker/daemon.json is not JSON" in box.log()
    )
    box.docker.kill(box.name, signal="SIGUSR1")
    box.until("a line about SIGUSR1", lambda: "SIGUSR1 was ignored" in box.log())
    assert programs == [box.pid(program) for program in ("dockerd", "watch")]
    box.docker.kill(box.name, signal="SIGQUIT")  # a stop, in order
    assert box.ends(10)[0] == 0


@pytest.mark.parametrize("source", ["file", "flag"])
def test_live_restore_is_refused_because_nothing_outlives_the_container(boxes: Callable[..., Box], source: str) -> None:
    files = {"/etc/own.json": '{"live-restore": true}'}
    environment = {"DOCKER_ARGS": "--live-restore" if source == "flag" else "--config-file=/etc/own.json"}
    box = boxes(environment=environment, files=files)
    box.start()
    code, log = box.ends()
    assert code == 2
    assert "no SIGTERM" in " ".join(box.errors()), log


@pytest.mark.parametrize("init", [False, True])
def test_orphans_are_reaped_and_init_does_no_harm(boxes: Callable[..., Box], init: bool) -> None:
    box = boxes(environment={"K3S_DISABLE": "1"}, options={"init": init}).up("docker")
    box.shell("for i in $(seq 50); do (sleep 0.2 &) ; done")
    zombies = "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l"
    box.until("no zombies", lambda: box.do("bash", "-c", f"pgrep -c sleep || {zombies}") == "0\n0")
    box.do("kill", "-USR2", "1")  # logs are opened again, for logrotate
    box.do("kill", "-INT", "1")  # as good as SIGTERM, from inside, too
    assert box.ends(10)[0] == 0
