"""versions.lock.yaml: every file of a release, with its digest and the evidence for it."""

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
from pipeline.core.records import Variant, parsed, plain, write_text
from pipeline.inputs import evidence
from pipeline.inputs.evidence import Evidence, Grade
from pipeline.inputs.versions import Intent

RENEW = "nox -s resolve, then look at the lock's diff"

BUSYBOX = "busybox-static"
KERNEL = "linux-image-"  # how the names of Debian's kernel packages begin

# Older kernels have all of cgroup v1. Since 6.11 the memory controller is optional (CONFIG_MEMCG_V1), since 6.12 cpuset
# (CONFIG_CPUSETS_V1); off by default (torvalds/linux e93d4166b40a) and in Debian.
_CGROUP_V1_ENDS = (6, 11)

# Every scalar as text. The loader in C, which PyYAML's wheels have, takes a tenth of the time.
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One file of one platform."""

    component: str  # a key of COMPONENTS, AIRGAP, or a Debian package's name
    version: str
    platform: Platform
    origin: str  # one of versions.ORIGINS
    path: str  # below the origin's base URL, percent-encoded where needed
    url: str  # base URL of the upstream + "/" + path
    digest: Digest
    size: int | None = None  # bytes; None until the first fetch
    etag: str | None = None  # strong (RFC 9110 §8.8.3), of the upstream when the digest was observed
    evidence: tuple[Evidence, ...]  # strongest first

    @property
    def grade(self) -> Grade:
        """The strength of its evidence."""
        return evidence.grade(self.evidence)


@dataclass(frozen=True, kw_only=True)
class Base:
    """The base image."""

    image: str  # as in versions.yaml
    digest: Digest  # of the index
    evidence: tuple[Evidence, ...]

    @property
    def grade(self) -> Grade:
        """The strength of its evidence."""
        return evidence.grade(self.evidence)


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The content of versions.lock.yaml."""

    intent: Digest  # Intent.checksum of its versions.yaml
    date: str  # YYYY-MM-DD of its last change, without `guest`; the creation date of the image
    base: Base
    versions: Mapping[str, str]  # component → version
    artifacts: tuple[Artifact, ...]  # of the components
    packages: tuple[Artifact, ...]  # Debian packages
    guest: tuple[Artifact, ...]  # Debian packages of smoke's virtual machines, not of the image
    airgap: tuple[Artifact, ...] = ()  # k3s's system images, for the variant airgap
    # Component → program or library in its files → version (inspect/embedded.py).
    embedded: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def digest(self) -> Digest:
        """The digest of the lock without `guest`, `embedded`, evidence and ETags: of what decides the image.

        Images state it and stages compare it, so another kernel for tests or better evidence needs no new image.
        """
        return Digest.of(_dump(_without_evidence(_of_image(self))).encode())

    @property
    def version(self) -> str:
        """The version that the image states."""
        return f"{self.versions['k3s']}-docker-{self.versions['docker']}"

    @property
    def all_files(self) -> tuple[Artifact, ...]:
        """All files of every platform, without the base image."""
        return (*self.artifacts, *self.airgap, *self.packages, *self.guest)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants that can be built."""
        return (Variant.IMAGE, Variant.AIRGAP) if self.airgap else (Variant.IMAGE,)

    def files(self, platform: Platform) -> tuple[Artifact, ...]:
        """Return the files of one platform's image, components first; without `airgap`."""
        return tuple(a for a in (*self.artifacts, *self.packages) if a.platform == platform)

    @property
    def platforms(self) -> tuple[Platform, ...]:
        """The platforms of its files."""
        return tuple(sorted({a.platform for a in self.artifacts}))

    def weak(self, policy: Mapping[str, Grade]) -> list[str]:
        """Return a line for each file of the image whose grade is below the policy."""
        graded = [("base", f"base image {self.base.image}", self.base.grade)]
        graded += [(file.component, _name(file), file.grade) for file in self.artifacts]
        graded += [("k3s", _name(file), file.grade) for file in self.airgap]
        graded += [("packages", f"package {_name(file)}", file.grade) for file in self.packages]
        return [
            f"{name} is {grade}, and the policy asks for {asked} or better"
            for key, name, grade in graded
            if not grade.reaches(asked := evidence.least(policy, key))
        ]

    def require(self, policy: Mapping[str, Grade]) -> None:
        """Raise VerificationFailed if a grade is below the policy."""
        if weak := self.weak(policy):
            more = f"; and {len(weak) - 8} more" if len(weak) > 8 else ""
            raise VerificationFailed(
                weak[0],
                found="; ".join(weak[:8]) + more if len(weak) > 1 else None,
                where="policy in versions.yaml, evidence in versions.lock.yaml",
                next_step="nox -s resolve, which collects evidence (docs/versions.md, Evidence)",
            )

    def kernel(self, platform: Platform, *, cgroup_v1: bool = False) -> Artifact:
        """Return the newest kernel for a platform; `cgroup_v1`: with the memory and cpuset controllers of v1.

        Raises LockStale if there is none.
        """
        kernels = {
            tuple(map(int, re.findall(r"\d+", file.version))): file  # 6.12.118-1 → (6, 12, 118, 1)
            for file in self.guest
            if file.platform == platform and file.component.startswith(KERNEL)
        }
        fitting = [number for number in kernels if number < _CGROUP_V1_ENDS or not cgroup_v1]
        if not fitting:
            kind = " below 6.11 (cgroup v1)" if cgroup_v1 else ""
            raise LockStale(f"the lock has no kernel{kind} for {platform}", next_step=RENEW)
        return kernels[max(fitting)]

    def busybox(self, platform: Platform) -> Artifact:
        """Return the static busybox for a platform's virtual machine. Raises LockStale if there is none."""
        for file in self.guest:
            if file.platform == platform and file.component == BUSYBOX:
                return file
        raise LockStale(f"the lock has no {BUSYBOX} for {platform}", next_step=RENEW)


