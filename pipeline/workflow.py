"""Each command as a row of stages, each reading the file that the one before it wrote.

`__main__` calls these with the repository's own files, the rehearsal with separate files, origin, registry and engine:
a rehearsal and a release run the same code. Clients, engines and guests are made here and nowhere else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Self

import httpx

from pipeline import sbom, smoke
from pipeline.build import build, reproduce
from pipeline.core.annotations import REHEARSAL, variant_of
from pipeline.core.errors import LockStale
from pipeline.core.log import Log, size
from pipeline.core.names import ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import IMAGE, Image, Release, ScanReport, SmokeReport, Tier, Variant, require_smoked
from pipeline.engine import emulation
from pipeline.engine import engine as this_machine
from pipeline.engine.engine import Engine
from pipeline.engine.engines import Engines
from pipeline.engine.virtual.disks import GUESTS, Guest
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
from pipeline.publish import notes, pull, push, retention, rollback, scan, sign, tag, verify
from pipeline.publish.publication import Publication
from pipeline.resolve import resolve
from pipeline.resolve.origins import Origins
from pipeline.signing import bundle, signature
from pipeline.signing.bundle import Trust
from pipeline.signing.signer import KeySigner, keyless
from pipeline.smoke.booted import BootOptions


def docker_config() -> Path:
    """Where docker keeps credentials: DOCKER_CONFIG, else ~/.docker."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")


