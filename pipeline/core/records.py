"""The files in dist/ that pass from one stage to the next, and the stages that a digest must have passed.

dist/image/         the built image as an OCI layout; the bytes that are smoked, pushed and verified
dist/image.json     Image: what was built, from which inputs
dist/smoke/*.json   SmokeReport: one for each platform
dist/scan/*.json    ScanReport: one for each platform
dist/release.json   Release: the stages that each digest has passed, so that a rerun resumes
dist/airgap/        the same files of the variant airgap
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from types import UnionType
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
    """An image of a release: the Dockerfile's target of that name."""

    IMAGE = "image"
    AIRGAP = "airgap"  # the image and one layer more: k3s's system images

    def below(self, dist: Path) -> Path:
        """Return the folder of its files."""
        return dist if self is Variant.IMAGE else dist / self.value

    @property
    def suffix(self) -> str:
        """The end of its tags."""
        return "" if self is Variant.IMAGE else f"-{self.value}"


class Tier(StrEnum):
    """How deep a check goes; docs/smoke.md has the table."""

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
        """Summarize an image manifest with its digest."""
        layers = manifest["layers"]
        return cls(
            digest=digest,
            config=Digest(manifest["config"]["digest"]),
            size=sum(layer["size"] for layer in layers),
            layers=tuple(Digest(layer["digest"]) for layer in layers),
        )


@dataclass(frozen=True, kw_only=True)
class Image:
    """dist/image.json: the result of `build`."""

    digest: Digest  # of the index
    inputs: Digest  # of everything that decided the build; equal inputs are not built again
    lock: Digest  # Lock.digest of the lock it was built from
    platforms: Mapping[Platform, BuiltPlatform]
    annotations: Mapping[str, str]  # of the index and of every image manifest
    rehearsed: bool  # True: contains stubs; never leaves this machine
    variant: Variant = Variant.IMAGE

    def write(self, dist: Path) -> None:
        """Write dist/image.json atomically."""
        write_json(dist / IMAGE, self)

    @classmethod
    def read(cls, dist: Path) -> Self:
        """Read dist/image.json. Raises IntentError if nothing was built yet."""
        return _read(cls, dist / IMAGE, next_step="build first: nox -s build")

    def require_lock(self, digest: Digest) -> None:
        """Raise LockStale unless it was built from the lock with this Lock.digest."""
        if self.lock != digest:
            raise LockStale("the image was built from another lock than this one", next_step="nox -s build, then smoke")

    def require_layers_of(self, image: Image) -> None:
        """Raise BuildFailed for a variant that is not the image's layers, whose boot counts for it, and one more."""
        for platform, built in self.platforms.items():
            below = image.platforms[platform].layers
            if self.variant is not Variant.IMAGE and (not built.layers or built.layers[:-1] != below):
                raise BuildFailed(
                    f"{platform} of the variant {self.variant} is not the image and one layer more",
                    expected=f"the {len(below)} layers of {image.platforms[platform].digest} and one",
                    found=f"{built.digest} with {len(built.layers)} layers",
                    next_step="nox -s build, which builds both",
                )


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of a tier."""

    name: str
    state: State
    seconds: float
    detail: str  # the observation: a version, a time, the failure; why it did not run
    step: str = ""  # the part of its tier, where a tier has parts


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
        """The sum of its checks' times."""
        return sum(check.seconds for check in self.checks)

    @property
    def steps(self) -> Mapping[str, State]:
        """The worst state of each part of the tier; NOT_RUN for a part of which nothing ran."""
        states: dict[str, State] = {}
        for check in self.checks:
            if check.step:
                worst = (State.FAILED, State.PASSED, State.NOT_RUN)
                states[check.step] = min(states.get(check.step, State.NOT_RUN), check.state, key=worst.index)
        return states


@dataclass(frozen=True, kw_only=True)
class _Report:
    """A stage's result for one platform of an image: dist/<stage>/<architecture>.json."""

    stage: ClassVar[str]  # its name, and the name of its folder
    done: ClassVar[str]  # what it did to an image, for an error message
    error: ClassVar[type[PipelineError]]  # raised for an image that it refused, or that it did not process

    platform: Platform
    index: Digest  # of the image
    digest: Digest  # its manifest of this platform

    def write(self, dist: Path) -> None:
        """Write it below dist/ atomically."""
        write_json(dist / self.stage / f"{self.platform.architecture}.json", self)

    @classmethod
    def read(cls, dist: Path, platform: Platform) -> Self:
        """Read one platform's report. Raises IntentError if it does not exist yet."""
        path = dist / cls.stage / f"{platform.architecture}.json"
        return _read(cls, path, next_step=f"{cls.stage} it first: nox -s {cls.stage}")

    @classmethod
    def read_all(cls, dist: Path, image: Image) -> list[Self]:
        """Read the report of each platform of an image. Raises IntentError like `read`."""
        return [cls.read(dist, platform) for platform in image.platforms]

    @classmethod
    def of(cls, image: Image, reports: Sequence[Self]) -> Iterator[tuple[Platform, Self]]:
        """Yield each platform of exactly this image with its report. Raises `error` for a platform without a report."""
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
    """The result of `smoke` on one platform."""

    stage, done, error = SMOKE, "smoked", SmokeFailed

    tiers: tuple[TierReport, ...]

    def with_earlier(self, dist: Path) -> Self:
        """Return it with the tiers of an earlier run on the same bytes that this run did not include."""
        try:
            earlier = type(self).read(dist, self.platform)
        except IntentError:
            return self
        if (earlier.index, earlier.digest) != (self.index, self.digest):
            return self
        known = {report.tier: report for report in (*earlier.tiers, *self.tiers)}
        return replace(self, tiers=tuple(known[tier] for tier in Tier if tier in known))

    def state(self, tier: Tier) -> State:
        """Return the state of a tier; NOT_RUN if the report does not mention it."""
        return next((report.state for report in self.tiers if report.tier == tier), State.NOT_RUN)


