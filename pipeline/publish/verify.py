"""Stage `verify`: read back what was published, as an anonymous client, and check it.

A release is checked against the image in dist/. Any other reference is checked by its name and the expected signer: the
digest of every byte below the index, the annotations of index, manifests and configs, the provenance of each platform,
the signatures on the index and on each platform's manifest, and the signed SBOMs. An attacker with push access can
replace all of it consistently; only the signatures prevent that. A digest alone proves only that nothing was lost.

Requests are those of the registry client, without credentials; what is read is checked here and nowhere else, against
nothing that sign and push left. Sources: OCI image-spec 1.1, sigstore/cosign (what version 3 writes).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace

import httpx

from pipeline.components import COMPONENTS
from pipeline.core import sboms
from pipeline.core.annotations import KEY, REHEARSAL
from pipeline.core.errors import IntentError, RegistryError, VerificationFailed
from pipeline.core.log import Log, seconds, size
from pipeline.core.names import ANY_MANIFEST, INDEX, MANIFEST, Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import Image
from pipeline.core.sboms import Form
from pipeline.oci import referrers
from pipeline.oci.index import Document, annotations_of, attestations, by_platform, images, platform_of, subject_of
from pipeline.oci.registry import NO_SUCH_LIST, Registry, media_type_of
from pipeline.publish.publication import Publication
from pipeline.signing import bundle
from pipeline.signing.bundle import Trust
from pipeline.signing.statement import SIGNATURE

_PROVENANCE = "https://slsa.dev/provenance/"
_PREDICATE = "dev.sigstore.bundle.predicateType"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYERS = tuple(f"application/vnd.oci.image.layer.v1.tar{packed}" for packed in ("", "+gzip", "+zstd"))
_LARGEST = 1 << 26  # bytes of a manifest, config or bundle; ours are below two million
_NAMES = {Form.SPDX: "SPDX", Form.CYCLONEDX: "CycloneDX"}
_VERSIONS = {Form.SPDX: ("packages", "versionInfo"), Form.CYCLONEDX: ("components", "version")}  # lists, and their key


def run(
    publication: Publication,
    references: Sequence[str],
    client: httpx.Client,
    *,
    hashed: dict[ImageName, dict[str, int]] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Read back every reference (`registry/repository:tag`; none: all tagged ones) and record it.

    Every blob is downloaded and hashed, once for each repository; `hashed`: sizes of the blobs hashed so far, updated.
    Raises VerificationFailed with expected, found and where; IntentError if there is nothing to verify.
    """
    image, log, release = publication.image, publication.log, publication.release
    repositories: dict[ImageName, list[str]] = {}
    for text in references or release.tagged:
        name, reference = ImageName.parse_reference(text)
        repositories.setdefault(name, []).append(reference)
    if not repositories:
        raise IntentError("nothing was published yet", next_step="nox -s tag")
    for name, wanted in repositories.items():
        known = hashed.setdefault(name, {}) if hashed is not None else {}
        audit = _Audit(registry=Registry(client, name, sleep=sleep), log=log, released=image, hashed=known)
        started, before = time.monotonic(), audit.read
        tags = [f"{name}:{reference}" for reference in wanted if not reference.startswith("sha256:")]
        # Not verified until it was read completely.
        release = publication.record(replace(release, verified=tuple(t for t in release.verified if t not in tags)))
        with audit.reading(str(name)):
            index, _ = [audit.index(reference) for reference in wanted][-1]
            annotations = annotations_of(index)
            audit.agree("the index", image.annotations, annotations)
            for component, version in publication.lock.versions.items():
                audit.equal(f"{component}'s version on the index", version, annotations.get(f"{KEY}.{component}"))
            entries = audit.platforms(index, publication.lock.platforms)
            for platform, built in image.platforms.items():
                audit.equal(f"the manifest of {platform}", built.digest.text, entries[platform]["digest"])
            audit.content(index)
        took = seconds(time.monotonic() - started)
        log.say(f"{name}: {size(audit.read - before)} read back without credentials in {took}")
        release = publication.record(replace(release, verified=(*release.verified, *tags)))


