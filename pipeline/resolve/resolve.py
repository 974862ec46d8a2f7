"""Stage `resolve`: what versions.yaml means today, with every file proven to exist and every digest with its reason.

The same answers give the same bytes. Nothing is written here; a missing platform or an unexpected answer stops the
run, and a digest that changed under the same version is refused rather than taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx

from pipeline import components
from pipeline.components import COMPONENTS
from pipeline.core.cache import writing
from pipeline.core.errors import UpstreamError
from pipeline.core.log import Log, size
from pipeline.core.names import ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant
from pipeline.fetch.base import layers
from pipeline.inputs import compat, evidence
from pipeline.inputs.evidence import Evidence, Grade
from pipeline.inputs.lock import Artifact, Base, Lock
from pipeline.inputs.versions import Intent
from pipeline.oci.registry import Registry
from pipeline.resolve import channels, debian
from pipeline.resolve.origins import Origins
from pipeline.resolve.witnesses import Witnesses


def run(
    intent: Intent,
    previous: Lock | None,
    client: httpx.Client,
    registry_for: Callable[[ImageName], Registry],
    log: Log,
    cache: Path,
    *,
    token: str | None = None,
    now: datetime | None = None,
) -> Lock:
    """Ask the origins and return the lock that they give.

    `previous`: the lock so far; what it knows of an unchanged version is kept and held against upstream. `cache`:
    where apt's state, the base image's blobs and what had to be downloaded to be hashed are kept. `token`: for GitHub's
    API. Raises UpstreamError, Incompatible, DigestMismatch, VerificationFailed, IntentError.
    """
    now = now or datetime.now(UTC)
    today = now.date().isoformat()
    origins = Origins(intent, client, log, token=token)
    versions = channels.choose(origins, previous, log, now)
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
        base = pool.submit(_base, intent, registry_for)
        witnesses = Witnesses(origins=origins, cache=cache, log=log, transfers=transfers, today=today)
        files = list(pool.map(lambda one: witnesses.file(one[0], one[1], one[2], known.get(one)), wanted))
        chosen = _seen(base.result(), previous, today)
    log.say(
        f"{len(files)} files exist for {', '.join(intent.platforms)}; base {chosen.image} is {chosen.digest.short}…"
    )
    packages, guest = _packages(intent, chosen, registry_for, cache, log)
    made = Lock(
        intent=intent.checksum,
        date=previous.date if previous else "",
        base=chosen,
        versions=versions,
        artifacts=tuple(file for file in files if file.component != components.AIRGAP),
        airgap=tuple(file for file in files if file.component == components.AIRGAP),
        packages=_known(packages, previous.packages if previous else (), today),
        guest=_known(guest, previous.guest if previous else (), today),
    )
    if weak := made.weak(intent.policy):
        more = f"; so are {len(weak) - 1} others" if len(weak) > 1 else ""
        log.warn(f"push will refuse this lock: {weak[0]}{more}")
    # The image says the date, so a change of the guest or of a reason alone leaves it.
    if previous is not None and made.digest == previous.digest:
        return made
    return replace(made, date=today)


def diff(old: Lock | None, new: Lock) -> list[str]:
    """What a reviewer should know of the change, a line each; empty when nothing changed."""
    if old is None:
        return [f"a new lock: {', '.join(f'{name} {version}' for name, version in new.versions.items())}"]
    lines = [
        f"{name}: {old.versions.get(name, 'nothing')} → {version}"
        for name, version in new.versions.items()
        if old.versions.get(name) != version
    ]
    if old.base.digest != new.base.digest:
        lines.append(f"base image: {old.base.digest.short}… → {new.base.digest.short}…")
    kinds = (
        ("system images", old.airgap, new.airgap),
        ("package", old.packages, new.packages),
        ("guest", old.guest, new.guest),
    )
    for kind, older, newer in kinds:
        before = {(file.component, file.platform): file.version for file in older}
        after = {(file.component, file.platform): file.version for file in newer}
        for name, platform in sorted(before.keys() | after.keys()):
            first, last = before.get((name, platform)), after.get((name, platform))
            if first != last:
                lines.append(f"{kind} {name} ({platform.architecture}): {first or 'nothing'} → {last or 'nothing'}")
    digests = {(file.component, file.version, file.platform): file.digest for file in old.all_files}
    lines += [
        f"{file.component} {file.version} ({file.platform.architecture}): another digest"
        for file in new.all_files
        if digests.get((file.component, file.version, file.platform), file.digest) != file.digest
    ]
    return lines + _reasons(old, new)


def _reasons(old: Lock, new: Lock) -> list[str]:
    """What changed in why unchanged digests are believed."""
    lines = []
    grades = {(file.component, file.platform, file.digest): file.grade for file in old.all_files}
    for file in new.all_files:
        before = grades.get((file.component, file.platform, file.digest), file.grade)
        if before != file.grade:
            lines.append(f"{file.component} {file.version} ({file.platform.architecture}): {before} → {file.grade}")
    if old.base.digest == new.base.digest and old.base.grade != new.base.grade:
        lines.append(f"base image: {old.base.grade} → {new.base.grade}")
    known = {(one.grade, one.source): one.observed for reasons in _all(old) for one in reasons}
    seen = {(one.grade, one.source): one.observed for reasons in _all(new) for one in reasons}
    if more := sum(one not in known for one in seen):
        lines.append(f"evidence: {more} new reasons")
    if dated := sum(one in known and day != known[one] for one, day in seen.items()):
        lines.append(f"evidence: {dated} reasons have a day now")
    return lines


def _all(lock: Lock) -> list[tuple[Evidence, ...]]:
    return [lock.base.evidence, *(file.evidence for file in lock.all_files)]


def _seen(base: Base, previous: Lock | None, today: str) -> Base:
    """The base image with what the lock knows of the same digest."""
    same = previous is not None and (previous.base.image, previous.base.digest) == (base.image, base.digest)
    known = previous.base.evidence if previous is not None and same else ()
    return replace(base, evidence=evidence.merge(known, base.evidence, today))


def _known(files: Iterable[Artifact], before: Iterable[Artifact], today: str) -> tuple[Artifact, ...]:
    """Packages with what the lock knows of the same digests."""
    reasons = {(file.component, file.platform, file.digest): file.evidence for file in before}
    return tuple(
        replace(
            file,
            evidence=evidence.merge(
                reasons.get((file.component, file.platform, file.digest), ()), file.evidence, today
            ),
        )
        for file in files
    )


def _base(intent: Intent, registry_for: Callable[[ImageName], Registry]) -> Base:
    name, tag, _ = ImageName.parse(intent.base)
    found = registry_for(name).manifest(tag or "latest")
    if found is None:
        raise UpstreamError(f"the registry has no {intent.base}", next_step="correct `base` in versions.yaml")
    return Base(
        image=intent.base,
        digest=found.digest,
        evidence=(Evidence(grade=Grade.PUBLISHED, source=f"the tag {tag or 'latest'} in the registry"),),
    )


def _packages(
    intent: Intent, base: Base, registry_for: Callable[[ImageName], Registry], cache: Path, log: Log
) -> tuple[tuple[Artifact, ...], tuple[Artifact, ...]]:
    """Debian packages of image and guest, chosen by apt for each platform against the base image of that digest."""
    name, _, _ = ImageName.parse(base.image)
    registry = registry_for(name)
    archives: Mapping[str, str] = {archive: intent.upstream[archive] for archive in intent.suites}

    def one(platform: Platform) -> tuple[tuple[Artifact, ...], tuple[Artifact, ...]]:
        found = layers(base.digest, platform, registry, cache, log)
        system = debian.read_layers([layer.read_bytes() for layer in found])
        state = cache / "apt" / platform.architecture
        packages = debian.solve(intent, platform, system, state, archives)
        return packages, debian.guest(intent, platform, system, state, archives)

    with ThreadPoolExecutor(max_workers=2) as pool:
        chosen = list(pool.map(one, intent.platforms))
    for platform, (packages, guest) in zip(intent.platforms, chosen, strict=True):
        for what, found in ((f"for {platform}", packages), (f"to boot {platform} with", guest)):
            log.say(f"{len(found)} Debian packages {what}, {size(sum(package.size or 0 for package in found))}")
    return (
        tuple(package for packages, _ in chosen for package in packages),
        tuple(package for _, guest in chosen for package in guest),
    )
