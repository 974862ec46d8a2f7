"""Stage `verify`: read back what was published, as an anonymous client, and check it.

A release is checked against the image in dist/. Any other reference is checked by its name and the expected signer: the
digest of every byte below the index, the annotations of index, manifests and configs, the provenance of each platform,
the signatures on the index and on each platform's manifest, and the signed SBOMs. An attacker with push access can
replace all of it consistently; only the signatures prevent that. A digest alone proves only that nothing was lost.

Shares no code with sign and push. Sources: OCI image-spec and distribution-spec 1.1 ("Listing
Referrers"), sigstore/cosign (what version 3 writes).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import httpx

from pipeline.components import COMPONENTS
from pipeline.core.annotations import KEY, REHEARSAL
from pipeline.core.errors import IntentError, VerificationFailed
from pipeline.core.log import Log, seconds, size
from pipeline.core.names import ANY_MANIFEST, INDEX, MANIFEST, ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import Image
from pipeline.core.sboms import Form
from pipeline.oci.index import Document, annotations_of, attestations, by_platform, images, platform_of, subject_of
from pipeline.publish.publication import Publication
from pipeline.publish.reader import Reader
from pipeline.signing import bundle
from pipeline.signing.bundle import Trust

_SIGNATURE = "https://sigstore.dev/cosign/sign/v1"
_PROVENANCE = "https://slsa.dev/provenance/"
_PREDICATE = "dev.sigstore.bundle.predicateType"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYERS = tuple(f"application/vnd.oci.image.layer.v1.tar{packed}" for packed in ("", "+gzip", "+zstd"))
_LARGEST = 1 << 26  # bytes of a manifest, config or bundle; ours are below two million
_NAMES = {Form.SPDX: "SPDX", Form.CYCLONEDX: "CycloneDX"}


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
        audit = _Audit(reader=Reader(name, client, sleep), log=log, released=image, hashed=known)
        started, before = time.monotonic(), audit.read
        tags = [f"{name}:{reference}" for reference in wanted if not reference.startswith("sha256:")]
        # Not verified until it was read completely.
        release = publication.record(replace(release, verified=tuple(t for t in release.verified if t not in tags)))
        with audit.reading(str(name)):
            index = [audit.released_index(reference, image) for reference in wanted][-1]
            annotations = annotations_of(index)
            audit.agree("the index", image.annotations, annotations)
            for component, version in publication.lock.versions.items():
                audit.equal(f"{component}'s version on the index", version, annotations.get(f"{KEY}.{component}"))
            audit.platforms(index, publication.lock.platforms)
            entries = audit.platforms(index, image.platforms)
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
        audit = _Audit(reader=Reader(name, client, sleep), log=log)
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

    reader: Reader
    log: Log
    released: Image | None = None  # the image in dist/; None: built elsewhere
    hashed: dict[str, int] = field(default_factory=dict)  # digest of a blob that was read → bytes

    @property
    def read(self) -> int:
        """Bytes of all blobs."""
        return sum(self.hashed.values())

    @contextmanager
    def reading(self, source: str) -> Iterator[None]:
        """Raise VerificationFailed for documents that do not follow the specification."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise self.refused(f"{source} has a document that cannot be read", found=repr(error)[:200]) from None

    def refused(self, summary: str, **parts: str | None) -> VerificationFailed:
        """Return the error with its next step."""
        if self.released:
            next_step = "do not announce this release; run `nox -s tag` again, and find out who changed the registry"
        else:
            next_step = 'do not use this image; ask its makers (docs/verify.md, "When it is refused")'
        return VerificationFailed(summary, **{"next_step": next_step, **parts})

    def equal(self, name: str, expected: object, actual: object) -> None:
        """Raise VerificationFailed if the values differ."""
        if expected != actual:
            should = "was released" if self.released else "it should be"
            raise self.refused(f"{name} is not what {should}", expected=str(expected), found=str(actual))

    def member(self, name: str, expected: Sequence[str], actual: str) -> None:
        """Raise VerificationFailed if the value is not one of the expected ones."""
        self.equal(name, actual if actual in expected else " or ".join(expected), actual)

    def agree(self, where: str, expected: Mapping[str, str], actual: Mapping[str, str]) -> None:
        """Raise VerificationFailed unless each of the expected annotations is there with the same value."""
        for key, value in expected.items():
            self.equal(f"{key} on {where}", value, actual.get(key))

    def released_index(self, reference: str, image: Image) -> Document:
        """Return the released index of a tag or digest."""
        name = self.reader.name
        full = f"{name}{'@' if reference.startswith('sha256:') else ':'}{reference}"
        raw, served = self.reader.manifest(reference, INDEX)
        self.equal(f"the media type of {full}", INDEX, served)
        self.equal(f"the digest of {full}", image.digest.text, _sha256(raw))
        self.log.say(f"{full} is {image.digest}")
        return self._parsed(raw)

    def index(self, reference: str) -> tuple[Document, str]:
        """Return any index of a tag or digest, and its digest."""
        name = self.reader.name
        raw = self.reader.optional(f"manifests/{reference}", ", ".join(ANY_MANIFEST))
        if raw is None:
            next_step = "is the name right, and is it public? (docs/verify.md)"
            raise self.refused(f"there is no {name}, {reference}", next_step=next_step)
        digest = _sha256(raw)
        if reference.startswith("sha256:"):
            self.equal(f"the index {reference}", reference, digest)
        return self._parsed(raw, f"{name}, {reference}, "), digest

    def _parsed(self, raw: bytes, source: str = "it ") -> Document:
        index: Document = json.loads(raw)
        if "manifests" not in index:
            media_type = index.get("mediaType", "no media type")
            raise self.refused(f"{source}is a single manifest, not an index", expected=INDEX, found=media_type)
        self.equal("the media type that the index gives itself", INDEX, index.get("mediaType"))
        return index

    def annotations(self, index: Document) -> Mapping[str, str]:
        """Return the annotations of an index, which must be complete."""
        stated = annotations_of(index)
        for key in ("org.opencontainers.image.title", *(f"{KEY}.{component}" for component in COMPONENTS)):
            if key not in stated:
                raise self.refused("the index lacks an annotation", expected=f"the annotation {key}")
        if REHEARSAL in stated and not self.reader.name.is_loopback:
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
        self.member(f"the media type of {platform}'s config", (_CONFIG,), manifest["config"]["mediaType"])
        for layer in layers:
            self.member(f"the media type of {platform}'s layer {layer['digest']}", _LAYERS, layer["mediaType"])
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

    def described(self, name: str, entry: Document) -> Document:
        """Return a manifest, checked against digest, size and type in its index."""
        self.equal(f"the media type that the index gives {name}", MANIFEST, entry["mediaType"])
        raw, served = self.reader.manifest(entry["digest"], MANIFEST)
        self.equal(f"the media type of {name}", MANIFEST, served)
        self.equal(f"the digest of {name}", entry["digest"], _sha256(raw))
        self.equal(f"the size of {name}", entry["size"], len(raw))
        manifest: Document = json.loads(raw)
        self.equal(f"the media type that {name} gives itself", MANIFEST, manifest.get("mediaType"))
        return manifest

    def small(self, part: Document) -> bytes:
        """Return a blob that is a small document."""
        if not 0 <= part["size"] <= _LARGEST:
            expected = f"at most {size(_LARGEST)}"
            raise self.refused("a document is too large", expected=expected, found=size(part["size"]))
        raw = self.reader.blob(part["digest"])
        self.equal(f"the blob {part['digest']}", part["digest"], _sha256(raw))
        self.equal(f"the size of {part['digest']}", part["size"], len(raw))
        self.hashed[part["digest"]] = len(raw)
        return raw

    def _hash(self, part: Document) -> None:
        """Hash a blob, once."""
        digest = part["digest"]
        if digest not in self.hashed:
            length, actual = self.reader.hash(digest)
            self.equal(f"the blob {digest}", digest, actual)
            self.hashed[digest] = length
        self.equal(f"the size of {digest}", part["size"], self.hashed[digest])


