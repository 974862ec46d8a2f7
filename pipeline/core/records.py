"""The files in dist/ that pass from one stage to the next, and the rules of what a digest must have behind it.

dist/image/         the built image as an OCI layout; the bytes that are smoked, pushed and verified
dist/image.json     Image: what was built, from which inputs
dist/smoke/*.json   SmokeReport: one for each platform
dist/scan/*.json    ScanReport: one for each platform
dist/release.json   Release: what happened to each digest, so that a rerun continues where it stopped
dist/airgap/        the same files of the variant airgap
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast, get_args, get_origin, get_type_hints

from pipeline.core.errors import (
    BuildFailed,
    IntentError,
    LockStale,
    PipelineError,
    RegistryError,
    SmokeFailed,
    VerificationFailed,
)
from pipeline.core.names import Digest, ImageName
from pipeline.core.platforms import Platform

LAYOUT = "image"
IMAGE = "image.json"
SMOKE = "smoke"
SCAN = "scan"
RELEASE = "release.json"

OLDEST_DATABASE = timedelta(days=5)  # of known vulnerabilities; grype itself refuses an older one by default


class Variant(StrEnum):
    """An image that a release makes: the Dockerfile's target of that name."""

    IMAGE = "image"
    AIRGAP = "airgap"  # the image and one layer more: k3s's system images

    def below(self, dist: Path) -> Path:
        """The folder of its own files."""
        return dist if self is Variant.IMAGE else dist / self.value

    @property
    def suffix(self) -> str:
        """What its tags end with."""
        return "" if self is Variant.IMAGE else f"-{self.value}"


class Tier(StrEnum):
    """How far a check goes; docs/smoke.md has the table."""

    FILES = "files"
    COMMANDS = "commands"
    BOOT = "boot"


class State(StrEnum):
    """How a tier or a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True, kw_only=True)
class BuiltPlatform:
    """One platform of the built index."""

    digest: Digest  # of the platform's image manifest
    config: Digest  # of its image config: what classic docker engines call the image ID
    size: int  # bytes of all its compressed layers
    layers: tuple[Digest, ...] = ()  # lowest first

    @classmethod
    def of(cls, digest: Digest, manifest: Mapping[str, Any]) -> Self:
        """Of an image manifest and its digest."""
        layers = manifest["layers"]
        return cls(
            digest=digest,
            config=Digest(manifest["config"]["digest"]),
            size=sum(layer["size"] for layer in layers),
            layers=tuple(Digest(layer["digest"]) for layer in layers),
        )


@dataclass(frozen=True, kw_only=True)
class Image:
    """dist/image.json: what `build` made."""

    digest: Digest  # of the index
    inputs: Digest  # of everything that decided the build; equal inputs are not built again
    lock: Digest  # Lock.digest of the lock it was built from
    platforms: Mapping[Platform, BuiltPlatform]
    annotations: Mapping[str, str]  # of the index and of every image manifest
    rehearsed: bool  # True: made of stubs; never leaves this machine
    variant: Variant = Variant.IMAGE

    def write(self, dist: Path) -> None:
        """Write it as dist/image.json, in one step."""
        write_json(dist / IMAGE, self)

    @classmethod
    def read(cls, dist: Path) -> Self:
        """Read dist/image.json. Raises IntentError when nothing was built yet."""
        return _read(cls, dist / IMAGE, next_step="build first: nox -s build")

    def require_lock(self, digest: Digest) -> None:
        """Refuse to go on with another lock than the one it was built from. `digest`: Lock.digest. Raises LockStale."""
        if self.lock != digest:
            raise LockStale("the image was built from another lock than this one", next_step="nox -s build, then smoke")

    def require_layers_of(self, image: Image) -> None:
        """Refuse a variant that is not exactly the image's layers and one more: what booted with those counts for it.

        Raises BuildFailed.
        """
        for platform, built in self.platforms.items():
            below = image.platforms[platform].layers
            if self.variant is not Variant.IMAGE and (not built.layers or built.layers[:-1] != below):
                raise BuildFailed(
                    f"{platform} of the variant {self.variant} is not the image and one layer more",
                    expected=f"the {len(below)} layers of {image.platforms[platform].digest} and one",
                    found=f"{built.digest} with {len(built.layers)} layers",
                    next_step="nox -s build, which makes both at once",
                )


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of a tier."""

    name: str
    state: State
    seconds: float
    detail: str  # what was seen: a version, a time, the failure; why it did not run
    step: str = ""  # the part of its tier that it belongs to, where a tier has parts


@dataclass(frozen=True, kw_only=True)
class TierReport:
    """One tier on one platform."""

    tier: Tier
    state: State
    reason: str  # why it did not run, or why it failed; empty when it passed
    where: str  # what it ran on: nothing executed, native, qemu-user 7.2, …
    checks: tuple[Check, ...]

    @property
    def seconds(self) -> float:
        """The time of all its checks."""
        return sum(check.seconds for check in self.checks)

    @property
    def steps(self) -> Mapping[str, State]:
        """How each part of the tier ended; a part of which nothing ran did not run."""
        found: dict[str, State] = {}
        for check in self.checks:
            if check.step:
                worst = (State.FAILED, State.PASSED, State.NOT_RUN)
                found[check.step] = min(found.get(check.step, State.NOT_RUN), check.state, key=worst.index)
        return found


