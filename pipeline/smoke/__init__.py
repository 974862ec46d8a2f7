"""Stage `smoke`: three tiers on each platform, the same checks for every engine; see docs/smoke.md.

A tier that could not run is reported with its reason; after a failure the other platforms are still checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import EngineError, IntentError, SmokeFailed
from pipeline.core.log import Log, seconds
from pipeline.core.platforms import Platform
from pipeline.core.records import LAYOUT, SMOKE, Image, SmokeReport, State, Tier, TierReport, Variant
from pipeline.engine import emulation
from pipeline.engine.engine import Engine
from pipeline.engine.engines import Engines
from pipeline.engine.virtual.disks import Content
from pipeline.inputs.lock import Lock
from pipeline.oci import layout
from pipeline.smoke import boot, commands, files, load
from pipeline.smoke.booted import BootOptions
from pipeline.smoke.contents import Subject
from pipeline.smoke.load import Loaded
from pipeline.smoke.record import Recorder, not_run

_PANIC = 3.0  # seconds until a machine reports its panic
_MARKS = {State.PASSED: "✓", State.FAILED: "✗", State.NOT_RUN: "-"}

Options = Callable[[Engine, Variant], BootOptions]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to check: platforms and tiers of an image, and the engines to use."""

    image: Image
    lock: Lock
    dist: Path  # with the image's layout; reports are written below it
    platforms: Sequence[Platform]
    tiers: Sequence[Tier]
    engines: Engines
    log: Log
    options: Options  # for the boot tier of a variant on an engine


def run(request: Request) -> tuple[SmokeReport, ...]:
    """Check the image in dist/ and write dist/smoke/.

    Runs everything, then raises SmokeFailed, or the EngineError that kept a tier from running, for the first failure.
    Raises IntentError for a platform that was not built, LockStale and DigestMismatch before any check.
    """
    image, dist = request.image, request.dist
    if absent := [platform for platform in request.platforms if platform not in image.platforms]:
        raise IntentError(f"the built image has no {absent[0]}", expected=", ".join(image.platforms))
    image.require_lock(request.lock.digest)
    built = layout.read(dist / LAYOUT, image.digest)
    broken: list[EngineError] = []
    reports = []
    for platform in request.platforms:
        subject = Subject(image=image, platform=platform, layout=built, lock=request.lock)
        reports.append(_Run(request=request, subject=subject, broken=broken).report().with_earlier(dist))
        reports[-1].write(dist)
    _show(reports, request.log)
    if broken:
        raise broken[0]
    for smoked in reports:
        for tier in smoked.tiers:
            if tier.tier in request.tiers and tier.state == State.FAILED:
                raise SmokeFailed(
                    f"{smoked.platform}, tier {tier.tier}: {tier.reason}",
                    where=smoked.digest.text,
                    next_step=f"all checks are in {dist / SMOKE}",
                )
    return tuple(reports)


