"""Stage `resolve`: makes a lock from versions.yaml: every file exists, every digest has evidence.

Equal responses give equal bytes. A missing platform, an unexpected response, or another digest for a locked version
stops the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline import components
from pipeline.components import COMPONENTS
from pipeline.core.cache import writing
from pipeline.core.errors import UpstreamError
from pipeline.core.log import Log, size
from pipeline.core.names import ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant
from pipeline.fetch.base import fetch, layer_files
from pipeline.inputs import compat, evidence
from pipeline.inputs.evidence import Evidence, Grade
from pipeline.inputs.lock import Artifact, Base, Lock
from pipeline.inputs.versions import Intent
from pipeline.oci.registry import Registry
from pipeline.resolve import channels, debian
from pipeline.resolve.origins import Origins
from pipeline.resolve.witnesses import Witnesses


@dataclass(frozen=True, kw_only=True)
class System:
    """The base image, and the Debian packages that apt adds to it."""

    intent: Intent
    registry_for: Callable[[ImageName], Registry]
    cache: Path  # of apt's state and the base image's layers
    log: Log

    def base(self) -> Base:
        """Resolve the base image's tag. Raises UpstreamError, RegistryError."""
        name, tag, _ = ImageName.parse(self.intent.base)
        manifest = self.registry_for(name).manifest(tag or "latest")
        if manifest is None:
            raise UpstreamError(f"the registry has no {self.intent.base}", next_step="correct `base` in versions.yaml")
        return Base(
            image=self.intent.base,
            digest=manifest.digest,
            evidence=(Evidence(grade=Grade.PUBLISHED, source=f"the tag {tag or 'latest'} in the registry"),),
        )

    def packages(self, base: Base) -> tuple[tuple[Artifact, ...], tuple[Artifact, ...]]:
        """Return the packages of image and guest that apt chooses for that base image. Raises like debian.Solver."""
        platforms = self.intent.platforms
        with ThreadPoolExecutor(max_workers=2) as pool:
            chosen = list(pool.map(lambda platform: self._chosen(base, platform), platforms))
        for platform, (packages, guest) in zip(platforms, chosen, strict=True):
            for purpose, files in ((f"for {platform}", packages), (f"for a guest of {platform}", guest)):
                self.log.say(f"{len(files)} Debian packages {purpose}, {size(sum(file.size or 0 for file in files))}")
        return (
            tuple(package for packages, _ in chosen for package in packages),
            tuple(package for _, guest in chosen for package in guest),
        )

    def _chosen(self, base: Base, platform: Platform) -> tuple[tuple[Artifact, ...], tuple[Artifact, ...]]:
        name, _, _ = ImageName.parse(base.image)
        fetch(base, [platform], self.registry_for(name), self.cache, self.log)
        solver = debian.Solver(
            intent=self.intent,
            platform=platform,
            base=debian.read_layers(layer_files(base.digest, platform, self.cache)),
            folder=self.cache / "apt" / platform.architecture,
            upstream={archive: self.intent.upstream[archive] for archive in self.intent.suites},
        )
        return solver.packages(), solver.guest()


def run(origins: Origins, system: System, previous: Lock | None, cache: Path, *, now: datetime | None = None) -> Lock:
    """Return a new lock.

    `previous`: the current lock, whose evidence is kept and checked against upstream. `cache`: for files that must be
    hashed. Raises UpstreamError, Incompatible, DigestMismatch, VerificationFailed, IntentError.
    """
    now = now or datetime.now(UTC)
    today = now.date().isoformat()
    intent, log = origins.intent, origins.log
    versions = channels.choose(origins, previous, now)
    log.say(", ".join(f"{name} {versions[name]}" for name in COMPONENTS))
    compat.check(versions)
    before = (*previous.artifacts, *previous.airgap) if previous else ()
    known = {(file.component, file.version, file.platform): file for file in before}
    airgap = Variant.AIRGAP in intent.variants
    wanted = [
        (part, versions[name], platform)
        for name in COMPONENTS
        for part in components.parts(name, airgap=airgap)
        for platform in intent.platforms
    ]
    with writing(cache), log.transfers() as transfers, ThreadPoolExecutor(max_workers=8) as pool:
        resolved_base = pool.submit(system.base)
        witnesses = Witnesses(origins=origins, cache=cache, transfers=transfers, today=today)
        files = list(pool.map(lambda one: witnesses.file(one[0], one[1], one[2], known.get(one)), wanted))
        base = _with_known(resolved_base.result(), previous, today)
    log.say(f"{len(files)} files exist for {', '.join(intent.platforms)}; base {base.image} is {base.digest.short}…")
    packages, guest = system.packages(base)
    made = Lock(
        intent=intent.checksum,
        date=previous.date if previous else "",
        base=base,
        versions=versions,
        artifacts=tuple(file for file in files if file.component != components.AIRGAP),
        airgap=tuple(file for file in files if file.component == components.AIRGAP),
        packages=_all_with_known(packages, previous.packages if previous else (), today),
        guest=_all_with_known(guest, previous.guest if previous else (), today),
    )
    if weak := made.weak(intent.policy):
        more = f"; so are {len(weak) - 1} others" if len(weak) > 1 else ""
        log.warn(f"push will refuse this lock: {weak[0]}{more}")
    # The date is in the image, so it stays if only guest or evidence changed.
    if previous is not None and made.digest == previous.digest:
        return made
    return replace(made, date=today)


def _with_known(base: Base, previous: Lock | None, today: str) -> Base:
    """Return the base image with the lock's evidence for that digest."""
    same = previous is not None and (previous.base.image, previous.base.digest) == (base.image, base.digest)
    known = previous.base.evidence if previous is not None and same else ()
    return replace(base, evidence=evidence.merge(known, base.evidence, today))


def _all_with_known(files: Sequence[Artifact], before: Iterable[Artifact], today: str) -> tuple[Artifact, ...]:
    """Return packages with the lock's evidence for their digests."""
    known = {(file.component, file.platform, file.digest): file.evidence for file in before}
    reasons = [known.get((file.component, file.platform, file.digest), ()) for file in files]
    return tuple(
        replace(file, evidence=evidence.merge(earlier, file.evidence, today))
        for file, earlier in zip(files, reasons, strict=True)
    )
