"""Stage `smoke`: three tiers on each platform, the same checks for every engine; see docs/smoke.md.

A tier that could not run says so with its reason; a failure never stops the other platforms from being checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.core.errors import EngineError, IntentError, SmokeFailed
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.core.records import LAYOUT, SMOKE, Image, SmokeReport, State, Tier, TierReport, Variant
from pipeline.engine import emulation
from pipeline.engine.engine import Engine
from pipeline.engine.virtual.disks import Content
from pipeline.inputs.lock import Artifact, Lock
from pipeline.oci import layout
from pipeline.smoke import boot, commands, files, load, report
from pipeline.smoke.booted import BootOptions
from pipeline.smoke.load import Loaded
from pipeline.smoke.record import Recorder, not_run

_LAST_BREATH = 3.0  # seconds

Handler = Callable[[Platform], str | None]
Options = Callable[[Engine, Variant], BootOptions]


class Engines(Protocol):
    """What smoke asks for; pipeline/engine/engines.py has it."""

    always_virtual: bool

    def native(self, platform: Platform) -> Engine | None:
        """An engine that runs the platform natively."""

    def local(self) -> Engine:
        """This machine's, on which foreign binaries run if the kernel has a handler for them."""

    def virtual(self, platform: Platform, content: Content, console: Path) -> AbstractContextManager[Engine]:
        """A virtual engine of that platform."""

    def why_not_virtual(self, platform: Platform) -> str | None:
        """Why there can be no virtual engine; None when there can."""


def run(
    image: Image,
    lock: Lock,
    dist: Path,
    platforms: Sequence[Platform],
    tiers: Sequence[Tier],
    engines: Engines,
    log: Log,
    *,
    handler: Handler,
    options: Options,
) -> tuple[SmokeReport, ...]:
    """Check the image in dist/ and write dist/smoke/.

    `handler`: the interpreter that the kernel starts a foreign platform's binaries with, or None. `options`: what the
    boot tier of a variant is given on an engine. Raises SmokeFailed, or the EngineError that kept a tier from running,
    after everything ran, with the first failure; IntentError for a platform that was not built, LockStale and
    DigestMismatch before anything is checked that they would make meaningless.
    """
    absent = [platform for platform in platforms if platform not in image.platforms]
    if absent:
        raise IntentError(f"the built image has no {absent[0]}", expected=", ".join(image.platforms))
    image.require_lock(lock.digest)
    built = layout.read(dist / LAYOUT, image.digest)
    reports = []
    broken: list[EngineError] = []
    for platform in platforms:
        done: list[TierReport] = []
        with ExitStack() as stack:
            one = _Run(image, lock, dist, platform, built, engines, log, handler, options, stack)
            for tier in tiers:
                with log.step(f"{platform} {tier}") as step:
                    done.append(one.tier(tier, broken))
                    if done[-1].state == State.NOT_RUN:
                        log.say(f"not run: {done[-1].reason}")
                    step.mark = {State.PASSED: "✓", State.FAILED: "✗", State.NOT_RUN: "-"}[done[-1].state]
            one.close(broken)
        ended = SmokeReport(
            platform=platform, index=image.digest, digest=image.platforms[platform].digest, tiers=tuple(done)
        ).with_earlier(dist)
        ended.write(dist)
        reports.append(ended)
    report.write(reports, dist / SMOKE)
    report.show(reports, log)
    if broken:
        raise broken[0]
    for about in reports:
        for seen in about.tiers:
            if seen.tier in tiers and seen.state == State.FAILED:
                raise SmokeFailed(
                    f"{about.platform}, tier {seen.tier}: {seen.reason}",
                    where=about.digest.text,
                    next_step=f"all checks are in {dist / SMOKE}",
                )
    return tuple(reports)


