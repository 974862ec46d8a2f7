"""Ready means that a container can be started; what keeps one from it is named, and over when it is mended."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.image.box import Box
from tests.image.test_storage import FILL, SMALL, after

pytestmark = pytest.mark.engine

REFUSAL = "unable to apply cgroup configuration: mkdir /sys/fs/cgroup/cpu/docker: read-only file system"
ALONE = {"K3S_DISABLE": "1"}


def finding(box: Box, name: str) -> tuple[str, str]:
    """State and evidence of one of doctor's checks."""
    found = {one["id"]: one for one in json.loads(box.shell("doctor --json || true"))}
    return found[name]["state"], found[name]["evidence"]


def problem(box: Box) -> str:
    return str(json.loads(box.do("cat", "/run/dind-k3s/state.json"))["problems"].get("container", ""))


def test_docker_is_not_ready_while_runc_starts_nothing(boxes: Callable[..., Box]) -> None:
    runc = f"#!/bin/sh\necho '{REFUSAL}' >&2\nexit 1\n"
    box = boxes(files={"/usr/local/sbin/runc": runc}, environment=ALONE)
    box.start()
    messages = f"no container can be started: {REFUSAL}"
    box.until("the reason", lambda: messages in box.fails("wait-ready", "--for", "docker", "--timeout", "60"))
    assert "after 60 s" not in box.fails("wait-ready", "--for", "docker", "--timeout", "60")
    assert finding(box, "container") == ("fail", messages)
    assert messages in box.fails("healthcheck")
    box.do("rm", "/usr/local/sbin/runc")
    box.until("the next trial", lambda: box.do("wait-ready", "--timeout", "1"), 30)
    assert finding(box, "container")[0] == "ok"


def test_what_runs_out_is_named_and_over_when_there_is_more_of_it(boxes: Callable[..., Box]) -> None:
    box = boxes(command=after(SMALL), environment=ALONE).up("all")
    used = int(box.shell("cat /sys/fs/cgroup/pids/pids.current || cat /sys/fs/cgroup/pids.current"))
    box.docker.container.update(box.name, pids_limit=used + 25)
    box.until("the limit", lambda: f"pids limit is {used + 25}" in problem(box), 30)
    assert finding(box, "pids")[0] == "fail"
    box.docker.container.update(box.name, pids_limit=-1)
    box.ready("all", 30)
    box.shell(FILL)
    box.until("the full volume", lambda: "/var/lib/docker is full" in problem(box), 30)
    assert finding(box, "space-/var/lib/docker")[0] == "fail"
    box.do("rm", "/var/lib/docker/fill", "/app/k3s/fill")
    box.ready("all", 30)
    # inotify's instances are those of the host's user; in a user namespace they can be used up without harm.
    none_left = "echo 0 >/proc/sys/user/max_inotify_instances; exec doctor"
    messages = box.fails("unshare", "--user", "--map-root-user", "bash", "-euc", none_left)
    assert "no instance is left (Too many open files)" in messages
    assert finding(box, "inotify")[0] == "ok"
    box.do("mount", "-t", "tmpfs", "-o", "noexec", "none", "/app/k3s")
    assert finding(box, "exec-/app/k3s") == ("fail", "/app/k3s is mounted noexec")