@dataclass(frozen=True, kw_only=True)
class _Report:
    """What a stage saw on one platform of an image: dist/<stage>/<architecture>.json."""

    stage: ClassVar[str]  # its name, and the folder's
    done: ClassVar[str]  # what it does to an image
    error: ClassVar[type[PipelineError]]  # raised for an image that it refused, or has not seen

    platform: Platform
    index: Digest  # of the image
    digest: Digest  # its manifest of this platform

    def write(self, dist: Path) -> None:
        """Write it below dist/, in one step."""
        write_json(dist / self.stage / f"{self.platform.architecture}.json", self)

    @classmethod
    def read(cls, dist: Path, platform: Platform) -> Self:
        """Read one platform's report. Raises IntentError when there is none yet."""
        path = dist / cls.stage / f"{platform.architecture}.json"
        return _read(cls, path, next_step=f"{cls.stage} it first: nox -s {cls.stage}")

    @classmethod
    def of(cls, image: Image, reports: Sequence[Self]) -> Iterator[tuple[Platform, Self]]:
        """Pair each platform of exactly this image with the report about it. Raises `error` for one without."""
        by_platform = {report.platform: report for report in reports}
        for platform, built in image.platforms.items():
            report = by_platform.get(platform)
            if report is None or report.index != image.digest or report.digest != built.digest:
                raise cls.error(
                    f"{platform} of this image was not {cls.done}",
                    expected=f"a report about {built.digest} in {image.digest}",
                    found="none" if report is None else f"a report about {report.digest} in {report.index}",
                    next_step=f"nox -s {cls.stage}",
                )
            yield platform, report


@dataclass(frozen=True, kw_only=True)
class SmokeReport(_Report):
    """What `smoke` saw on one platform."""

    stage, done, error = SMOKE, "smoked", SmokeFailed

    tiers: tuple[TierReport, ...]

    def with_earlier(self, dist: Path) -> Self:
        """With the tiers that an earlier run saw on the very same bytes, and this one was not asked for."""
        try:
            earlier = type(self).read(dist, self.platform)
        except IntentError:
            return self
        if (earlier.index, earlier.digest) != (self.index, self.digest):
            return self
        known = {report.tier: report for report in (*earlier.tiers, *self.tiers)}
        return replace(self, tiers=tuple(known[tier] for tier in Tier if tier in known))

    def state(self, tier: Tier) -> State:
        """How that tier ended; NOT_RUN when the report does not mention it."""
        return next((report.state for report in self.tiers if report.tier == tier), State.NOT_RUN)


def require_smoked(image: Image, reports: Sequence[SmokeReport]) -> None:
    """Refuse to go on unless every platform of exactly this image was smoked.

    `files` and `boot` must have passed on every platform, and nothing may have failed. Of a variant, whose other layers
    are the image's and booted with it, `boot` must have passed somewhere. Raises SmokeFailed with what is missing.
    """
    is_variant = image.variant is not Variant.IMAGE
    booted = any(report.state(Tier.BOOT) == State.PASSED for report in reports)
    needed = (Tier.FILES,) if is_variant and booted else (Tier.FILES, Tier.BOOT)
    expected = (
        "files, passed on every platform, and boot on one" if is_variant else "files and boot, passed on every platform"
    )
    for platform, report in SmokeReport.of(image, reports):
        if failed := [tier for tier in report.tiers if tier.state == State.FAILED]:
            raise SmokeFailed(
                f"{platform} failed tier {failed[0].tier}", found=failed[0].reason, next_step="nox -s smoke"
            )
        reasons = {tier.tier: tier.reason for tier in report.tiers}
        for tier in needed:
            if report.state(tier) != State.PASSED:
                raise SmokeFailed(
                    f"tier {tier} did not run on {platform}",
                    expected=expected,
                    found=reasons.get(tier, "it was not asked for"),
                    next_step="nox -s smoke: as root on Linux it boots non-native platforms on a virtual engine; "
                    "a native one is named with --engine",
                )


@dataclass(frozen=True, kw_only=True)
class ScanReport(_Report):
    """What a scanner found on one platform, checked against the list of what is allowed."""

    stage, done, error = SCAN, "scanned for vulnerabilities", VerificationFailed

    by: str  # the scanner and its version: grype 0.104.0
    database: datetime  # when its database of known vulnerabilities was made
    findings: int
    refused: tuple[str, ...]  # grave, with a fix, and not on the list
    allowed: tuple[str, ...]  # grave, and on the list
    unfixed: tuple[str, ...]  # grave, and nothing can be done about it yet