@dataclass(frozen=True, kw_only=True)
class SmokeSelection:
    """What `smoke` checks, and on which machines."""

    platforms: Sequence[Platform] = ()  # none: those of versions.yaml
    tiers: Sequence[Tier] = tuple(Tier)
    hosts: Sequence[str] = ()  # docker hosts, for the platforms that they run natively
    guest: Guest = GUESTS["default"]
    virtual: bool = False  # on virtual engines alone
    emulate: bool = True  # register binfmt handlers where root can
    keep: bool = False  # leave what was booted running
    options: smoke.Options | None = None  # what a boot is given; None: nothing but `keep`

    def boot_options(self, engine: Engine, variant: Variant) -> BootOptions:
        """Return what the boot tier of a variant is given on an engine."""
        return self.options(engine, variant) if self.options else BootOptions(keep=self.keep)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a command reads and writes, and what it talks through; what it started ends with its block."""

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
    start: Callable[[Lock, Path, Log], AbstractContextManager[Engine]] = this_machine.choose
    rehearsed: bool = False
    token: str | None = field(
        default_factory=lambda: os.environ.get("GITHUB_TOKEN") or os.environ.get("GH_TOKEN"), repr=False
    )
    _started: ExitStack = field(default_factory=ExitStack, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._started.close()
        self.client.close()

    @cached_property
    def intent(self) -> Intent:
        """versions.yaml. Raises IntentError."""
        return versions.read(self.intent_path)

    @cached_property
    def lock(self) -> Lock:
        """The lock, checked against versions.yaml; read once. Raises LockStale."""
        return lock.read(self.lock_path, self.intent)

    @cached_property
    def engine(self) -> Engine:
        """The engine that builds, and smokes this machine's platform; started when it is first asked for."""
        return self._started.enter_context(self.start(self.lock, self.cache, self.log))

    @property
    def job(self) -> build.Job:
        """What `build` is asked for."""
        return build.Job(
            intent=self.intent,
            lock=self.lock,
            root=self.root,
            dist=self.dist,
            cache=self.cache,
            rehearsed=self.rehearsed,
        )

    def registry(self, name: ImageName) -> Registry:
        """The registry that holds that repository, with the user's credentials if there are any."""
        return Registry(self.client, name, self.credentials(name.registry))

    def built(self) -> Mapping[Variant, Image]:
        """What `build` made of the lock; the image first. Raises IntentError when it did not."""
        return {variant: Image.read(variant.below(self.dist)) for variant in self.lock.variants}

    def folder(self, image: Image) -> Path:
        """Where the files about a built image are."""
        return image.variant.below(self.dist)

    def publications(self) -> list[Publication]:
        """Return what was built, on its way to its repositories; the image first. Raises as `built`."""
        images = self.built()
        return [
            Publication(
                intent=self.intent,
                lock=self.lock,
                image=image,
                dist=self.folder(image),
                registry_for=self.registry,
                log=self.log,
                base=images[Variant.IMAGE],
            )
            for image in images.values()
        ]

    # From versions.yaml to the cache

    def resolve(self, *, check: bool) -> bool:
        """Ask the origins what versions.yaml means today and write the lock; `check`: only log. True: changed."""
        with self.log.step("resolve"):
            previous = self._previous()
            made = self._resolved(previous)
            self._check(made)
            for line in changes.lines(previous, made):
                self.log.say(line)
            return self._write(made, check=check)

    def update(self) -> str:
        """Resolve, fetch, read what is in the files, write the lock; returns what changed as Markdown.

        The lock is written last, so a run that fails leaves it as it was.
        """
        with self.log.step("update"):
            previous = self._previous()
            with self.log.step("resolve"):
                made = self._resolved(previous)
            with self.log.step("fetch"):
                fetched = self._download(made)
            with self.log.step("what is in the files"):
                inside = embedded.of_lock(made, self.cache, self.log)
            made = changes.complete(made, fetched.sizes, inside, datetime.now(UTC).date())
            findings = self._check(made)
            if not self._write(made):
                return changes.NOTHING
            return changes.markdown(previous, made, findings, made.weak(self.intent.policy))

    def _resolved(self, previous: Lock | None) -> Lock:
        """What the origins give; what is known to be inside of unchanged files is kept."""
        origins = Origins(self.intent, self.client, self.log, token=self.token)
        system = resolve.System(intent=self.intent, registry_for=self.registry, cache=self.cache, log=self.log)
        made = resolve.run(origins, system, previous, self.cache)
        return replace(made, embedded=embedded.kept(previous, made))

    def _write(self, made: Lock, *, check: bool = False) -> bool:
        """Write the lock unless its file has those bytes already, or `check`. True: it is another one."""
        if self.lock_path.exists() and lock.render(made) == self.lock_path.read_text(encoding="utf-8"):
            self.log.say("nothing changed: upstream gives the same lock")
            return False
        if not check:
            lock.write(self.lock_path, made)
            vars(self).pop("lock", None)  # what was read before is not the lock any more
            self.log.say(f"{self.lock_path.name} written")
        return True

    def _check(self, made: Lock) -> list[str]:
        """Log what compat.py reports of the versions, and return it. Raises Incompatible."""
        findings = compat.check(made.versions, made.embedded)
        for finding in findings:
            (self.log.warn if finding.state is compat.State.BROKEN else self.log.say)(str(finding))
        return [str(finding) for finding in findings]

    def _previous(self) -> Lock | None:
        """The lock as it is, stale or not: what it knows of unchanged versions is kept."""
        try:
            return lock.parse(self.lock_path.read_text(encoding="utf-8"), str(self.lock_path))
        except FileNotFoundError:
            return None
        except (LockStale, UnicodeDecodeError) as error:
            self.log.warn(f"the lock cannot be read, so nothing of it is compared with upstream: {error}")
            return None

    def fetch(self, *, offline: bool) -> None:
        """Have every file of the lock in the cache, verified."""
        with self.log.step("fetch"):
            if not offline:
                self._download(self.lock)
                return
            fetch.run(self.intent, self.lock, self.cache, self.client, self.log, offline=True)
            image = self.lock.base
            parts = base.digests(image.digest, self.intent.platforms, self.cache)
            self.log.say(f"base image {image.image}: {len(parts)} files, all verified in the cache")

    def _download(self, locked: Lock) -> Fetched:
        intent = self.intent
        fetched = fetch.run(intent, locked, self.cache, self.client, self.log)
        name, _, _ = ImageName.parse(locked.base.image)
        copies = base.Mirrors(urls=intent.mirrors.get("base", ()), downloader=Downloader(client=self.client))
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

    # From the cache to reports

    def plan(self) -> str:
        """The bake file that `build` would hand to buildx."""
        return build.plan(self.job)[0]

    def build(self) -> Mapping[Variant, Image]:
        """Build all platforms of the image and its variants."""
        with self.log.step("build"):
            return build.run(self.job, lambda: self.engine, self.log)

    def smoke(self, selection: SmokeSelection = SmokeSelection()) -> None:
        """Check what was built, tier by tier, on each platform; the image first, then what is made on it."""
        images = [Image.read(self.dist)]  # before an engine is started for nothing
        for variant in self.lock.variants[1:]:
            if (variant.below(self.dist) / IMAGE).exists():
                images.append(Image.read(variant.below(self.dist)))
            else:
                self.log.say(f"without {variant}, which is not in {self.dist}")
        platforms = tuple(selection.platforms) or self.intent.platforms
        virtual = selection.virtual or selection.guest != GUESTS["default"]
        engines = Engines(
            lock=self.lock,
            cache=self.cache,
            log=self.log,
            start=lambda: self.engine,
            others=tuple(selection.hosts),
            guest=selection.guest,
            always_virtual=virtual,
            keep=selection.keep,
        )
        with ExitStack() as handlers:
            if selection.emulate and os.geteuid() == 0 and not virtual and Tier.COMMANDS in selection.tiers:
                for platform in platforms:
                    handlers.enter_context(emulation.registered(platform, self.log))
            for image in images:
                with self.log.step(f"smoke{image.variant.suffix}"):
                    request = smoke.Request(
                        image=image,
                        lock=self.lock,
                        dist=self.folder(image),
                        platforms=platforms,
                        tiers=tuple(selection.tiers),
                        engines=engines,
                        log=self.log,
                        options=selection.boot_options,
                    )
                    smoke.run(request)

    def sbom(self) -> None:
        """Write what is in what was built, in both formats for each platform."""
        with self.log.step("sbom"):
            sbom.run(self.built().values(), self.lock, self.dist, self.log)

    def scan(self, scanner: Sequence[str], *, least: str) -> None:
        """Scan what was built for known vulnerabilities, and check them against the list of allowed findings."""
        with self.log.step("scan"):
            for image in self.built().values():
                scan.run(image, self.folder(image), scanner, self.root / scan.ALLOWED, self.log, least=least)

    # From reports to tags

    def push(self) -> None:
        """Push the smoked and scanned digests to every repository; nothing is pushed before all of them may be."""
        with self.log.step("push"):
            if missing := sorted({*self.intent.variants} - {*self.lock.variants}):
                raise LockStale(
                    f"versions.yaml asks for {missing[0]}, and the lock lacks its files",
                    where=str(self.lock_path),
                    next_step=f"{lock.RENEW}; or take it out of `variants`",
                )
            reports = {}
            publications = self.publications()
            for one in publications:
                smoked = SmokeReport.read_all(one.dist, one.image)
                # In the order of the stages: what was not smoked need not be scanned.
                require_smoked(one.image, smoked)
                reports[one.image.digest] = smoked, ScanReport.read_all(one.dist, one.image)
                push.require(one, *reports[one.image.digest])
            for one in publications:
                push.run(one, *reports[one.image.digest])

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
            signer = (lambda: KeySigner(key)) if key else keyless
            for one in self.publications():
                sign.run(one, signer, trust)

    def tag(self) -> None:
        """Give the signed digests their tags; no tag is made before all of them are signed."""
        with self.log.step("tag"):
            publications = self.publications()
            for one in publications:
                one.release.require("signed", one.intent.names)
            for one in publications:
                tag.run(one)

    def verify(self) -> None:
        """Read back what was tagged, without credentials, and check every byte."""
        with self.log.step("verify"):
            hashed: dict[ImageName, dict[str, int]] = {}
            for publication in self.publications():
                verify.run(publication, (), self.client, hashed=hashed)

    # What was published

    def verify_published(self, references: Sequence[str], trust: Trust) -> None:
        """Check published images as an anonymous client does, which has nothing but their names."""
        with self.log.step("verify"):
            verify.published(references, trust, self.intent.platforms, self.client, self.log)

    def pull(self, text: str, dist: Path) -> Image:
        """Download a published image into a folder, a variant into its own below, as an anonymous client can."""
        with self.log.step("pull"):
            name, reference = ImageName.parse_reference(text)
            return pull.run(Registry(self.client, name), reference, dist, self.log)

    def rollback(self, target: str, *, dry_run: bool) -> None:
        """Point the moving tags back at an older release, in every repository of versions.yaml."""
        with self.log.step("rollback"):
            rollback.run(self.intent.names, target, self.registry, self.log, dry_run=dry_run)

    def retention(self, rule: retention.Rule, *, delete: bool) -> None:
        """Log which releases go and which stay, in every repository of versions.yaml; remove them when `delete`."""
        with self.log.step("retention"):
            for name in self.intent.names:
                registry = self.registry(name)
                github = name.registry == github_packages.HOST
                remove = github_packages.Packages(self.client, name, self.token).delete if github else registry.delete
                retention.run(registry, rule, self.log, remove if delete else None)

    def reproduce(self, text: str) -> None:
        """Build a published image again, cold, and compare both; nothing of it is kept when they agree."""
        with self.log.step("reproduce"):
            name, reference = ImageName.parse_reference(text)
            registry = self.registry(name)
            index = reproduce.manifest(registry, reference)
            reproduce.require_same_lock(index, self.lock, self.root)
            self.fetch(offline=False)
            job = replace(self.job, dist=self.dist / "reproduce", rehearsed=REHEARSAL in index.annotations)
            shutil.rmtree(job.dist, ignore_errors=True)
            images = build.run(job, lambda: self.engine, self.log, cold=True)
            variant = variant_of(index.annotations)
            reproduce.run(index, images[variant], variant.below(job.dist), registry, self.log)
            shutil.rmtree(job.dist)

    def notes(self, previous: str) -> str:
        """The release's notes as Markdown; `previous`: the text of the lock of the release before, or empty."""
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
        rows = []
        for platform, built in image.platforms.items():
            tiers = ", ".join(
                f"{tier.tier} {tier.state} ({tier.where}, {tier.seconds:.0f} s)"
                if tier.state != "not run"
                else f"{tier.tier} not run: {tier.reason}"
                for tier in SmokeReport.read(self.folder(image), platform).tiers
            )
            rows.append([platform.value, built.digest.text, size(built.size), tiers])
        title = f"index{image.variant.suffix} {image.digest}"
        self.log.table(title, ["platform", "manifest digest", "size", "smoke"], rows)
        release = Release.read(self.folder(image), image.digest)
        for reference in release.tagged:
            self.log.say(f"{'verified' if reference in release.verified else 'tagged'}  {reference}")
