"""Stage `smoke`: three tiers on each platform, the same checks for every engine; see docs/smoke.md.

A tier that could not run says so with its reason; a failure never stops the other platforms from being checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from python_on_whales import DockerClient

from pipeline import emulation, layout
from pipeline.errors import IntentError, LockStale, SmokeFailed
from pipeline.lock import Lock
from pipeline.log import Log
from pipeline.platforms import Platform
from pipeline.release import LAYOUT, SMOKE, Image, SmokeReport, State, Tier, TierReport
from pipeline.smoke import boot, commands, files, load, report
from pipeline.smoke.boot import BootOptions
from pipeline.smoke.load import Loaded
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
    foreign platform's binaries with, or None. Raises SmokeFailed after everything ran, with the first failure;
    IntentError for a platform that was not built, LockStale, DigestMismatch and EngineError before anything is checked
    that they would make meaningless.
    """
    absent = [platform for platform in platforms if platform not in image.platforms]
    if absent:
        raise IntentError(f"the built image has no {absent[0]}", expected=", ".join(image.platforms))
    if image.lock != lock.digest:
        raise LockStale("the image was built from another lock than this one", next_step="nox -s build, then smoke")
    built = layout.read(dist / LAYOUT, image.digest)
    reports = []
    for platform in platforms:
        one = _Run(image, lock, dist, platform, built, client, log, handler, options)
        done: list[TierReport] = []
        for tier in tiers:
            with log.step(f"{platform} {tier}") as step:
                done.append(one.tier(tier))
                if done[-1].state == State.NOT_RUN:
                    log.say(f"not run: {done[-1].reason}")
                step.mark = {State.PASSED: "✓", State.FAILED: "✗", State.NOT_RUN: "-"}[done[-1].state]
        ended = SmokeReport(
            platform=platform, index=image.digest, digest=image.platforms[platform].digest, tiers=tuple(done)
        )
        ended.write(dist)
        reports.append(ended)
    report.write(reports, dist / SMOKE)
    report.show(reports, log)
    for about in reports:
        for seen in about.tiers:
            if seen.state == State.FAILED:
                raise SmokeFailed(
                    f"{about.platform}, tier {seen.tier}: {seen.reason}",
                    where=about.digest.text,
                    next_step=f"all checks are in {dist / SMOKE}",
                )
    return tuple(reports)


@dataclass(frozen=True)
class _Run:
    """One platform of one image, and what its tiers need."""

    image: Image
    lock: Lock
    dist: Path
    platform: Platform
    built: layout.Layout
    client: DockerClient
    log: Log
    handler: Handler
    options: BootOptions

    def tier(self, tier: Tier) -> TierReport:
        """Run one tier, or say why it did not."""
        native = self.platform == Platform.host()
        match tier:
            case Tier.FILES:
                recorder = Recorder(tier, "nothing executed", self.log)
                manifest = self.image.platforms[self.platform].digest
                files.run(self.platform, self.lock, self.built, manifest, recorder, rehearsed=self.image.rehearsed)
            case Tier.COMMANDS:
                interpreter = self.handler(self.platform)
                if not native and interpreter is None:
                    return not_run(
                        tier, f"no binfmt handler for {self.platform} is registered, so nothing of it can be run here"
                    )
                recorder = Recorder(tier, "native" if native else emulation.version(interpreter or ""), self.log)
                commands.run(self.client, self._loaded(), self.lock, recorder, self.log, native=native)
            case Tier.BOOT:
                if not native:
                    return not_run(
                        tier,
                        "dockerd needs kernel interfaces that qemu-user does not translate: boot it on that platform",
                    )
                recorder = Recorder(tier, "native", self.log)
                logs = self.dist / SMOKE / f"{self.platform.architecture}-boot.log"
                boot.run(self.client, self._loaded(), self.lock, self.options, recorder, self.log, logs)
        return recorder.report()

    def _loaded(self) -> Loaded:
        return load.run(self.client, self.built, self.image, self.platform, self.log)