def require_smoked(image: Image, reports: Sequence[SmokeReport]) -> None:
    """Raise SmokeFailed unless every platform of exactly this image was smoked.

    `files` and `boot` must have passed on every platform, and no tier may have failed. For a variant, whose other
    layers booted with the image, `boot` must have passed on one platform.
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
    """The findings of a scanner on one platform, checked against the list of allowed ones."""

    stage, done, error = SCAN, "scanned for vulnerabilities", VerificationFailed

    by: str  # the scanner and its version: grype 0.104.0
    database: datetime  # the build time of its database of known vulnerabilities
    findings: int
    refused: tuple[str, ...]  # severe, with a fix, and not on the list
    allowed: tuple[str, ...]  # severe, and on the list
    unfixed: tuple[str, ...]  # severe, without a fix, and not on the list


def require_scanned(image: Image, reports: Sequence[ScanReport]) -> None:
    """Raise VerificationFailed unless every platform of exactly this image was scanned lately, and nothing refused."""
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
    """Raise RegistryError for a rehearsed image whose repository is not on this machine."""
    for name in names:
        if rehearsed and not name.is_loopback:
            raise RegistryError(
                "a rehearsed image contains stubs and never leaves this machine",
                expected="a registry on 127.0.0.1 or localhost",
                found=str(name),
                next_step="build the real one: nox -s build, smoke, or all of it: nox -s release",
            )


@dataclass(frozen=True, kw_only=True)
class Release:
    """dist/release.json: the stages that one digest has passed, in this order.

    Each stage takes only a digest that passed the stage before: push requires the reports of smoke and scan, sign
    `pushed`, tag `signed`, verify `tagged`.
    """

    digest: Digest
    smoked: tuple[str, ...] = ()  # platform and tier, with its state, when it was pushed
    scanned: tuple[str, ...] = ()  # platform and scanner, when it was pushed
    pushed: tuple[str, ...] = ()  # repositories that hold the digest
    signed: tuple[str, ...] = ()  # repositories that hold every signature and attestation of the digest
    tagged: tuple[str, ...] = ()  # full references, repository:tag
    verified: tuple[str, ...] = ()  # full references that were read back

    def having(self, **done: str) -> Self:
        """Return it with one more entry in each named field, without duplicates."""
        states: dict[str, Any] = {
            name: tuple(dict.fromkeys((*getattr(self, name), entry))) for name, entry in done.items()
        }
        return replace(self, **states)

    def require(self, state: str, names: Sequence[ImageName]) -> None:
        """Raise IntentError unless the digest is in that state, `pushed` or `signed`, in every repository."""
        done = getattr(self, state)
        if missing := [name for name in names if str(name) not in done]:
            raise IntentError(
                f"{self.digest} is not {state} in {missing[0]}",
                expected=f"{', '.join(map(str, names))} in `{state}` of {RELEASE}",
                found=", ".join(done) or "none",
                next_step={"pushed": "nox -s push", "signed": "nox -s sign"}[state],
            )

    def write(self, dist: Path) -> None:
        """Write dist/release.json atomically."""
        write_json(dist / RELEASE, self)

    @classmethod
    def read(cls, dist: Path, digest: Digest) -> Self:
        """Return the record of this digest; an empty one if it is missing or about another digest."""
        try:
            data = json.loads((dist / RELEASE).read_text(encoding="utf-8"))
            # A field that an older record lacks is empty: its stage runs again, and finds what it did before.
            record: Self = parsed(cls, data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(digest=digest)
        return record if record.digest == digest else cls(digest=digest)


def write_json(path: Path, data: object) -> None:
    """Write records or plain values as JSON with sorted keys, atomically."""
    write_text(path, json.dumps(plain(data), indent=2, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically, so that no reader sees a part of it. Creates its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, *, next_step: str) -> dict[str, Any]:
    """Read a JSON object. Raises IntentError with the next step if the file is missing or broken."""
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
    """Read a record. Raises IntentError with the next step if the file is missing or not such a record."""
    data = read_json(path, next_step=next_step)
    try:
        return cast("_T", parsed(kind, data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise IntentError(f"{path} is not a record of this pipeline", found=reason, next_step=next_step) from None


def plain(value: object) -> Any:
    """Convert records to what JSON and YAML can write; fields that are None are left out."""
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Digest):
        return value.text
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        items = {field.name: getattr(value, field.name) for field in fields(value)}
        return {name: plain(item) for name, item in items.items() if item is not None}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def parsed(kind: Any, value: Any) -> Any:
    """Convert to that type, the inverse of `plain`; numbers can be text. Raises ValueError, TypeError and the like."""
    if kind is datetime:
        return datetime.fromisoformat(value)
    if get_origin(kind) is UnionType:  # with None, which is never written
        return parsed(get_args(kind)[0], value)
    if get_origin(kind) is tuple:
        return tuple(parsed(get_args(kind)[0], item) for item in value)
    if get_origin(kind) is Mapping:
        of_key, of_item = get_args(kind)
        return {parsed(of_key, key): parsed(of_item, item) for key, item in value.items()}
    if kind is str and not isinstance(value, str):
        raise ValueError(f"expected text, found {value!r:.80}")
    if kind is int or kind is Digest or issubclass(kind, StrEnum):
        return kind(value)
    if isinstance(kind, type) and is_dataclass(kind):
        types = _types(kind)
        return kind(**{name: parsed(types[name], item) for name, item in value.items() if name in types})
    return value


_types = functools.cache(get_type_hints)  # a lock has a thousand records of two types
