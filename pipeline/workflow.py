"""One release as a row of stages, each reading the file that the one before it wrote.

`__main__` calls these with the repository's own files, the rehearsal with files, origin, registry and engine of its
own: a rehearsal and a release run the same code.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx

from pipeline import sbom, smoke
from pipeline.build import build, reproduce
from pipeline.core.errors import LockStale
from pipeline.core.log import Log, size
from pipeline.core.names import ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import IMAGE, Image, Release, ScanReport, SmokeReport, Tier, Variant, require_smoked
from pipeline.engine import emulation
from pipeline.engine.engine import Engine
from pipeline.fetch import base, fetch, mirrors, vendor
from pipeline.fetch.fetch import Fetched
from pipeline.http import transport
from pipeline.http.download import Downloader
from pipeline.inputs import changes, compat, lock, versions
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent
from pipeline.inspect import embedded
from pipeline.oci import github_packages
from pipeline.oci.registry import Credentials, Registry
from pipeline.publish import notes, published, pull, push, retention, rollback, scan, sign, tag, verify
from pipeline.resolve import resolve
from pipeline.signing import bundle, signature
from pipeline.signing.bundle import Trust
from pipeline.signing.signer import KeySigner, keyless


def docker_config() -> Path:
    """Where docker keeps credentials: DOCKER_CONFIG, else ~/.docker."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run reads and writes, and what it talks through."""

    root: Path  # the repository: Dockerfile and rootfs/
    intent_path: Path
    lock_path: Path
    dist: Path
    cache: Path
    log: Log
    client: httpx.Client = field(default_factory=transport.make_client)
    credentials: Callable[[str], Credentials | None] = lambda registry: Credentials.from_docker_config(
        registry, docker_config()
    )
    rehearsed: bool = False
    token: str | None = field(
        default_factory=lambda: os.environ.get("GITHUB_TOKEN") or os.environ.get("GH_TOKEN"), repr=False
    )

    @property
    def intent(self) -> Intent:
        """versions.yaml. Raises IntentError."""
        return versions.read(self.intent_path)

    @property
    def lock(self) -> Lock:
        """The lock, held against versions.yaml. Raises LockStale."""
        return lock.read(self.lock_path, self.intent)

    def registry(self, name: ImageName) -> Registry:
        """The registry that holds that repository, with the user's credentials if there are any."""
        return Registry(self.client, name, self.credentials(name.registry))

    def resolve(self, *, check: bool) -> bool:
        """Ask the origins what versions.yaml means today and write the lock; `check` only tells. True: changed."""
        with self.log.step("resolve"):
            previous = self._previous()
            made = self._resolved(previous)
            self._warn(made)
            difference = resolve.diff(previous, made)
            for line in difference:
                self.log.say(line)
            if self._is_written(made):
                self.log.say("nothing changed: upstream gives the same lock")
                return False
            if not check:
                lock.write(self.lock_path, made)
                self.log.say(f"{self.lock_path.name} written")
            return True

    def update(self) -> str:
        """Resolve, fetch, read what is in the files, write the lock; returns what changed as Markdown.

        The lock is written last, so a run that fails leaves it as it was.
        """
        with self.log.step("update"):
            previous = self._previous()
            with self.log.step("resolve"):
                made = self._resolved(previous)
            with self.log.step("fetch"):
                fetched = self._bring(made)
            with self.log.step("what is in the files"):
                inside = embedded.of_lock(made, self.cache, self.log)
            made = changes.complete(made, fetched.sizes, inside, datetime.now(UTC).date())
            said = self._warn(made)
            if self._is_written(made):
                self.log.say("nothing changed: upstream gives the same lock")
                return changes.NOTHING
            lock.write(self.lock_path, made)
            self.log.say(f"{self.lock_path.name} written")
            return changes.markdown(previous, made, said, made.weak(self.intent.policy))

    def _resolved(self, previous: Lock | None) -> Lock:
        """What the origins give; what is known to be inside of unchanged files is kept."""
        made = resolve.run(self.intent, previous, self.client, self.registry, self.log, self.cache, token=self.token)
        return replace(made, embedded=embedded.kept(previous, made))

    def _is_written(self, made: Lock) -> bool:
        """Whether the lock's file is that lock already, byte by byte."""
        return self.lock_path.exists() and lock.render(made) == self.lock_path.read_text(encoding="utf-8")

    def _warn(self, made: Lock) -> list[str]:
        """Tell what compat.py has to say; returns the sentences. Raises Incompatible."""
        found = compat.check(made.versions, made.embedded)
        for finding in found:
            (self.log.warn if finding.state is compat.State.BROKEN else self.log.say)(str(finding))
        return [str(finding) for finding in found]

    def _previous(self) -> Lock | None:
        """The lock as it is, stale or not: what it knows of unchanged versions is kept."""
        try:
            return lock.parse(self.lock_path.read_text(encoding="utf-8"), str(self.lock_path))
        except FileNotFoundError:
            return None
        except (LockStale, UnicodeDecodeError) as error:
            self.log.warn(f"the lock cannot be read, so nothing of it is held against upstream: {error}")
            return None

    def fetch(self, *, offline: bool) -> None:
        """Have every file of the lock in the cache, verified."""
        with self.log.step("fetch"):
            if not offline:
                self._bring(self.lock)
                return
            intent, locked = self.intent, self.lock
            fetch.run(intent, locked, self.cache, self.client, self.log, offline=True)
            parts = base.digests(locked.base.digest, intent.platforms, self.cache)
            self.log.say(f"base image {locked.base.image}: {len(parts)} files, all in the cache and right")

    def _bring(self, locked: Lock) -> Fetched:
        intent = self.intent
        fetched = fetch.run(intent, locked, self.cache, self.client, self.log)
        name, _, _ = ImageName.parse(locked.base.image)
        copies = base.Mirrors(
            urls=intent.mirrors.get("base", ()), downloader=Downloader(client=self.client), log=self.log
        )
        base.fetch(locked.base, intent.platforms, self.registry(name), self.cache, self.log, copies)
        return fetched

    def vendor(self, folder: Path, url: str | None) -> None:
        """Fetch what is missing, and make a folder that is a mirror of all of it."""
        self.fetch(offline=False)
        with self.log.step("vendor"):
            vendor.run(self.intent, self.lock, folder, self.cache, self.log, url=url)

    def mirrors(self) -> None:
        """Measure every place that something of the lock comes from."""
        with self.log.step("mirrors"):
            mirrors.run(self.intent, self.lock, self.client, self.registry, self.log)

    def build(self, engine: Engine | Callable[[], Engine]) -> Mapping[Variant, Image]:
        """Build all platforms of the image and its variants; a function is asked for an engine when one is needed."""
        with self.log.step("build"):
            return build.run(
                self.intent,
                self.lock,
                root=self.root,
                dist=self.dist,
                cache=self.cache,
                engine=engine,
                log=self.log,
                rehearsed=self.rehearsed,
            )

    def plan(self) -> str:
        """The bake file that `build` would hand to buildx."""
        return build.plan(self.intent, self.lock, root=self.root, dist=self.dist, rehearsed=self.rehearsed)[0]

    def smoke(
        self,
        engines: smoke.Engines,
        *,
        platforms: Sequence[Platform] = (),
        tiers: Sequence[Tier] = (),
        options: smoke.Options,
    ) -> tuple[SmokeReport, ...]:
        """Check what was built, tier by tier, on each platform; the image first, then what is made on it."""
        reports: list[SmokeReport] = []
        for variant in self.lock.variants:
            if variant is not Variant.IMAGE and not (variant.below(self.dist) / IMAGE).exists():
                self.log.say(f"without {variant}, which is not in {self.dist}")
                continue
            image = Image.read(variant.below(self.dist))
            with self.log.step(f"smoke{image.variant.suffix}"):
                reports += smoke.run(
                    image,
                    self.lock,
                    image.variant.below(self.dist),
                    tuple(platforms) or self.intent.platforms,
                    tuple(tiers) or tuple(Tier),
                    engines,
                    self.log,
                    handler=emulation.handler,
                    options=options,
                )
        return tuple(reports)

    def sbom(self) -> None:
        """Tell what is in what was built, in both formats for each platform."""
        with self.log.step("sbom"):
            sbom.run(self.built().values(), self.lock, self.dist, self.log)

    def built(self) -> Mapping[Variant, Image]:
        """What `build` made of the lock; the image first. Raises IntentError when it did not."""
        return {variant: Image.read(variant.below(self.dist)) for variant in self.lock.variants}

    def scan(self, scanner: Sequence[str], *, least: str) -> None:
        """Scan what was built for known vulnerabilities, and hold them against the list of allowed findings."""
        with self.log.step("scan"):
            for image in self.built().values():
                folder = image.variant.below(self.dist)
                scan.run(image, folder, scanner, self.root / scan.ALLOWED, self.log, least=least)

    def push(self) -> None:
        """Bring the smoked and scanned digests to every repository; nothing is pushed before all of them may be."""
        with self.log.step("push"):
            if missing := sorted({*self.intent.variants} - {*self.lock.variants}):
                raise LockStale(
                    f"versions.yaml asks for {missing[0]}, and the lock lacks its files",
                    where=str(self.lock_path),
                    next_step=f"{lock.RENEW}; or take it out of `variants`",
                )
            intent, locked, images = self.intent, self.lock, self.built()
            on = images[Variant.IMAGE]
            reports = {}
            for variant, image in images.items():
                folder = variant.below(self.dist)
                smoked = [SmokeReport.read(folder, platform) for platform in image.platforms]
                # Said in the order of the stages: what was not smoked need not be scanned.
                require_smoked(image, smoked)
                scanned = [ScanReport.read(folder, platform) for platform in image.platforms]
                push.require(intent, locked, image, smoked, scanned, folder, on=on)
                reports[variant] = smoked, scanned
            for variant, image in images.items():
                folder = variant.below(self.dist)
                push.run(intent, locked, image, *reports[variant], folder, self.registry, self.log, on=on)

    def tag(self) -> None:
        """Give the signed digests their tags; no tag is made before all of them are signed."""
        with self.log.step("tag"):
            intent, images = self.intent, self.built()
            for variant, image in images.items():
                Release.read(variant.below(self.dist), image.digest).require("signed", intent.names)
            for variant, image in images.items():
                folder = variant.below(self.dist)
                on = images[Variant.IMAGE]
                tag.run(intent, self.lock, image, folder, self.registry, self.log, on=on)

    def verify(self, references: Sequence[str]) -> None:
        """Read back what was published, by other code and without credentials; each reference as what its tag says."""
        with self.log.step("verify"):
            images = self.built()
            hashed: dict[ImageName, dict[str, int]] = {}
            for variant, image in images.items():
                asked = [text for text in references if _meant(text, images) is variant]
                if asked or not references:
                    folder = variant.below(self.dist)
                    verify.run(image, self.lock, folder, asked, self.client, self.log, hashed=hashed)

    def rollback(self, target: str, *, dry_run: bool) -> None:
        """Point the moving tags back at an older release, in every repository of versions.yaml."""
        with self.log.step("rollback"):
            rollback.run(self.intent.names, target, self.registry, self.log, dry_run=dry_run)

    def retention(self, rule: retention.Rule, *, delete: bool) -> None:
        """Tell which releases go and which stay, in every repository of versions.yaml; remove them when `delete`."""
        with self.log.step("retention"):
            for name in self.intent.names:
                registry = self.registry(name)
                github = name.registry == github_packages.HOST
                remove = github_packages.Packages(self.client, name, self.token).delete if github else registry.delete
                retention.run(registry, rule, self.log, remove if delete else None)

    def reproduce(self, text: str, engine: Callable[[], Engine]) -> None:
        """Build a published image once more, cold, and hold both together; nothing of it is kept when they agree."""
        with self.log.step("reproduce"):
            name, reference = ImageName.meant(text)
            registry = self.registry(name)
            index = reproduce.published(registry, reference)
            intent, locked = self.intent, self.lock
            reproduce.require_same_lock(index, locked, self.root)
            self.fetch(offline=False)
            dist = self.dist / "reproduce"
            shutil.rmtree(dist, ignore_errors=True)
            images = build.run(
                intent,
                locked,
                root=self.root,
                dist=dist,
                cache=self.cache,
                engine=engine(),
                log=self.log,
                rehearsed=reproduce.is_rehearsed(index),
                cold=True,
            )
            variant = reproduce.variant(index)
            reproduce.run(index, images[variant], variant.below(dist), registry, self.log)
            shutil.rmtree(dist)

    def trust(self, *, key: Path | None = None, identity: str | None = None, issuer: str | None = None) -> Trust:
        """Whose signatures count: a key's holder, else an identity, by default the release workflow of `source`."""
        return Trust(
            key=bundle.public_key(key) if key else None,
            identity=identity or f"{self.intent.source}/.github/workflows/release.yml@refs/tags/*",
            issuer=issuer or signature.GITHUB_ACTIONS,
        )

    def signed_by(self, key: Path | None) -> Trust:
        """Whose signatures `sign` makes with that private key; None: the release workflow's."""
        return Trust(key=KeySigner(key).public) if key else self.trust()

    def sign(self, key: Path | None) -> None:
        """Sign indexes and manifests and attest the SBOMs: with a key, else as the workflow that this is."""
        with self.log.step("sign"):
            trust = self.signed_by(key)
            for image in self.built().values():
                folder = image.variant.below(self.dist)
                signer = (lambda: KeySigner(key)) if key else keyless
                sign.run(self.intent, image, folder, self.registry, signer, trust, self.log)

    def verify_published(self, references: Sequence[str], trust: Trust) -> None:
        """Check published images as a stranger does, who has nothing but their names."""
        with self.log.step("verify"):
            published.run(references, trust, self.intent.platforms, self.client, self.log)

    def pull(self, text: str, dist: Path) -> Image:
        """Bring a published image back into a folder, a variant into its own below, as a stranger can."""
        with self.log.step("pull"):
            name, reference = ImageName.meant(text)
            return pull.run(Registry(self.client, name), reference, dist, self.log)

    def notes(self, previous: str | None) -> str:
        """The release's notes as Markdown; `previous`: the text of the lock of the release before."""
        try:
            old = lock.parse(previous, "the lock of the release before") if previous else None
        except LockStale as error:
            self.log.warn(f"what changed is left out: {error}")
            old = None
        return notes.markdown(self.built(), self.dist, old, self.lock)

    def summary(self) -> None:
        """The tables that a release ends with."""
        for image in self.built().values():
            self._summary(image)

    def _summary(self, image: Image) -> None:
        dist = image.variant.below(self.dist)
        release = Release.read(dist, image.digest)
        rows = []
        for platform, built in image.platforms.items():
            report = SmokeReport.read(dist, platform)
            tiers = ", ".join(
                f"{tier.tier} {tier.state} ({tier.where}, {tier.seconds:.0f} s)"
                if tier.state != "not run"
                else f"{tier.tier} not run: {tier.reason}"
                for tier in report.tiers
            )
            rows.append([platform.value, built.digest.text, size(built.size), tiers])
        title = f"index{image.variant.suffix} {image.digest}"
        self.log.table(title, ["platform", "manifest digest", "size", "smoke"], rows)
        for reference in release.tagged:
            self.log.say(f"{'verified' if reference in release.verified else 'tagged'}  {reference}")


def _meant(reference: str, images: Mapping[Variant, Image]) -> Variant:
    """Which image a reference should be: the one with that digest, or the variant whose name its tag ends with."""
    for variant, image in images.items():
        if variant is not Variant.IMAGE and reference.endswith((variant.suffix, f"@{image.digest}")):
            return variant
    return Variant.IMAGE
