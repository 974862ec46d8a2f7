"""Reports of a tier on a slow engine: skipped checks, the state of a step; longer limits for k3s."""

from __future__ import annotations

from python_on_whales import DockerClient

from pipeline.core.log import Log
from pipeline.core.records import Check, State, Tier, TierReport
from pipeline.engine.engine import Engine
from pipeline.smoke import boot
from pipeline.smoke.booted import BootOptions
from pipeline.smoke.record import Recorder


def check(step: str, state: State) -> Check:
    return Check(name="a check", state=state, seconds=1.0, detail="", step=step)


def test_a_step_has_the_state_of_its_worst_check() -> None:
    checks = (
        check("", State.PASSED),
        check("docker", State.PASSED),
        check("docker", State.FAILED),
        check("control plane", State.PASSED),
        check("node and pods", State.NOT_RUN),
        check("node and pods", State.NOT_RUN),
    )
    report = TierReport(tier=Tier.BOOT, state=State.FAILED, reason="", where="", checks=checks)
    assert report.steps == {
        "docker": State.FAILED,
        "control plane": State.PASSED,
        "node and pods": State.NOT_RUN,
    }


def slow(patience: float) -> Engine:
    return Engine(docker=DockerClient(), builder=None, description="", platform=None, virtual=True, patience=patience)


def test_k3s_gets_longer_limits_on_a_slow_engine_only() -> None:
    options = BootOptions(extra_environment={"K3S_ARGS": "--pause-image=x", "DOCKER_ARGS": "--mtu 1400"})
    assert boot.for_speed(options, slow(4.0)) == options
    given = boot.for_speed(options, slow(28.0)).extra_environment
    assert given["DOCKER_ARGS"] == "--mtu 1400"
    assert given["K3S_ARGS"].startswith("--pause-image=x ")
    assert "--kube-controller-manager-arg=node-monitor-grace-period=900s" in given["K3S_ARGS"].split()
    assert boot.for_speed(BootOptions(), slow(28.0)).extra_environment.keys() == {"K3S_ARGS"}


def test_a_skipped_check_does_not_fail_its_tier() -> None:
    recorder = Recorder(Tier.BOOT, "virtual", Log(quiet=True))
    recorder.step = "docker"
    with recorder.check("dockerd"):
        pass
    recorder.step = "node and pods"
    recorder.skip("node", "too slow")
    report = recorder.report()
    assert report.state == State.PASSED
    assert report.steps == {"docker": State.PASSED, "node and pods": State.NOT_RUN}
    assert recorder.report("the guest is gone").reason == "the guest is gone"