@dataclass(kw_only=True)
class _Run:
    """The tiers of one platform."""

    request: Request
    subject: Subject
    broken: list[EngineError]  # collects the errors of engines
    _stack: ExitStack = field(default_factory=ExitStack)  # holds the virtual engine, for all tiers of the platform
    _virtual: Engine | None = None

    def report(self) -> SmokeReport:
        """Run the tiers; an engine that fails, or does not stop cleanly, fails its tier."""
        log, platform = self.request.log, self.subject.platform
        reports: list[TierReport] = []
        with self._stack:
            for tier in self.request.tiers:
                with log.step(f"{platform} {tier}") as step:
                    reports.append(self._tier(tier))
                    if reports[-1].state == State.NOT_RUN:
                        log.say(f"not run: {reports[-1].reason}")
                    step.mark = _MARKS[reports[-1].state]
            try:
                self._stack.close()
            except EngineError as error:
                self.broken.append(error)
        image = self.subject.image
        return SmokeReport(
            platform=platform, index=image.digest, digest=self.subject.built.digest, tiers=tuple(reports)
        )

    def _tier(self, tier: Tier) -> TierReport:
        try:
            match tier:
                case Tier.FILES:
                    return self._files()
                case Tier.COMMANDS:
                    return self._commands()
                case Tier.BOOT:
                    return self._boot()
        except EngineError as error:
            self.broken.append(error)
            self.request.log.say(f"✗ {error}")
            return TierReport(tier=tier, state=State.FAILED, reason=error.text, where="", checks=())

    def _files(self) -> TierReport:
        recorder = Recorder(Tier.FILES, "nothing executed", self.request.log)
        files.run(self.subject, recorder)
        return recorder.report()

    def _commands(self) -> TierReport:
        """Run natively, else under qemu-user, which starts within a second, else on the virtual engine."""
        if self.subject.airgap is not None:
            return not_run(Tier.COMMANDS, "the programs are the image's, in the same layers")
        platform = self.subject.platform
        engine = self._native()
        interpreter = None if engine or self.request.engines.always_virtual else emulation.handler(platform)
        if interpreter is not None:
            engine = self.request.engines.start()  # the handler is this machine's
            recorder = Recorder(Tier.COMMANDS, emulation.version(interpreter), self.request.log)
            commands.run(engine, self._loaded(engine), self.subject.lock, recorder, emulated=True)
            return recorder.report()
        if engine is None and (reason := self.request.engines.why_not_virtual(platform)) is not None:
            return not_run(Tier.COMMANDS, f"no binfmt handler for {platform}, and no virtual engine: {reason}")
        recorder = Recorder(Tier.COMMANDS, "native", self.request.log)
        engine = engine or self._started(recorder)
        commands.run(engine, self._loaded(engine), self.subject.lock, recorder, emulated=False)
        return recorder.report(_trouble(engine) if recorder.failed else None)

    def _boot(self) -> TierReport:
        """Run natively, else on a virtual engine; a variant only natively: its other layers boot with the image."""
        engine, platform, airgap = self._native(), self.subject.platform, self.subject.airgap
        if engine is None and airgap is not None:
            return not_run(Tier.BOOT, f"nothing runs {platform} natively here; the layers below boot as the image")
        if engine is None and (reason := self.request.engines.why_not_virtual(platform)) is not None:
            return not_run(Tier.BOOT, f"no engine runs {platform} here: {reason}")
        recorder = Recorder(Tier.BOOT, "native", self.request.log)
        engine = engine or self._started(recorder)
        options = self.request.options(engine, self.subject.image.variant)
        check = boot.run_airgap if airgap else boot.run
        check(engine, self._loaded(engine), self.subject.lock, options, recorder, self._log_path("boot"))
        return recorder.report(_trouble(engine) if recorder.failed else None)

    def _native(self) -> Engine | None:
        engines = self.request.engines
        return None if engines.always_virtual else engines.native(self.subject.platform)

    def _started(self, recorder: Recorder) -> Engine:
        """Return the platform's virtual engine, started once, with the image on its disk; the start is a check."""
        if self._virtual is not None:
            recorder.where = self._virtual.description
            return self._virtual
        with recorder.check("a virtual engine") as note:
            image, platform, log = self.subject.image, self.subject.platform, self.request.log
            content = Content(
                key=self.subject.built.digest.hex[:16] + image.digest.hex[:16],
                fill=lambda client: load.prepare(client, self.subject.layout, image, platform, log),
            )
            virtual = self.request.engines.virtual(platform, content, self._log_path("console"))
            self._virtual = self._stack.enter_context(virtual)
            recorder.where = self._virtual.description
            note(f"{self._virtual.description}; {self._virtual.story}")
        return self._virtual

    def _log_path(self, name: str) -> Path:
        return self.request.dist / SMOKE / f"{self.subject.platform.architecture}-{name}.log"

    def _loaded(self, engine: Engine) -> Loaded:
        subject = self.subject
        return load.run(engine.docker, subject.layout, subject.image, subject.platform, self.request.log)


def _trouble(engine: Engine) -> str | None:
    """Return what is wrong with the engine's machine, after a failed check."""
    deadline = time.monotonic() + (_PANIC if engine.virtual else 0.0)
    while (trouble := engine.trouble()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return trouble


def _show(reports: Sequence[SmokeReport], log: Log) -> None:
    """Log a row for each platform and tier; of a tier that passed the number of checks, and the state of its parts."""
    rows = [
        [
            report.platform.value,
            tier.tier.value,
            tier.state.value,
            seconds(tier.seconds) if tier.checks else "",
            tier.where,
            tier.reason
            or ", ".join([f"{len(tier.checks)} checks", *(f"{step} {state}" for step, state in tier.steps.items())]),
        ]
        for report in reports
        for tier in report.tiers
    ]
    log.table("smoke", ["platform", "tier", "state", "time", "ran on", ""], rows)
