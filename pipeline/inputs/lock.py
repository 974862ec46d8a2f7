"""versions.lock.yaml: what a release is made of, each file with its digest and why that digest is believed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from pipeline.components import COMPONENTS
from pipeline.core.errors import LockStale, VerificationFailed
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant, write_text
from pipeline.inputs import evidence
from pipeline.inputs.evidence import Evidence, Grade
from pipeline.inputs.versions import Intent

RENEW = "nox -s resolve, then look at the lock's diff"

BUSYBOX = "busybox-static"
KERNEL = "linux-image-"  # how the names of Debian's kernel packages begin

# Every kernel below has all of cgroup v1. From here on the memory controller (CONFIG_MEMCG_V1), from 6.12 on cpuset too
# (CONFIG_CPUSETS_V1) can be left out, is so by default (torvalds/linux e93d4166b40a), and is so in Debian's.
_CGROUP_V1_ENDS = (6, 11)

# Every scalar as text; in C where PyYAML was built with libyaml, as its wheels are: a tenth of the time.
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One file of one platform."""

    component: str  # a key of COMPONENTS, AIRGAP, or a Debian package's name
    version: str
    platform: Platform
    origin: str  # one of versions.ORIGINS
    path: str  # below the origin's base URL, percent-encoded where needed
    url: str  # base URL of the upstream it was resolved from + "/" + path
    digest: Digest
    size: int | None  # bytes; None until the first fetch
    etag: str | None = None  # strong (RFC 9110 §8.8.3), as the upstream gave it when the digest was observed
    evidence: tuple[Evidence, ...]  # why the digest is believed, strongest first

    @property
    def grade(self) -> Grade:
        """How well the digest is believed."""
        return evidence.grade(self.evidence)


@dataclass(frozen=True, kw_only=True)
class Base:
    """The base image."""

    image: str  # as in the intent
    digest: Digest  # of the index
    evidence: tuple[Evidence, ...]

    @property
    def grade(self) -> Grade:
        """How well the digest is believed."""
        return evidence.grade(self.evidence)


@dataclass(frozen=True, kw_only=True)
class Lock:
    """One reading of versions.lock.yaml."""

    intent: Digest  # Intent.checksum of the versions.yaml it was made from
    date: str  # YYYY-MM-DD on which it last changed but for `guest`; the image says that it was made then
    base: Base
    versions: Mapping[str, str]  # component → version
    artifacts: tuple[Artifact, ...]  # of the components
    packages: tuple[Artifact, ...]  # Debian packages
    guest: tuple[Artifact, ...]  # Debian packages that smoke's virtual machines are made of; no part of the image
    airgap: tuple[Artifact, ...] = ()  # k3s's system images, for the variant of that name
    # Component → what is in its files → version, read from the bytes (inspect/embedded.py), so it changes no image.
    embedded: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def digest(self) -> Digest:
        """Of all that the image is made of: the text without `guest`, `embedded` and the reasons of the digests.

        Images carry it and stages compare it, so another kernel to test with or a better reason asks for no new image.
        """
        return Digest.of(_dump(_of_image(self, reasons=False)).encode())

    @property
    def version(self) -> str:
        """The version that the image states."""
        return f"{self.versions['k3s']}-docker-{self.versions['docker']}"

    @property
    def all_files(self) -> tuple[Artifact, ...]:
        """Everything that it names, of every platform, but the base image."""
        return (*self.artifacts, *self.airgap, *self.packages, *self.guest)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What can be built of it."""
        return (Variant.IMAGE, Variant.AIRGAP) if self.airgap else (Variant.IMAGE,)

    def files(self, platform: Platform) -> tuple[Artifact, ...]:
        """Everything that one platform's image is made of, components first; without `airgap`."""
        return tuple(a for a in (*self.artifacts, *self.packages) if a.platform == platform)

    @property
    def platforms(self) -> tuple[Platform, ...]:
        """The platforms that it has files for."""
        return tuple(sorted({a.platform for a in self.artifacts}))

    def weak(self, policy: Mapping[str, Grade]) -> list[str]:
        """What of the image has a provenance below what the policy asks, a sentence each. The guest is not asked."""
        held = [("base", f"base image {self.base.image}", self.base.grade)]
        held += [(file.component, _name(file), file.grade) for file in self.artifacts]
        held += [("k3s", _name(file), file.grade) for file in self.airgap]
        held += [("packages", f"package {_name(file)}", file.grade) for file in self.packages]
        return [
            f"{name} is {grade}, and the policy asks for {asked} or better"
            for key, name, grade in held
            if not grade.reaches(asked := evidence.least(policy, key))
        ]

    def require(self, policy: Mapping[str, Grade]) -> None:
        """Refuse a release of digests that the policy does not believe. Raises VerificationFailed."""
        if weak := self.weak(policy):
            more = f"; and {len(weak) - 8} more" if len(weak) > 8 else ""
            raise VerificationFailed(
                weak[0],
                found="; ".join(weak[:8]) + more if len(weak) > 1 else None,
                where="policy in versions.yaml, evidence in versions.lock.yaml",
                next_step="nox -s resolve, which asks for the reasons that it can get (docs/versions.md, «Evidence»)",
            )

    def kernel(self, platform: Platform, *, cgroup_v1: bool = False) -> Artifact:
        """The newest kernel to boot that platform with; `cgroup_v1`: that has v1's memory and cpuset controllers.

        Raises LockStale when there is none.
        """
        kernels = {
            tuple(map(int, re.findall(r"\d+", file.version))): file  # 6.12.118-1 → (6, 12, 118, 1)
            for file in self.guest
            if file.platform == platform and file.component.startswith(KERNEL)
        }
        fitting = [number for number in kernels if number < _CGROUP_V1_ENDS or not cgroup_v1]
        if not fitting:
            kind = " below 6.11, for cgroup v1," if cgroup_v1 else ""
            raise LockStale(f"the lock has no kernel{kind} to boot {platform} with", next_step=RENEW)
        return kernels[max(fitting)]

    def busybox(self, platform: Platform) -> Artifact:
        """The static busybox, the programs of that platform's virtual machine. Raises LockStale when there is none."""
        for file in self.guest:
            if file.platform == platform and file.component == BUSYBOX:
                return file
        raise LockStale(f"the lock has no {BUSYBOX} to boot {platform} with", next_step=RENEW)