@dataclass
class _Run:
    """One platform of one image, and what its tiers need."""

    image: Image
    lock: Lock
    dist: Path
    platform: Platform
    built: layout.Layout
    engines: Engines
    log: Log
    handler: Handler
    options: Options
    stack: ExitStack  # holds the virtual engine, for all tiers of the platform
    _virtual: Engine | None = None

    @property
    def airgap(self) -> Artifact | None:
        """The archive of system images that the variant has and the image has not."""
        found = self.lock.airgap if self.image.variant is Variant.AIRGAP else ()
        return next((file for file in found if file.platform == self.platform), None)

    def tier(self, tier: Tier, broken: list[EngineError]) -> TierReport:
        """Run one tier, or say why it did not; an engine that fails fails the tier and is added to `broken`."""
        try:
            match tier:
                case Tier.FILES:
                    return self._files()
                case Tier.COMMANDS:
                    return self._commands()
                case Tier.BOOT:
                    return self._boot()
        except EngineError as error:
            broken.append(error)
            self.log.say(f"✗ {error}")
            return TierReport(tier=tier, state=State.FAILED, reason=error.text, where="", checks=())

    def close(self, broken: list[EngineError]) -> None:
        """End the virtual engine; one that does not end in order is added to `broken`."""
        try:
            self.stack.close()
        except EngineError as error:
            broken.append(error)

    def _files(self) -> TierReport:
        recorder = Recorder(Tier.FILES, "nothing executed", self.log)
        manifest = self.image.platforms[self.platform].digest
        files.run(
            self.platform,
            self.lock,
            self.built,
            manifest,
            recorder,
            rehearsed=self.image.rehearsed,
            airgap=self.airgap,
        )
        return recorder.report()

    def _commands(self) -> TierReport:
        """Natively; else under qemu-user, which is there within a second; else on the virtual engine."""
        if self.airgap is not None:
            return not_run(Tier.COMMANDS, "the programs are the image's, in the same layers")
        virtual = self.engines.always_virtual
        engine = None if virtual else self.engines.native(self.platform)
        interpreter = None if virtual or engine else self.handler(self.platform)
        if interpreter is not None:
            engine = self.engines.local()
            recorder = Recorder(Tier.COMMANDS, emulation.version(interpreter), self.log)
            commands.run(engine, self._loaded(engine), self.lock, recorder, self.log, emulated=True)
            return recorder.report()
        if engine is None and (reason := self.engines.why_not_virtual(self.platform)) is not None:
            return not_run(Tier.COMMANDS, f"no binfmt handler for {self.platform}, and no virtual engine: {reason}")
        recorder = Recorder(Tier.COMMANDS, "native", self.log)
        engine = engine or self._started(recorder)
        commands.run(engine, self._loaded(engine), self.lock, recorder, self.log, emulated=False)
        return recorder.report(_trouble(engine) if recorder.failed else None)

    def _boot(self) -> TierReport:
        """Natively, else on a virtual engine; of a variant natively alone, since its other layers boot as the image."""
        engine = None if self.engines.always_virtual else self.engines.native(self.platform)
        if engine is None and self.airgap is not None:
            return not_run(Tier.BOOT, f"nothing runs {self.platform} natively here; the layers below boot as the image")
        if engine is None and (reason := self.engines.why_not_virtual(self.platform)) is not None:
            return not_run(Tier.BOOT, f"no engine runs {self.platform} here: {reason}")
        recorder = Recorder(Tier.BOOT, "native", self.log)
        engine = engine or self._started(recorder)
        logs = self.dist / SMOKE / f"{self.platform.architecture}-boot.log"
        check = boot.run_airgap if self.airgap else boot.run
        check(
            engine, self._loaded(engine), self.lock, self.options(engine, self.image.variant), recorder, self.log, logs
        )
        return recorder.report(_trouble(engine) if recorder.failed else None)

    def _started(self, recorder: Recorder) -> Engine:
        """The virtual engine of the platform, started once, with the image on its disk; the start is a check."""
        if self._virtual is not None:
            recorder.where = self._virtual.description
            return self._virtual
        with recorder.check("a virtual engine") as told:
            content = Content(
                key=self.image.platforms[self.platform].digest.hex[:16] + self.image.digest.hex[:16],
                fill=lambda client: load.prepare(client, self.built, self.image, self.platform, self.log),
            )
            console = self.dist / SMOKE / f"{self.platform.architecture}-console.log"
            self._virtual = self.stack.enter_context(self.engines.virtual(self.platform, content, console))
            recorder.where = self._virtual.description
            told(f"{self._virtual.description}; {self._virtual.story}")
        return self._virtual

    def _loaded(self, engine: Engine) -> Loaded:
        return load.run(engine.docker, self.built, self.image, self.platform, self.log)


def _trouble(engine: Engine) -> str | None:
    """After a failure: what is wrong with the machine below; one that panics takes a moment from its last word on."""
    deadline = time.monotonic() + (_LAST_BREATH if engine.virtual else 0.0)
    while (found := engine.trouble()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return found
