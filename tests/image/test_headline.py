"""What the image is for: one engine for `docker build` and for pods."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.image.box import Box

pytestmark = pytest.mark.engine


def test_what_docker_builds_is_what_a_pod_runs_with_no_load_step(running: Box) -> None:
    running.build("mine:1", word="built inside")
    running.kubectl("run", "mine", "--image=mine:1", "--image-pull-policy=Never", "--restart=Never")
    running.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/mine", "--timeout=60s")
    assert running.kubectl("logs", "mine") == "built inside"
    running.kubectl("delete", "pod", "mine", "--now")


def test_each_step_of_the_start_is_one_line_with_its_time(running: Box) -> None:
    lines = [line.split() for line in running.log().splitlines() if line.startswith("dind-k3s ")]
    steps = [line[2] for line in lines]
    assert steps[:4] == ["privileges", "network", "lock", "versions"]
    assert steps[-1] == "start"
    assert all(re.fullmatch(r"\d+\.\d{3}s", line[1]) for line in lines)


def test_k3s_begins_when_dockerd_answers_and_both_reach_the_log_and_their_files(running: Box) -> None:
    lines = running.log().splitlines()

    def first(beginning: str) -> int:
        return next(number for number, line in enumerate(lines) if line.startswith(beginning))

    assert first("[dockerd]") < first("[watch] docker is ready") < first("[k3s]")
    files = running.do("ls", "/app/logs").split()
    assert {"dockerd.log", "k3s.log", "watch.log"} <= set(files)
    assert running.do("head", "-n", "1", "/app/logs/k3s.log") == lines[first("[k3s]")].removeprefix("[k3s] ")


def test_mounts_propagate_both_ways(running: Box) -> None:
    (root,) = (
        line.split() for line in running.do("cat", "/proc/self/mountinfo").splitlines() if line.split()[4] == "/"
    )
    assert any(word.startswith("shared:") for word in root)


def test_a_second_container_on_the_same_volumes_is_refused_with_a_sentence(
    running: Box, boxes: Callable[..., Box]
) -> None:
    second = boxes(volumes=list(running.own_volumes.items()))
    second.start()
    code, _ = second.ends()
    assert code == 2
    (messages,) = second.errors()
    assert messages.startswith("the volume at /var/lib/docker is in use by another container; stop that one")
    running.ready()