_HEAD = """\
# Generated from versions.yaml; do not edit. Renew it: nox -s resolve
# Each file has its digest and why that digest is believed (`evidence`): docs/versions.md
"""


def read(path: Path, intent: Intent) -> Lock:
    """Read a lock and compare it with versions.yaml. Raises LockStale."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LockStale(f"{path} does not exist", next_step=RENEW) from None
    except UnicodeDecodeError as error:
        raise LockStale(f"{path} is not a valid lock of this version", found=str(error), next_step=RENEW) from None
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
    """Return the system images if the variant is requested and they are complete; else none."""
    fitting = [file for file in lock.airgap if file.version == lock.versions["k3s"]]
    complete = {file.platform for file in fitting} >= set(intent.platforms)
    return tuple(fitting) if complete and Variant.AIRGAP in intent.variants else ()


def parse(text: str, where: str) -> Lock:
    """Parse a lock. Raises LockStale for anything that `render` does not write."""
    try:
        data: Any = yaml.load(text, Loader=_LOADER)
        return Lock(
            intent=Digest(data["intent"]),
            date=data["date"],
            base=parsed(Base, data["base"]),
            versions={name: entry["version"] for name, entry in data["components"].items()},
            artifacts=tuple(
                _artifact(name, platform, {**file, "version": entry["version"]})
                for name, entry in data["components"].items()
                for platform, file in entry["files"].items()
            ),
            packages=_packages(data["packages"]),
            airgap=_packages(data.get("airgap")),
            guest=_packages(data["guest"]),
            embedded=parsed(Mapping[str, Mapping[str, str]], data.get("embedded") or {}),
        )
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise LockStale(
            f"{where} is not a valid lock of this version",
            found=f"{type(error).__name__}: {error}",
            next_step=RENEW,
        ) from None


def _packages(by_platform: Mapping[str, Mapping[str, Mapping[str, str]]] | None) -> tuple[Artifact, ...]:
    return tuple(
        _artifact(name, platform, file)
        for platform, files in (by_platform or {}).items()
        for name, file in files.items()
    )


def _artifact(name: str, platform: str, entry: Mapping[str, Any]) -> Artifact:
    if "@" in urlsplit(entry["url"]).netloc:
        raise ValueError(f"the URL of {name} contains credentials")
    digest = Digest.of_hex(entry["sha256"]).text
    file: Artifact = parsed(Artifact, {**entry, "component": name, "platform": platform, "digest": digest})
    return file


def _name(file: Artifact) -> str:
    return f"{file.component} {file.version} for {file.platform}"


def render(lock: Lock) -> str:
    """Return the canonical text: equal locks give equal bytes."""
    embedded = {name: dict(sorted(inside.items())) for name, inside in sorted(lock.embedded.items())}
    return _dump({**_of_image(lock), "guest": _by_platform(lock.guest), **({"embedded": embedded} if embedded else {})})


class _Dumper(yaml.SafeDumper):
    """Indents lists below their key, as yamllint requires."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 (PyYAML's names)
        super().increase_indent(flow, False)


def _dump(document: Mapping[str, object]) -> str:
    return _HEAD + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=1000)


def _of_image(lock: Lock) -> dict[str, object]:
    """Return the document without `guest` and `embedded`, which are not part of the image."""
    components = {
        name: {
            "version": version,
            "files": {file.platform.value: _file(file) for file in lock.artifacts if file.component == name},
        }
        for name, version in sorted(lock.versions.items())
    }
    return {
        "intent": lock.intent.text,
        "date": lock.date,
        "base": plain(lock.base),
        "components": components,
        **({"airgap": _by_platform(lock.airgap)} if lock.airgap else {}),
        "packages": _by_platform(lock.packages),
    }


def _by_platform(packages: Iterable[Artifact]) -> dict[str, dict[str, dict[str, object]]]:
    result: dict[str, dict[str, dict[str, object]]] = {}
    for file in sorted(packages, key=lambda file: (file.platform, file.component)):
        result.setdefault(file.platform.value, {})[file.component] = {"version": file.version, **_file(file)}
    return result


def _file(file: Artifact) -> dict[str, object]:
    entry = {**plain(file), "sha256": file.digest.hex}
    keys = ("origin", "path", "url", "sha256", "size", "etag", "evidence")
    return {key: entry[key] for key in keys if key in entry}


def _without_evidence(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    # A package can have any name: its entry is a mapping, which evidence and ETags are not.
    return {
        key: _without_evidence(entry)
        for key, entry in value.items()
        if isinstance(entry, dict) or key not in ("evidence", "etag")
    }


def write(path: Path, lock: Lock) -> None:
    """Write the canonical text atomically."""
    write_text(path, render(lock))