_HEAD = """\
# Generated from versions.yaml; do not edit. Renew it: nox -s resolve
# Each file has its digest and why that digest is believed (`evidence`): docs/versions.md
"""


def read(path: Path, intent: Intent) -> Lock:
    """Read a lock and check it against the intent. Raises LockStale with the command that renews it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LockStale(f"{path} does not exist", next_step=RENEW) from None
    except UnicodeDecodeError as error:
        raise LockStale(f"{path} is not a lock that this version wrote", found=str(error), next_step=RENEW) from None
    lock = parse(text, str(path))
    if lock.intent != intent.checksum:
        raise LockStale(
            f"{path.name} was made from another versions.yaml",
            expected=f"a lock for intent {intent.checksum.short}…",
            found=f"one for {lock.intent.short}…",
            where=str(path),
            next_step=RENEW,
        )
    have = {(artifact.component, artifact.platform) for artifact in lock.artifacts}
    missing = [
        f"{name} for {platform}" for name in COMPONENTS for platform in intent.platforms if (name, platform) not in have
    ]
    if missing:
        raise LockStale(f"{path.name} lacks {', '.join(missing)}", where=str(path), next_step=RENEW)
    return replace(lock, airgap=_airgap(lock, intent))


def _airgap(lock: Lock, intent: Intent) -> tuple[Artifact, ...]:
    """The system images when they are asked for and all there; else none, and the variant cannot be built."""
    fitting = [file for file in lock.airgap if file.version == lock.versions["k3s"]]
    complete = {file.platform for file in fitting} >= set(intent.platforms)
    return tuple(fitting) if complete and Variant.AIRGAP in intent.variants else ()


def parse(text: str, where: str) -> Lock:
    """Read the text of a lock. Raises LockStale when it is not one that `render` wrote."""
    try:
        data: Any = yaml.load(text, Loader=_LOADER)
        return Lock(
            intent=Digest(data["intent"]),
            date=data["date"],
            base=Base(
                image=data["base"]["image"],
                digest=Digest(data["base"]["digest"]),
                evidence=_reasons(data["base"]),
            ),
            versions={name: entry["version"] for name, entry in data["components"].items()},
            artifacts=tuple(
                _artifact(name, entry["version"], Platform(platform), file)
                for name, entry in data["components"].items()
                for platform, file in entry["files"].items()
            ),
            packages=_packages(data["packages"]),
            airgap=_packages(data.get("airgap")),
            guest=_packages(data["guest"]),
            embedded={
                _text(name): {_text(key): _text(value) for key, value in inside.items()}
                for name, inside in (data.get("embedded") or {}).items()
            },
        )
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise LockStale(
            f"{where} is not a lock that this version wrote",
            found=f"{type(error).__name__}: {error}",
            next_step=RENEW,
        ) from None


def _packages(read: Mapping[str, Mapping[str, Mapping[str, str]]] | None) -> tuple[Artifact, ...]:
    """Debian packages by platform and name, as `_by_platform` writes them."""
    return tuple(
        _artifact(name, file["version"], Platform(platform), file)
        for platform, files in (read or {}).items()
        for name, file in files.items()
    )


def _artifact(name: str, version: str, platform: Platform, file: Mapping[str, Any]) -> Artifact:
    if "@" in urlsplit(file["url"]).netloc:
        raise ValueError(f"the URL of {name} holds credentials")
    return Artifact(
        component=name,
        version=_text(version),
        platform=platform,
        origin=_text(file["origin"]),
        path=_text(file["path"]),
        url=_text(file["url"]),
        digest=Digest.of_hex(file["sha256"]),
        size=int(file["size"]) if "size" in file else None,
        etag=_text(file["etag"]) if "etag" in file else None,
        evidence=_reasons(file),
    )


def _reasons(entry: Mapping[str, Any]) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(
            grade=Grade(reason["grade"]),
            source=_text(reason["source"]),
            observed=_text(reason["observed"]) if "observed" in reason else None,
        )
        for reason in entry["evidence"]
    )


def _text(value: Any) -> str:
    """A scalar; raises ValueError for a list or keys and values in its place."""
    if not isinstance(value, str):
        raise ValueError(f"text was expected, not {value!r:.80}")
    return value


def _name(file: Artifact) -> str:
    return f"{file.component} {file.version} for {file.platform}"


def render(lock: Lock) -> str:
    """The canonical text: the same lock gives the same bytes."""
    embedded = {name: dict(sorted(inside.items())) for name, inside in sorted(lock.embedded.items())}
    return _dump({**_of_image(lock), "guest": _by_platform(lock.guest), **({"embedded": embedded} if embedded else {})})


class _Dumper(yaml.SafeDumper):
    """Lists are indented below their key, as people write them and yamllint asks."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 (PyYAML's names)
        super().increase_indent(flow, False)