def published(
    references: Sequence[str],
    trust: Trust,
    platforms: Iterable[Platform],
    client: httpx.Client,
    log: Log,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Check each reference (`registry/repository[:tag][@digest]`) from its index to the last byte, and its signatures.

    Raises VerificationFailed for the first difference, IntentError for an invalid reference.
    """
    expected = tuple(platforms)
    for text in references:
        name, reference = ImageName.parse_reference(text)
        started = time.monotonic()
        audit = _Audit(registry=Registry(client, name, sleep=sleep), log=log)
        with audit.reading(text):
            index, digest = audit.index(reference)
            annotations = audit.annotations(index)
            entries = audit.platforms(index, expected)
            audit.content(index)
            signatures = _Signatures(audit=audit, trust=trust)
            signatures.on("the index", digest)
            for platform, entry in entries.items():
                signatures.on(f"the manifest of {platform}", entry["digest"])
            log.say(f"index and {len(entries)} manifests are signed by {trust}")
            for platform, entry in entries.items():
                for form in Form:
                    signatures.sbom(platform, entry["digest"], form, annotations)
        log.say(f"{name}@{digest} is valid: {size(audit.read)} read in {seconds(time.monotonic() - started)}")


@dataclass(frozen=True, kw_only=True)
class _Audit:
    """Checks of one repository; each raises VerificationFailed."""

    registry: Registry  # without credentials
    log: Log
    released: Image | None = None  # the image in dist/; None: built elsewhere
    hashed: dict[str, int] = field(default_factory=dict)  # digest of a blob that was read → bytes

    @property
    def read(self) -> int:
        """Bytes of all blobs."""
        return sum(self.hashed.values())

    @contextmanager
    def reading(self, source: str) -> Iterator[None]:
        """Raise VerificationFailed for documents that do not follow the specification, and for what cannot be read."""
        try:
            yield
        except RegistryError as error:
            raise self.refused(error.summary, expected=error.expected, found=error.found, where=error.where) from None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise self.refused(f"{source} has a document that cannot be read", found=repr(error)[:200]) from None

    def refused(self, summary: str, **parts: str | None) -> VerificationFailed:
        """Return the error with its next step."""
        if self.released:
            next_step = "do not announce this release; run `nox -s tag` again, and find out who changed the registry"
        else:
            next_step = 'do not use this image; ask its makers (docs/verify.md, "When it is refused")'
        return VerificationFailed(summary, **{"next_step": next_step, "where": str(self.registry.name), **parts})

    def equal(self, name: str, expected: object, actual: object) -> None:
        """Raise VerificationFailed if the values differ."""
        if expected != actual:
            should = "was released" if self.released else "it should be"
            raise self.refused(f"{name} is not what {should}", expected=str(expected), found=str(actual))

    def agree(self, where: str, expected: Mapping[str, str], actual: Mapping[str, str]) -> None:
        """Raise VerificationFailed unless each of the expected annotations is there with the same value."""
        for key, value in expected.items():
            self.equal(f"{key} on {where}", value, actual.get(key))

    @contextmanager
    def _anonymous(self, path: str) -> Iterator[None]:
        """Raise VerificationFailed for what an anonymous client cannot read; `path`: below the repository."""
        try:
            yield
        except RegistryError as error:
            raise VerificationFailed(
                f"cannot read {path.partition('/')[0]} of {self.registry.name} without credentials",
                expected="status 200",
                found=error.found or error.summary,
                where=f"{self.registry.url}/{path}",
                next_step="is it published, and is the repository public? Then again: nox -s verify",
            ) from None

    def index(self, reference: str) -> tuple[Document, str]:
        """Return the index of a tag or digest, and its digest; if there is a released image, it must be that one."""
        path, name = f"manifests/{reference}", self.registry.name
        with self._anonymous(path):
            expect = (200,) if self.released else (200, *NO_SUCH_LIST)
            response = self.registry.read(path, ANY_MANIFEST, expect=expect, late=True)
        if response.status_code != 200:
            next_step = "is the name right, and is it public? (docs/verify.md)"
            raise self.refused(f"there is no {name}, {reference}", next_step=next_step)
        digest = Digest.of(response.content).text
        if self.released or reference.startswith("sha256:"):
            expected = self.released.digest.text if self.released else reference
            self.equal(f"the index {reference}", expected, digest)
        index: Document = json.loads(response.content)
        if "manifests" not in index:
            media_type = index.get("mediaType", "no media type")
            raise self.refused(
                f"{name}, {reference}, is a single manifest, not an index", expected=INDEX, found=media_type
            )
        self.equal("the media type that the index gives itself", INDEX, index.get("mediaType"))
        self.equal(f"the media type of the index {reference}", INDEX, media_type_of(response))
        if self.released:
            self.log.say(f"{name}{'@' if reference == digest else ':'}{reference} is {digest}")
        return index, digest

    def annotations(self, index: Document) -> Mapping[str, str]:
        """Return the annotations of an index, which must be complete."""
        stated = annotations_of(index)
        for key in ("org.opencontainers.image.title", *(f"{KEY}.{component}" for component in COMPONENTS)):
            if key not in stated:
                raise self.refused("the index lacks an annotation", expected=f"the annotation {key}")
        if REHEARSAL in stated and not self.registry.name.is_loopback:
            raise self.refused("this is a rehearsed image, which contains stubs", found=stated[REHEARSAL])
        return stated

    def platforms(self, index: Document, expected: Iterable[Platform]) -> Mapping[str, Document]:
        """Return the entries by platform; there must be exactly one of each expected platform."""
        actual = sorted(platform_of(entry) for entry in images(index))
        self.equal("the list of platforms", ", ".join(sorted(expected)), ", ".join(actual))
        return by_platform(index)

    def content(self, index: Document) -> None:
        """Check every byte below an index."""
        entries = by_platform(index)
        for platform, entry in entries.items():
            self._platform(platform, entry, annotations_of(index))
        kinds: dict[str, list[str]] = {entry["digest"]: [] for entry in entries.values()}
        for attestation in attestations(index):
            subject = subject_of(attestation)
            if subject not in kinds:
                raise self.refused(
                    "an attestation in the index is about another image",
                    expected=f"one of {', '.join(kinds)}",
                    found=subject,
                )
            kinds[subject] += self._attestation(attestation)
        for platform, entry in entries.items():
            about = kinds[entry["digest"]]
            if not any(kind.startswith(_PROVENANCE) for kind in about):
                raise self.refused(
                    f"{platform} has no provenance attestation in the index",
                    expected=f"one of type {_PROVENANCE}… for {entry['digest']}",
                    found=", ".join(about) or "none",
                )
            self.log.say(f"{platform} attestations: {', '.join(about)}")

    def _platform(self, platform: str, entry: Document, stated: Mapping[str, str]) -> None:
        manifest = self.described(f"the manifest of {platform}", entry)
        self.agree(f"the manifest of {platform}", stated, annotations_of(manifest))
        layers = manifest["layers"]
        self.equal(f"the media type of {platform}'s config", _CONFIG, manifest["config"]["mediaType"])
        for layer in layers:
            media_type = layer["mediaType"]
            expected = media_type if media_type in _LAYERS else " or ".join(_LAYERS)
            self.equal(f"the media type of {platform}'s layer {layer['digest']}", expected, media_type)
        config = json.loads(self.small(manifest["config"]))
        self.equal(f"the platform in the config of {platform}", platform, platform_of(config))
        unpacked = config["rootfs"]["diff_ids"]
        self.equal(f"the number of layers in the config of {platform}", len(layers), len(unpacked))
        self.agree(f"the config of {platform}", stated, config["config"].get("Labels") or {})
        for layer in layers:
            self._hash(layer)
        self.log.say(f"{platform} {entry['digest']}: {len(layers)} layers, every byte hashed")

    def _attestation(self, entry: Document) -> list[str]:
        """Return the predicate types of an attestation of BuildKit."""
        kinds = []
        manifest = self.described("an attestation of the index", entry)
        for layer in manifest["layers"]:
            kinds.append(annotations_of(layer).get("in-toto.io/predicate-type", ""))
            stated = json.loads(self.small(layer)).get("predicateType")
            self.equal(f"the predicate type of the attestation {layer['digest']}", kinds[-1], stated)
        self._hash(manifest["config"])
        return kinds

    def described(self, name: str, entry: Document, *, late: bool = True) -> Document:
        """Return a manifest, checked against digest, size and type in its index; `late`: as in Request."""
        self.equal(f"the media type that the index gives {name}", MANIFEST, entry["mediaType"])
        path = f"manifests/{entry['digest']}"
        with self._anonymous(path):
            response = self.registry.read(path, (MANIFEST,), expect=(200,), late=late)
        raw = response.content
        self.equal(f"the media type of {name}", MANIFEST, media_type_of(response))
        self.equal(f"the digest of {name}", entry["digest"], Digest.of(raw).text)
        self.equal(f"the size of {name}", entry["size"], len(raw))
        manifest: Document = json.loads(raw)
        self.equal(f"the media type that {name} gives itself", MANIFEST, manifest.get("mediaType"))
        return manifest

    def small(self, part: Document) -> bytes:
        """Return a blob that is a small document."""
        if not 0 <= part["size"] <= _LARGEST:
            expected = f"at most {size(_LARGEST)}"
            raise self.refused("a document is too large", expected=expected, found=size(part["size"]))
        self.hashed.pop(part["digest"], None)
        return b"".join(self._content(part))

    def _hash(self, part: Document) -> None:
        """Hash a blob, once."""
        for _ in self._content(part):
            pass

    def _content(self, part: Document) -> Iterator[bytes]:
        """Yield the bytes of a blob, checked at the end; none of one that was hashed before."""
        digest = part["digest"]
        if digest not in self.hashed:
            state, count, path = hashlib.sha256(), 0, f"blobs/{digest}"
            with self._anonymous(path), closing(self.registry.chunks(Digest(digest), late=True)) as chunks:
                for chunk in chunks:
                    state.update(chunk)
                    count += len(chunk)
                    if count > part["size"]:
                        break  # it has another digest
                    yield chunk
            self.equal(f"the blob {digest}", digest, f"sha256:{state.hexdigest()}")
            self.hashed[digest] = count
        self.equal(f"the size of {digest}", part["size"], self.hashed[digest])


@dataclass(frozen=True, kw_only=True)
class _Signatures:
    """Checks of the signatures and SBOMs that refer to a manifest or index, by trusted signers."""

    audit: _Audit
    trust: Trust

    def on(self, name: str, digest: str, kind: str = SIGNATURE, word: str = "signed") -> list[Document]:
        """Return the statements of that kind about a digest by trusted signers; at least one."""
        statements: list[Document] = []
        failures: list[VerificationFailed] = []
        for entry in referrers.entries(self.audit.registry, Digest(digest)):
            if entry.get("mediaType") != MANIFEST:
                continue
            try:
                statements += self._statement(entry, name, digest, kind)
            except VerificationFailed as failure:
                failures.append(failure)
        if statements:
            return statements
        summary, expected, actual = f"{name} is not {word}", f"{kind} by {self.trust}", "none"
        if failures:
            summary += f" by a trusted signer: {failures[0].summary}"
            expected, actual = failures[0].expected or str(self.trust), failures[0].found or ""
        where = f"{self.audit.registry.name}@{digest}"
        raise self.audit.refused(summary, expected=expected, found=actual, where=where)

    def _statement(self, entry: Document, name: str, digest: str, kind: str) -> Iterator[Document]:
        """Yield the statement of a referrer; nothing if it is of another kind."""
        audit = self.audit
        manifest = audit.described(f"a referrer of {name}", entry, late=False)
        is_bundle = [layer["mediaType"] for layer in manifest["layers"]] == [bundle.TYPE]
        if not is_bundle or annotations_of(manifest).get(_PREDICATE, kind) != kind:
            return
        subject = (manifest.get("subject") or {}).get("digest")
        audit.equal(f"the subject of a referrer of {name}", digest, subject)
        statement = bundle.statement(audit.small(manifest["layers"][0]), self.trust)
        if (signed := statement.get("predicateType")) != kind:
            raise audit.refused(f"a referrer of {name} signs something else", expected=kind, found=str(signed))
        subjects = [f"sha256:{subject['digest'].get('sha256')}" for subject in statement["subject"]]
        if digest not in subjects:
            summary = f"a signature that refers to {name} is for another digest"
            raise audit.refused(summary, expected=digest, found=", ".join(subjects))
        yield statement

    def sbom(self, platform: str, digest: str, form: Form, stated: Mapping[str, str]) -> None:
        """Check one SBOM of a manifest, and its versions against those in the index."""
        name = f"the {_NAMES[form]} SBOM of {platform}"
        failures: list[VerificationFailed] = []
        word = f"attested with a {_NAMES[form]} SBOM"
        for statement in self.on(f"the manifest of {platform}", digest, form.predicate, word):
            document = statement["predicate"]
            listed, stated_as = _VERSIONS[form]
            versions = {entry["name"]: entry.get(stated_as, "") for entry in document[listed]}
            try:
                self.audit.equal(f"the manifest that {name} is about", digest, str(sboms.subject(form, document)))
                for component in COMPONENTS:
                    expected = stated[f"{KEY}.{component}"]
                    self.audit.equal(f"{component}'s version in {name}", expected, versions.get(component))
                self.audit.log.say(f"{name}: {len(versions)} names, signed")
                return
            except VerificationFailed as failure:
                failures.append(failure)
        raise failures[0]
