"""Stage `smoke`: three tiers on each platform, the same checks for every engine; see docs/smoke.md.

A tier that could not run says so with its reason; a failure never stops the other platforms from being checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from python_on_whales import DockerClient

from pipeline import emulation, layout
from pipeline.errors import SmokeFailed
from pipeline.lock import Lock
from pipeline.log import Log
from pipeline.platforms import Platform
from pipeline.release import LAYOUT, SMOKE, Image, SmokeReport, State, Tier, TierReport
from pipeline.smoke import boot, commands, files, load, report
from pipeline.smoke.boot import BootOptions
from pipeline.smoke.record import Recorder, not_run

Handler = Callable[[Platform], str | None]


def run(
    image: Image,
    lock: Lock,
    dist: Path,
    platforms: Sequence[Platform],
    tiers: Sequence[Tier],
    client: DockerClient,
    log: Log,
    *,
    handler: Handler,
    options: BootOptions,
) -> tuple[SmokeReport, ...]:
    """Check the image in dist/ and write dist/smoke/.

    `client`: an engine that runs the host's platform natively. `handler`: the interpreter that the kernel starts a
    foreign platform's binaries with, or None. Raises SmokeFailed after everything ran, with the first failure.
    """
    built = layout.read(dist / LAYOUT, image.digest)
    name = ""
    reports = []
    for platform in platforms:
        done: list[TierReport] = []
        for tier in tiers:
            with log.step(f"{platform} {tier}") as step:
                if tier != Tier.FILES and not name:
                    name = load.run(client, built, image, log)
                done.append(_tier(tier, platform, image, lock, built, dist, client, name, log, handler, options))
                if done[-1].state == State.NOT_RUN:
                    log.say(f"not run: {done[-1].reason}")
                step.mark = {State.PASSED: "✓", State.FAILED: "✗", State.NOT_RUN: "-"}[done[-1].state]
        one = SmokeReport(
            platform=platform, index=image.digest, digest=image.platforms[platform].digest, tiers=tuple(done)
        )
        one.write(dist)
        reports.append(one)
    report.write(reports, dist / SMOKE)
    report.show(reports, log)
    for one in reports:
        for ended in one.tiers:
            if ended.state == State.FAILED:
                raise SmokeFailed(
                    f"{one.platform}, tier {ended.tier}: {ended.reason}",
                    where=f"{one.digest}",
                    next_step=f"all checks are in {dist / SMOKE}",
                )
    return tuple(reports)


def _tier(
    tier: Tier,
    platform: Platform,
    image: Image,
    lock: Lock,
    built: layout.Layout,
    dist: Path,
    client: DockerClient,
    name: str,
    log: Log,
    handler: Handler,
    options: BootOptions,
) -> TierReport:
    native = platform == Platform.host()
    match tier:
        case Tier.FILES:
            recorder = Recorder(tier, "nothing executed", log)
            files.run(platform, lock, built, image.platforms[platform].digest, recorder, rehearsed=image.rehearsed)
        case Tier.COMMANDS:
            interpreter = handler(platform)
            if not native and interpreter is None:
                return not_run(
                    tier, f"no binfmt handler for {platform} is registered, so nothing of it can be run here"
                )
            recorder = Recorder(tier, "native" if native else emulation.version(interpreter or ""), log)
            commands.run(client, name, platform, lock, recorder, native=native)
        case Tier.BOOT:
            if not native:
                return not_run(
                    tier, "dockerd needs kernel interfaces that qemu-user does not translate: boot it on that platform"
                )
            recorder = Recorder(tier, "native", log)
            logs = dist / SMOKE / f"{platform.architecture}-boot.log"
            boot.run(client, name, platform, lock, options, recorder, log, logs)
    return recorder.report()