def _dump(document: Mapping[str, object]) -> str:
    return _HEAD + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=1000)


def _of_image(lock: Lock, *, reasons: bool = True) -> dict[str, object]:
    """The document without `guest` and `embedded`, no parts of the image; `reasons`: with why digests are believed."""
    components = {
        name: {
            "version": version,
            "files": {
                file.platform.value: _file(file, reasons=reasons) for file in lock.artifacts if file.component == name
            },
        }
        for name, version in sorted(lock.versions.items())
    }
    return {
        "intent": lock.intent.text,
        "date": lock.date,
        "base": {
            "image": lock.base.image,
            "digest": lock.base.digest.text,
            **_evidence(lock.base.evidence, reasons=reasons),
        },
        "components": components,
        **({"airgap": _by_platform(lock.airgap, reasons=reasons)} if lock.airgap else {}),
        "packages": _by_platform(lock.packages, reasons=reasons),
    }


def _by_platform(packages: Iterable[Artifact], *, reasons: bool = True) -> dict[str, dict[str, dict[str, object]]]:
    ordered = sorted(packages, key=lambda file: (file.platform, file.component))
    listed: dict[str, dict[str, dict[str, object]]] = {}
    for file in ordered:
        names = listed.setdefault(file.platform.value, {})
        names[file.component] = {"version": file.version, **_file(file, reasons=reasons)}
    return listed


def _file(file: Artifact, *, reasons: bool) -> dict[str, object]:
    return {
        "origin": file.origin,
        "path": file.path,
        "url": file.url,
        "sha256": file.digest.hex,
        **({} if file.size is None else {"size": file.size}),
        **({"etag": file.etag} if reasons and file.etag else {}),
        **_evidence(file.evidence, reasons=reasons),
    }


def _evidence(evidence: Iterable[Evidence], *, reasons: bool) -> dict[str, object]:
    if not reasons:
        return {}
    entries: list[dict[str, str]] = []
    for reason in evidence:
        observed = {"observed": reason.observed} if reason.observed else {}
        entries.append({"grade": reason.grade.value, "source": reason.source, **observed})
    return {"evidence": entries}


def write(path: Path, lock: Lock) -> None:
    """Write the canonical text in one step (temporary file, then rename)."""
    write_text(path, render(lock))
