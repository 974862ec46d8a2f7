"""What dies or hangs comes back by itself, and is reported in one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.image.box import Box, Image, box
from tests.image.objects import create, pod, wait_for_pods

pytestmark = pytest.mark.engine

LIBRARY = "/usr/local/lib/dind-k3s"
OURS = Path(__file__).resolve().parents[2] / f"rootfs{LIBRARY}"
SAY = OURS / "say.sh"


@pytest.fixture(scope="module")
def victim(image: Image) -> Iterator[Box]:
    """A box with a pod that is meant to live for ever, and one object in its cluster."""
    with box(image) as made:
        made.up()
        made.build("mine:1")
        # It ends at SIGTERM: a dockerd that starts again gives ten seconds to those that do not.
        create(made, pod("lives", "/bin/sh", "-c", "trap exit TERM; while :; do sleep 0.2; done"))
        wait_for_pods(made)
        yield made


def ours(made: Box) -> list[str]:
    """Lines of the image's own programs about something that went wrong."""
    return [line for line in made.log().splitlines() if line.startswith("[dind-k3s]")]


def alive(made: Box) -> None:
    """Everything works, the pod included."""
    made.ready()
    wait_for_pods(made)
    made.until("the pod", lambda: made.kubectl("exec", "lives", "--", "/bin/cat", "/word") == "hello")


KILLS = {
    "k3s": (["supervisorctl pid k3s"], {"k3s"}),
    "dockerd": (["supervisorctl pid dockerd"], {"dockerd"}),
    "all": (["supervisorctl pid k3s", "supervisorctl pid dockerd", "pgrep -x containerd"], {"k3s", "dockerd"}),
}


@pytest.mark.parametrize("fault", KILLS)
def test_what_is_killed_comes_back_and_the_pod_with_it(victim: Box, fault: str) -> None:
    victim.shell("rm -f /run/docker.pid && echo 1 >/run/docker.pid")  # of a process that lives
    before = len(ours(victim))
    commands, messages = KILLS[fault]
    victim.shell("kill -9 " + " ".join(f"$({command})" for command in commands))
    victim.until("what it says", lambda: len(ours(victim)) - before == len(messages))
    alive(victim)
    output = ours(victim)[before:]
    assert {line.split()[1].rstrip(":") for line in output} == messages, output
    assert len(output) == len(messages)


def test_docker_is_not_ready_while_dockerd_has_no_containerd(victim: Box) -> None:
    """dockerd answers pings all the while; and what is ready again works at the first try."""
    before = len(ours(victim))
    began = time.monotonic()
    victim.shell("kill -9 $(pgrep -x containerd)")
    victim.until("its loss", lambda: "containerd" in victim.fails("wait-ready", "--for=docker", "--timeout=0"), 5)
    lost = time.monotonic()
    assert victim.do("docker", "version", "--format", "{{.Server.Version}}")
    assert "containerd" in victim.fails("healthcheck")
    victim.ready("docker")
    ready = time.monotonic()
    assert victim.do("docker", "run", "--rm", "mine:1") == "hello"
    print(f"containerd killed: noticed after {lost - began:.2f} s, ready again after {ready - began:.1f} s")
    alive(victim)
    (output,) = ours(victim)[before:]
    assert "containerd: ended by itself, dockerd starts it again" in output


def test_a_watcher_that_hangs_is_unhealthy(victim: Box) -> None:
    assert victim.do("healthcheck")
    watch = victim.pid("watch")
    victim.do("kill", "-STOP", str(watch))
    # Two minutes later, as the file tells it.
    victim.shell("read -r state at text </run/dind-k3s/health; echo $state $((at - 120)) $text >/run/dind-k3s/health")
    assert "the readiness watcher has said nothing for 12" in victim.fails("healthcheck")
    victim.do("kill", "-CONT", str(watch))
    victim.shell("echo >/run/dind-k3s/wake")
    victim.until("health", lambda: "ready" in victim.do("healthcheck"), 20)


def test_stopping_a_program_by_hand_counts_at_once(victim: Box) -> None:
    victim.do("supervisorctl", "stop", "k3s")
    assert "not ready" in victim.fails("wait-ready", "--timeout", "0")
    victim.do("supervisorctl", "start", "k3s")
    alive(victim)


@pytest.mark.parametrize("within", ["300.0", "0.1"], ids=["at once", "slowly"])
def test_what_cannot_be_kept_alive_ends_the_container_with_a_sentence(boxes: Callable[..., Box], within: str) -> None:
    keeper = (OURS / "dind_k3s/keeper.py").read_text().replace("WITHIN = 300.0", f"WITHIN = {within}")
    made = boxes(
        files={
            "/usr/local/bin/k3s": "#!/bin/sh\necho 'no luck today'\nsleep 1.2\nexit 7\n",
            f"{LIBRARY}/dind_k3s/keeper.py": keeper,
        }
    )
    made.start()
    code, log = made.ends(90)
    assert code == 3
    assert (
        "error: k3s could not be kept alive, so this container ends (exit code 7: no luck today);"
        " its log is /app/logs/k3s.log" in log
    )


def test_a_k3s_whose_kubelet_fails_ends_the_container_with_the_kubelets_message(boxes: Callable[..., Box]) -> None:
    """k3s itself exits with 0 then. Until the container ends, doctor reports the message, too."""
    made = boxes(environment={"K3S_ARGS": "--kubelet-arg=network-plugin=cni"})
    made.start()
    reason = "kubelet exited: failed to parse kubelet flag: unknown flag: --network-plugin"
    made.until("the reason", lambda: reason in made.do("cat", "/run/dind-k3s/k3s.problem"), 120)
    assert reason in made.fails("doctor")
    code, _ = made.ends(280)
    assert code == 3
    assert made.errors()[0].startswith("k3s could not be kept alive, so this container ends (exit code 0: Shutdown req")
    assert reason in made.errors()[0]


@pytest.mark.parametrize("program", ["dockerd", "network"])
def test_an_end_with_status_0_is_one_that_nobody_asked_for(boxes: Callable[..., Box], program: str) -> None:
    script = {f"/usr/local/lib/dind-k3s/run-{program}": "#!/bin/bash\nsleep 1.2\n"}
    made = boxes(files=script, environment={"K3S_DISABLE": "1"})
    made.start()
    code, _ = made.ends(90)
    assert code == 3
    assert made.errors()[0].startswith(f"{program} could not be kept alive, so this container ends (exit code 0")


def test_a_start_that_is_killed_at_any_step_leaves_nothing_that_the_next_one_minds(boxes: Callable[..., Box]) -> None:
    # The image's own say.sh, but the step that the file names never ends: before its line, so in the middle of it.
    hang = 'say() { if [[ -e /hang && $1 == "$(cat /hang)" ]]; then echo "hangs in $1"; sleep 600; fi; told "$@"; }\n'
    text = SAY.read_text().replace("say() {", "told() {", 1) + hang
    made = boxes(files={"/usr/local/lib/dind-k3s/say.sh": text})
    made.create()
    steps = "privileges lock versions cgroup state mounts leftovers sysctl iptables storage network configure start"
    for step in steps.split():
        file = made.image.folder / f"{made.name}.step"
        file.write_text(step)
        made.docker.copy(file, (made.name, "/hang"))
        made.start()
        made.until(step, lambda step=step: f"hangs in {step}" in made.log())  # type: ignore[misc]
        made.docker.kill(made.name)
    file.write_text("none")
    made.docker.copy(file, (made.name, "/hang"))
    made.start()
    made.ready()
    assert not made.errors()
