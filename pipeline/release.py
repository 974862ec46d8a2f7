"""The files in dist/ that pass from one stage to the next, and the rule that only smoked digests are published.

dist/image/         the built image as an OCI layout; the bytes that are smoked, pushed and verified
dist/image.json     Image: what was built, from which inputs
dist/smoke/*.json   SmokeReport: one for each platform
dist/release.json   Release: what happened to each digest, so that a rerun goes on where it stopped
dist/airgap/        the same files of the variant airgap
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pipeline.errors import BuildFailed, IntentError, SmokeFailed
from pipeline.oci import Digest
from pipeline.platforms import Platform

LAYOUT = "image"
IMAGE = "image.json"
SMOKE = "smoke"
RELEASE = "release.json"


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


@dataclass(frozen=True, kw_only=True)
class Image:
    """dist/image.json: what `build` made."""

    digest: Digest  # of the index
    inputs: Digest  # of everything that decided the build; equal inputs are not built again
    lock: Digest  # Lock.digest of the lock it was built from
    platforms: Mapping[Platform, BuiltPlatform]
    annotations: Mapping[str, str]  # of the index and of every image manifest
    rehearsed: bool  # True: made of stand-ins; never leaves this machine
    variant: Variant = Variant.IMAGE

    def write(self, dist: Path) -> None:
        """Write it as dist/image.json, in one step."""
        write_json(dist / IMAGE, self)

    @classmethod
    def read(cls, dist: Path) -> Self:
        """Read dist/image.json. Raises IntentError when nothing was built yet."""
        data = read_json(dist / IMAGE, next_step="build first: nox -s build")
        return cls(
            digest=Digest(data["digest"]),
            inputs=Digest(data["inputs"]),
            lock=Digest(data["lock"]),
            platforms={
                Platform(name): BuiltPlatform(
                    digest=Digest(entry["digest"]),
                    config=Digest(entry["config"]),
                    size=entry["size"],
                    layers=tuple(Digest(layer) for layer in entry.get("layers", ())),
                )
                for name, entry in data["platforms"].items()
            },
            annotations=data["annotations"],
            rehearsed=data["rehearsed"],
            variant=Variant(data.get("variant", Variant.IMAGE)),
        )

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
    where: str  # what it ran on: «nothing executed», «native», «qemu-user 7.2», …
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
class SmokeReport:
    """dist/smoke/<architecture>.json: what `smoke` saw on one platform."""

    platform: Platform
    index: Digest  # the image that was smoked
    digest: Digest  # its manifest of this platform
    tiers: tuple[TierReport, ...]

    def write(self, dist: Path) -> None:
        """Write it below dist/smoke/, in one step."""
        write_json(dist / SMOKE / f"{self.platform.architecture}.json", self)

    @classmethod
    def read(cls, dist: Path, platform: Platform) -> Self:
        """Read one platform's report. Raises IntentError when that platform was not smoked yet."""
        path = dist / SMOKE / f"{platform.architecture}.json"
        data = read_json(path, next_step="smoke it first: nox -s smoke")
        return cls(
            platform=Platform(data["platform"]),
            index=Digest(data["index"]),
            digest=Digest(data["digest"]),
            tiers=tuple(
                TierReport(
                    tier=Tier(tier["tier"]),
                    state=State(tier["state"]),
                    reason=tier["reason"],
                    where=tier["where"],
                    checks=tuple(Check(**{**check, "state": State(check["state"])}) for check in tier["checks"]),
                )
                for tier in data["tiers"]
            ),
        )

    def with_earlier(self, dist: Path) -> Self:
        """With the tiers that an earlier run saw on the very same bytes, and this one was not asked for."""
        try:
            earlier = type(self).read(dist, self.platform)
        except (IntentError, KeyError, ValueError, TypeError):
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
    are the image's and booted with it, `boot` must have passed somewhere. Raises SmokeFailed that says what is missing.
    """
    seen = {report.platform: report for report in reports}
    boots = {platform for platform, report in seen.items() if report.state(Tier.BOOT) == State.PASSED}
    alike = image.variant is not Variant.IMAGE and boots
    for platform, built in image.platforms.items():
        report = seen.get(platform)
        if report is None or report.index != image.digest or report.digest != built.digest:
            raise SmokeFailed(
                f"{platform} of this image was not smoked",
                expected=f"a report about {built.digest} in {image.digest}",
                found="none" if report is None else f"a report about {report.digest} in {report.index}",
                next_step="nox -s smoke",
            )
        failed = [tier for tier in report.tiers if tier.state == State.FAILED]
        if failed:
            raise SmokeFailed(
                f"{platform} failed tier {failed[0].tier}", found=failed[0].reason, next_step="nox -s smoke"
            )
        for tier in (Tier.FILES,) if alike else (Tier.FILES, Tier.BOOT):
            if report.state(tier) != State.PASSED:
                raise SmokeFailed(
                    f"tier {tier} did not run on {platform}",
                    expected="files and boot, passed on every platform"
                    if image.variant is Variant.IMAGE
                    else "files, passed on every platform, and boot on one",
                    found=next((one.reason for one in report.tiers if one.tier == tier), "it was not asked for"),
                    next_step="nox -s smoke: as root on Linux it boots foreign platforms on a virtual engine; "
                    "a native one is named with --engine",
                )


@dataclass(frozen=True, kw_only=True)
class Release:
    """dist/release.json: what happened to one digest in each repository."""

    digest: Digest
    pushed: tuple[str, ...] = ()  # repositories that hold the digest
    tagged: tuple[str, ...] = ()  # full references, repository:tag
    verified: tuple[str, ...] = ()  # full references that were read back
    signed: tuple[str, ...] = ()  # repositories that hold every signature and attestation of the digest

    def write(self, dist: Path) -> None:
        """Write it as dist/release.json, in one step."""
        write_json(dist / RELEASE, self)

    @classmethod
    def read(cls, dist: Path, digest: Digest) -> Self:
        """The record of this digest; an empty one when there is none or it is about another digest."""
        try:
            data = json.loads((dist / RELEASE).read_text(encoding="utf-8"))
            if data["digest"] != digest.text:
                return cls(digest=digest)
            return cls(
                digest=digest,
                pushed=tuple(data["pushed"]),
                tagged=tuple(data["tagged"]),
                verified=tuple(data["verified"]),
                signed=tuple(data.get("signed", ())),  # younger than the rest
            )
        except (OSError, ValueError, KeyError, TypeError):
            return cls(digest=digest)


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


def _plain(value: object) -> object:
    if isinstance(value, Digest):
        return value.text
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
