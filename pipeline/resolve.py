"""Stage `resolve`: what versions.yaml means today, with every file proven to exist and every digest with its reason.

The same answers give the same bytes. Nothing is written here; a missing platform or an unexpected answer stops the
run, and a digest that changed under the same version is refused rather than taken over.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx

from pipeline import compat, debian, transport, upstream
from pipeline.base import layers
from pipeline.errors import DigestMismatch, UpstreamError
from pipeline.lock import Artifact, Base, Evidence, Lock
from pipeline.log import Log, size
from pipeline.oci import Digest, ImageName
from pipeline.platforms import Platform
from pipeline.registry import Registry
from pipeline.versions import COMPONENTS, Intent


def run(
    intent: Intent,
    previous: Lock | None,
    client: httpx.Client,
    registry_for: Callable[[ImageName], Registry],
    log: Log,
    cache: Path,
) -> Lock:
    """Ask the origins and return the lock that they give.

    `previous`: the lock so far; what it knows of an unchanged version is kept and held against upstream. `cache`:
    where apt's state and the base image's blobs are kept. Raises UpstreamError, Incompatible, DigestMismatch,
    IntentError.
    """
    versions = _versions(intent, client)
    log.say(", ".join(f"{name} {versions[name]}" for name in COMPONENTS))
    compat.check(versions)
    known = {(file.component, file.version, file.platform): file for file in previous.artifacts} if previous else {}
    wanted = [(name, platform) for name in COMPONENTS for platform in intent.platforms]
    with ThreadPoolExecutor(max_workers=8) as pool:
        base = pool.submit(_base, intent, registry_for)
        files = list(
            pool.map(
                lambda pair: _file(
                    intent,
                    pair[0],
                    versions[pair[0]],
                    pair[1],
                    known.get((pair[0], versions[pair[0]], pair[1])),
                    client,
                ),
                wanted,
            )
        )
        chosen = base.result()
    log.say(
        f"{len(files)} files exist for {', '.join(intent.platforms)}; base {chosen.image} is {chosen.digest.short}…"
    )
    packages, guest = _packages(intent, chosen, registry_for, cache, log)
    made = Lock(
        intent=intent.checksum,
        date=previous.date if previous else "",
        base=chosen,
        versions=versions,
        artifacts=tuple(files),
        packages=packages,
        guest=guest,
    )
    # The date is in every file of the image, so a change of the guest alone leaves it.
    if previous is not None and made.digest == previous.digest:
        return made
    return replace(made, date=datetime.now(UTC).date().isoformat())


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
    for kind, older, newer in (("package", old.packages, new.packages), ("guest", old.guest, new.guest)):
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
    return lines


def _versions(intent: Intent, client: httpx.Client) -> dict[str, str]:
    """Channels → exact versions."""
    asked = dict(intent.components)

    def text(origin: str, path: str, what: str) -> str:
        return transport.get(client, f"{intent.upstream[origin]}/{path}", what=what).text

    if asked["docker"].count(".") != 2:
        lists = [
            upstream.listed_docker(text("docker", upstream.listing_path(platform), "docker's list of archives"))
            for platform in intent.platforms
        ]
        common = [version for version in lists[0] if all(version in other for other in lists)]
        asked["docker"] = upstream.newest(common, asked["docker"], "docker for every platform")
    for name in ("buildx", "compose"):
        if asked[name].count(".") != 2:
            tags = upstream.tagged(text("github", upstream.refs_path(name), f"the tags of docker/{name}"))
            asked[name] = upstream.newest(tags, asked[name], name)
    if "+" not in asked["k3s"]:
        channels = text("k3s-channels", upstream.CHANNELS_PATH, "k3s's channels")
        asked["k3s"] = upstream.k3s_channel(channels, asked["k3s"])
    if asked["kubectl"].count(".") != 2:
        major, minor, _ = compat.number(asked["k3s"])
        wanted = f"{major}.{minor}" if asked["kubectl"] == "k3s" else asked["kubectl"].removeprefix("v")
        asked["kubectl"] = text("kubernetes", f"release/stable-{wanted}.txt", f"kubectl's channel {wanted}").strip()
    return asked


def _file(
    intent: Intent, component: str, version: str, platform: Platform, known: Artifact | None, client: httpx.Client
) -> Artifact:
    """One file: it exists, its checksum is listed, and both agree with what the lock knows already."""
    where = upstream.published(component, version, platform)
    base = intent.upstream[where.origin]
    url = f"{base}/{where.path}"
    what = f"{component} {version} for {platform}"
    length = transport.head(client, url, what=what).headers.get("Content-Length", "")
    measured = int(length) if length.isdigit() else None
    if where.checksums is not None:
        listed = transport.get(client, f"{base}/{where.checksums}", what=f"the checksum of {what}").text
        digest = upstream.checksum(listed, where.name)
        evidence, source = Evidence.PUBLISHED, f"{base}/{where.checksums}"
    elif known is not None and known.url == url:
        digest, evidence, source = known.digest, known.evidence, known.source
    else:
        digest, measured = _hash(client, url, what)
        evidence, source = Evidence.FIRST_USE, "computed from the first download; the vendor publishes no checksum"
    if known is not None and known.url == url and known.digest != digest:
        raise DigestMismatch(
            f"{what}: upstream publishes another digest than the one that is locked",
            expected=known.digest.text,
            found=digest.text,
            where=url,
            next_step="find out why before anything else; a release that was replaced on purpose is locked anew by "
            "removing its entry from versions.lock.yaml and running nox -s resolve",
        )
    return Artifact(
        component=component,
        version=version,
        platform=platform,
        origin=where.origin,
        path=where.path,
        url=url,
        digest=digest,
        size=measured if measured is not None else (known.size if known else None),
        evidence=evidence,
        source=source,
    )


def _hash(client: httpx.Client, url: str, what: str) -> tuple[Digest, int]:
    """Download to nowhere: digest and size in bytes."""
    state, count = hashlib.sha256(), 0
    try:
        with client.stream("GET", url) as response:
            response.raise_for_status()
            for chunk in response.iter_raw():
                state.update(chunk)
                count += len(chunk)
    except httpx.HTTPError as error:
        raise transport.unreachable(url, what, str(error)) from None
    return Digest(f"sha256:{state.hexdigest()}"), count


def _base(intent: Intent, registry_for: Callable[[ImageName], Registry]) -> Base:
    name, tag, _ = ImageName.parse(intent.base)
    found = registry_for(name).manifest(tag or "latest")
    if found is None:
        raise UpstreamError(f"the registry has no {intent.base}", next_step="correct `base` in versions.yaml")
    return Base(
        image=intent.base,
        digest=found.digest,
        evidence=Evidence.PUBLISHED,
        source=f"the tag {tag} in the registry",
    )


def _packages(
    intent: Intent, base: Base, registry_for: Callable[[ImageName], Registry], cache: Path, log: Log
) -> tuple[tuple[Artifact, ...], tuple[Artifact, ...]]:
    """Debian packages of image and guest, chosen by apt for each platform against the base image of that digest."""
    name, _, _ = ImageName.parse(base.image)
    registry = registry_for(name)
    archives: Mapping[str, str] = {archive: intent.upstream[archive] for archive in intent.suites}

    def one(platform: Platform) -> tuple[tuple[Artifact, ...], tuple[Artifact, ...]]:
        system = debian.read_layers(
            [
                gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
                for data in layers(base.digest, platform, registry, cache)
            ]
        )
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