def require_scanned(image: Image, reports: Sequence[ScanReport]) -> None:
    """Refuse to go on unless every platform of exactly this image was scanned, lately, and nothing was refused.

    Raises VerificationFailed that names what is missing.
    """
    for platform, report in ScanReport.of(image, reports):
        if report.refused:
            raise VerificationFailed(
                f"{platform} has vulnerabilities that are fixed elsewhere",
                found="\n    ".join(report.refused),
                next_step="nox -s update, or .github/allowed-vulnerabilities.yaml; then nox -s scan",
            )
        if datetime.now(UTC) - report.database > OLDEST_DATABASE:
            raise VerificationFailed(
                f"{platform} was scanned with a database that is too old by now",
                expected=f"one younger than {OLDEST_DATABASE.days} days",
                found=f"made on {report.database:%Y-%m-%d}",
                next_step="nox -s scan",
            )


def require_loopback(names: Sequence[ImageName], *, rehearsed: bool) -> None:
    """Refuse to take a rehearsed image to where others could pull it. Raises RegistryError."""
    for name in names:
        if rehearsed and not name.is_loopback:
            raise RegistryError(
                "a rehearsed image is made of stubs and never leaves this machine",
                expected="a registry on 127.0.0.1 or localhost",
                found=str(name),
                next_step="build the real one: nox -s build, smoke, or all of it: nox -s release",
            )


@dataclass(frozen=True, kw_only=True)
class Release:
    """dist/release.json: how far one digest has come, in this order.

    Each stage takes only a digest that has the state before its own: push asks for the reports of smoke and scan, sign
    for `pushed`, tag for `signed`, verify for `tagged`.
    """

    digest: Digest
    smoked: tuple[str, ...] = ()  # platform and tier, with its state: what `push` went by
    scanned: tuple[str, ...] = ()  # platform and scanner: what `push` went by
    pushed: tuple[str, ...] = ()  # repositories that hold the digest
    signed: tuple[str, ...] = ()  # repositories that hold every signature and attestation of the digest
    tagged: tuple[str, ...] = ()  # full references, repository:tag
    verified: tuple[str, ...] = ()  # full references that were read back

    def having(self, **done: str) -> Self:
        """With one more entry in the named fields, each once."""
        states: dict[str, Any] = {
            name: tuple(dict.fromkeys((*getattr(self, name), entry))) for name, entry in done.items()
        }
        return replace(self, **states)

    def require(self, state: str, names: Sequence[ImageName]) -> None:
        """Refuse a digest that has not come as far as `pushed` or `signed` in every repository. Raises IntentError."""
        done = getattr(self, state)
        if missing := [name for name in names if str(name) not in done]:
            raise IntentError(
                f"{self.digest} is not {state} in {missing[0]}",
                expected=f"{', '.join(map(str, names))} in `{state}` of {RELEASE}",
                found=", ".join(done) or "none",
                next_step={"pushed": "nox -s push", "signed": "nox -s sign"}[state],
            )

    def write(self, dist: Path) -> None:
        """Write it as dist/release.json, in one step."""
        write_json(dist / RELEASE, self)

    @classmethod
    def read(cls, dist: Path, digest: Digest) -> Self:
        """The record of this digest; an empty one when there is none or it is about another digest."""
        try:
            data = json.loads((dist / RELEASE).read_text(encoding="utf-8"))
            # A state that an older record lacks was not reached; what is signed or scanned is found again by the stage.
            record: Self = _parse(cls, data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(digest=digest)
        return record if record.digest == digest else cls(digest=digest)


def write_json(path: Path, data: object) -> None:
    """Write records or plain values as JSON, sorted keys, in one step."""
    write_text(path, json.dumps(_plain(data), indent=2, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a whole file in one step, so that no reader ever sees half of it. Makes the folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, *, next_step: str) -> dict[str, Any]:
    """Read a JSON object. Raises IntentError with the next step when the file is missing or broken."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IntentError(f"{path} does not exist", next_step=next_step) from None
    except ValueError as error:
        raise IntentError(f"{path} is not JSON", found=str(error), next_step=next_step) from None
    if not isinstance(data, dict):
        raise IntentError(f"{path} does not hold a JSON object", next_step=next_step)
    return data


_T = TypeVar("_T")


def _read(kind: type[_T], path: Path, *, next_step: str) -> _T:
    """Read a record. Raises IntentError with the next step when the file is missing or is no such record."""
    data = read_json(path, next_step=next_step)
    try:
        return cast("_T", _parse(kind, data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise IntentError(f"{path} is not a record of this pipeline", found=found, next_step=next_step) from None


def _plain(value: object) -> object:
    if isinstance(value, Digest):
        return value.text
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _parse(kind: Any, value: Any) -> Any:
    """Make a field of that type of a JSON value; the inverse of `_plain`. Raises ValueError, TypeError and the like."""
    if kind is datetime:
        return datetime.fromisoformat(value)
    if get_origin(kind) is tuple:
        return tuple(_parse(get_args(kind)[0], item) for item in value)
    if get_origin(kind) is Mapping:
        of_key, of_item = get_args(kind)
        return {_parse(of_key, key): _parse(of_item, item) for key, item in value.items()}
    if kind is Digest or issubclass(kind, StrEnum):
        return kind(value)
    if isinstance(kind, type) and is_dataclass(kind):
        types = get_type_hints(kind)
        return kind(**{name: _parse(types[name], item) for name, item in value.items() if name in types})
    return value