@dataclass(frozen=True, kw_only=True)
class _Signatures:
    """Checks of the signatures and SBOMs that refer to a manifest or index, by trusted signers."""

    audit: _Audit
    trust: Trust

    def on(self, name: str, digest: str, kind: str = _SIGNATURE, word: str = "signed") -> list[Document]:
        """Return the statements of that kind about a digest by trusted signers; at least one."""
        statements: list[Document] = []
        failures: list[VerificationFailed] = []
        for entry in self._referrers(digest):
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
        where = f"{self.audit.reader.name}@{digest}"
        raise self.audit.refused(summary, expected=expected, found=actual, where=where)

    def _statement(self, entry: Document, name: str, digest: str, kind: str) -> Iterator[Document]:
        """Yield the statement of a referrer; nothing if it is of another kind."""
        audit = self.audit
        manifest = audit.described(f"a referrer of {name}", entry)
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

    def _referrers(self, digest: str) -> list[Document]:
        """Return the referrers by the registry's API, else by the referrers tag."""
        for path in (f"referrers/{digest}", f"manifests/{digest.replace(':', '-', 1)}"):
            raw = self.audit.reader.optional(path, INDEX)
            if raw is not None:
                return [entry for entry in json.loads(raw)["manifests"] if entry.get("mediaType") == MANIFEST]
        return []

    def sbom(self, platform: str, digest: str, form: Form, stated: Mapping[str, str]) -> None:
        """Check one SBOM of a manifest, and its versions against those in the index."""
        name = f"the {_NAMES[form]} SBOM of {platform}"
        failures: list[VerificationFailed] = []
        word = f"attested with a {_NAMES[form]} SBOM"
        for statement in self.on(f"the manifest of {platform}", digest, form.predicate, word):
            subject, versions = _described_by(form, statement["predicate"])
            try:
                self.audit.equal(f"the manifest that {name} is about", digest, f"sha256:{subject}")
                for component in COMPONENTS:
                    expected = stated[f"{KEY}.{component}"]
                    self.audit.equal(f"{component}'s version in {name}", expected, versions.get(component))
                self.audit.log.say(f"{name}: {len(versions)} names, signed")
                return
            except VerificationFailed as failure:
                failures.append(failure)
        raise failures[0]


def _described_by(form: Form, document: Document) -> tuple[str, dict[str, str]]:
    """Return the digest (hexadecimal) of an SBOM's manifest, and versions by name."""
    if form is Form.SPDX:
        versions = {package["name"]: package.get("versionInfo", "") for package in document["packages"]}
        return str(document["documentNamespace"]).rpartition("/")[2], versions
    versions = {component["name"]: component.get("version", "") for component in document["components"]}
    return str(document["metadata"]["component"]["hashes"][0]["content"]), versions


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
