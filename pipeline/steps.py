"""The flow of a release: steps that know what is left of them, so it begins anywhere and continues where it stopped.

The state is in dist/ (records.py) and in the registries, never in memory: a step looks at what is there, does the
rest, and records it. So the same input twice does nothing, a killed run is run again, and another machine continues
from the files that were carried there. A stage refuses a digest that has not come through the stages before it,
by any caller; the order here is only the one in which nothing is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.build import build
from pipeline.core import sboms
from pipeline.core.errors import IntentError, PipelineError, SmokeFailed, VerificationFailed
from pipeline.core.log import Log
from pipeline.core.records import Image, ScanReport, SmokeReport, read_json, require_scanned, require_smoked
from pipeline.core.sboms import Form
from pipeline.publish import push, scan, tag
from pipeline.signing.signer import KeySigner, identity_token
from pipeline.workflow import Run

Report = TypeVar("Report", SmokeReport, ScanReport)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of a release."""

    name: str
    left: Callable[[], Sequence[str]]  # what it would do, a line each; empty when there is nothing
    run: Callable[[], object]
    require: Callable[[], object] | None = None  # refuses to begin without what it needs from outside

    @property
    def may_run(self) -> bool:
        """Whether something is left, or it cannot be known yet."""
        try:
            return bool(self.left())
        except PipelineError:
            return True


def of(
    run: Run,
    *,
    smoke: Callable[[], object],
    scanner: Sequence[str],
    least: str,
    key: Path | None,
    afresh: bool = False,
) -> tuple[Step, ...]:
    """Return the steps of a release, in their order.

    `smoke` checks what was built. `key`: what to sign with; None: as the workflow that this is. `afresh`: smoke again
    what was smoked.
    """

    def made() -> None:
        run.fetch(offline=False)
        run.build()

    def verified() -> None:
        """Signatures first: what is read back after them is recorded as verified."""
        indexes = [f"{name}@{image.digest}" for image in run.built().values() for name in run.intent.names]
        run.verify_published(indexes, run.signed_by(key))
        run.verify()

    return (
        Step(name="build", left=lambda: _to_build(run), run=made),
        Step(
            name="smoke",
            left=lambda: ["smoke it again"] if afresh else _refused(run, SmokeReport, require_smoked),
            run=smoke,
        ),
        Step(name="sbom", left=lambda: _to_describe(run), run=run.sbom),
        Step(
            name="scan",
            left=lambda: _refused(run, ScanReport, require_scanned),
            run=lambda: run.scan(scanner, least=least),
            require=lambda: scan.require_scanner(scanner),
        ),
        Step(name="push", left=lambda: [text for one in run.publications() for text in push.left(one)], run=run.push),
        Step(
            name="sign",
            left=lambda: _to_sign(run),
            run=lambda: run.sign(key),
            require=lambda: KeySigner(key) if key else identity_token(),
        ),
        Step(name="tag", left=lambda: [text for one in run.publications() for text in tag.left(one)], run=run.tag),
        Step(name="verify", left=lambda: _to_verify(run), run=verified),
    )


def go(steps: Sequence[Step], log: Log, *, dry_run: bool) -> None:
    """Do what is left of each step; `dry_run`: only log it. Raises whatever the first step raises that fails.

    What a step needs from outside (a scanner, a key) is asked for before the first one begins.
    """
    for step in steps:
        if step.require and not dry_run and step.may_run:
            step.require()
    waiting = ""  # the first step that a dry run has not done
    for step in steps:
        try:
            left = step.left()
        except PipelineError as error:
            if not (dry_run and waiting):
                raise
            log.say(f"{step.name}: after {waiting} ({error.text})")
            continue
        if not left:
            log.say(f"{step.name}: nothing to do")
        elif dry_run:
            for text in left:
                log.say(f"{step.name}: {text}")
            waiting = waiting or step.name
        else:
            step.run()


def _to_build(run: Run) -> list[str]:
    inputs = build.inputs_of(run.root, run.plan())
    return [
        f"fetch what is missing, and build {', '.join(run.intent.platforms)}{variant.suffix}"
        for variant in run.lock.variants
        if build.already_built(variant.below(run.dist), inputs) is None
    ]


def _refused(run: Run, stage: type[Report], require: Callable[[Image, Sequence[Report]], None]) -> list[str]:
    """Return a line for each image whose reports do not let it continue, with the reason."""
    left = []
    for image in run.built().values():
        try:
            require(image, stage.read_all(run.folder(image), image))
        except (IntentError, SmokeFailed, VerificationFailed) as error:
            left.append(f"{stage.stage} {image.digest}{image.variant.suffix}: {error.text}")
    return left


def _to_describe(run: Run) -> list[str]:
    left = []
    for image in run.built().values():
        for platform, built in image.platforms.items():
            for form in Form:
                try:
                    document = read_json(sboms.path(run.folder(image), platform, form), next_step="nox -s sbom")
                except IntentError:
                    document = {}
                if sboms.subject(form, document) != built.digest:
                    left.append(f"write the {form} of {platform}{image.variant.suffix}")
    return left


def _to_sign(run: Run) -> list[str]:
    return [
        f"sign {one.image.digest} in {name}"
        for one in run.publications()
        for name in run.intent.names
        if str(name) not in one.release.signed
    ]


def _to_verify(run: Run) -> list[str]:
    left = []
    for one in run.publications():
        release = one.release
        if not release.tagged:
            raise IntentError("it has no tag yet", next_step="nox -s tag")
        left += [f"read back {reference}" for reference in release.tagged if reference not in release.verified]
    return left
