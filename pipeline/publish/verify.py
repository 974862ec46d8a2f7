"""Stage `verify`: read back what was published, as an anonymous client, and check it.

A release is checked against what was built here. Any reference can be checked without that, with nothing at hand but
its name and whose signature to expect: the digest of every byte down from the index, what index, manifests and configs
state, the provenance of each platform, the signatures on the index and on each platform's manifest, and the signed
SBOMs. Whoever may write to a repository can replace all of it by something consistent. That is what the signatures are
for; a digest alone only proves that nothing was lost on the way.

Nothing of the code that signs or pushes is used here. Sources: OCI image-spec and distribution-spec 1.1 ("Listing
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
_LARGEST = 1 << 26  # bytes of a manifest, config or bundle; ours have less than two million
_NAMES = {Form.SPDX: "SPDX", Form.CYCLONEDX: "CycloneDX"}


def run(
    publication: Publication,
    references: Sequence[str],
    client: httpx.Client,
    *,
    hashed: dict[ImageName, dict[str, int]] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Read back every reference (`registry/repository:tag`; none: all that were tagged) and record it.

    Every blob is downloaded and hashed, once for each repository; `hashed`: what was so far, to be added to. Raises
    VerificationFailed with expected, found and where; IntentError when there is nothing to verify.
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
        # What is about to be read counts as verified again only when it was read to its end.
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

    Raises VerificationFailed with the first thing that is wrong, IntentError for what is no reference.
    """
    wanted = tuple(platforms)
    for text in references:
        name, reference = ImageName.parse_reference(text)
        started = time.monotonic()
        audit = _Audit(reader=Reader(name, client, sleep), log=log)
        with audit.reading(text):
            index, digest = audit.index(reference)
            annotations = audit.annotations(index)
            entries = audit.platforms(index, wanted)
            audit.content(index)
            signatures = _Signatures(audit=audit, trust=trust)
            signatures.on("the index", digest)
            for platform, entry in entries.items():
                signatures.on(f"the manifest of {platform}", entry["digest"])
            log.say(f"index and {len(entries)} manifests are signed by {trust}")
            for platform, entry in entries.items():
                for form in Form:
                    signatures.sbom(platform, entry["digest"], form, annotations)
        log.say(f"{name}@{digest} holds: {size(audit.read)} read in {seconds(time.monotonic() - started)}")


@dataclass(frozen=True, kw_only=True)
class _Audit:
    """Checks of one repository; each raises VerificationFailed."""

    reader: Reader
    log: Log
    released: Image | None = None  # what was built here; None: it was made elsewhere
    hashed: dict[str, int] = field(default_factory=dict)  # digest of a blob that was read → bytes

    @property
    def read(self) -> int:
        """Bytes of all blobs."""
        return sum(self.hashed.values())

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Refuse documents of another form than the specification's."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise self.refused(f"{what} is made of documents that cannot be read", found=repr(error)[:200]) from None

    def refused(self, summary: str, **parts: str | None) -> VerificationFailed:
        """The error with its next step."""
        if self.released:
            next_step = "do not announce this release; run `nox -s tag` again, and find out who changed the registry"
        else:
            next_step = 'do not use this image; ask its makers (docs/verify.md, "When it is refused")'
        return VerificationFailed(summary, **{"next_step": next_step, **parts})

    def equal(self, what: str, expected: object, found: object) -> None:
        """Refuse what differs."""
        if expected != found:
            should = "was released" if self.released else "it should be"
            raise self.refused(f"{what} is not what {should}", expected=str(expected), found=str(found))

    def one_of(self, what: str, expected: Sequence[str], found: str) -> None:
        """Refuse what is none of these."""
        self.equal(what, found if found in expected else " or ".join(expected), found)

    def agree(self, where: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
        """Refuse what does not have each of these annotations, letter for letter."""
        for key, value in expected.items():
            self.equal(f"{key} on {where}", value, found.get(key))

    def released_index(self, reference: str, image: Image) -> Document:
        """The index that was built here, behind a tag or digest."""
        name = self.reader.name
        full = f"{name}{'@' if reference.startswith('sha256:') else ':'}{reference}"
        raw, served = self.reader.manifest(reference, INDEX)
        self.equal(f"the media type of {full}", INDEX, served)
        self.equal(f"the digest of {full}", image.digest.text, _sha256(raw))
        self.log.say(f"{full} is {image.digest}")
        return self._parsed(raw)

    def index(self, reference: str) -> tuple[Document, str]:
        """Any index behind a tag or digest, and its digest."""
        name = self.reader.name
        raw = self.reader.optional(f"manifests/{reference}", ", ".join(ANY_MANIFEST))
        if raw is None:
            next_step = "is the name right, and is it public? (docs/verify.md)"
            raise self.refused(f"there is no {name}, {reference}", next_step=next_step)
        digest = _sha256(raw)
        if reference.startswith("sha256:"):
            self.equal(f"the index {reference}", reference, digest)
        return self._parsed(raw, f"{name}, {reference}, "), digest

    def _parsed(self, raw: bytes, what: str = "it ") -> Document:
        index: Document = json.loads(raw)
        if "manifests" not in index:
            found = index.get("mediaType", "no media type")
            raise self.refused(f"{what}is one manifest and no index of platforms", expected=INDEX, found=found)
        self.equal("the media type that the index gives itself", INDEX, index.get("mediaType"))
        return index

    def annotations(self, index: Document) -> Mapping[str, str]:
        """What an index states of its image, complete."""
        stated = annotations_of(index)
        for key in ("org.opencontainers.image.title", *(f"{KEY}.{component}" for component in COMPONENTS)):
            if key not in stated:
                raise self.refused("the index does not say what it is", expected=f"the annotation {key}")
        if REHEARSAL in stated and not self.reader.name.is_loopback:
            raise self.refused("this is a rehearsed image, made of stubs", found=stated[REHEARSAL])
        return stated

    def platforms(self, index: Document, expected: Iterable[Platform]) -> Mapping[str, Document]:
        """The entries of these platforms; no other may be there, nor one twice."""
        found = sorted(platform_of(entry) for entry in images(index))
        self.equal("the list of platforms", ", ".join(sorted(expected)), ", ".join(found))
        return by_platform(index)

    def content(self, index: Document) -> None:
        """Everything below an index, every byte of it."""
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
        self.one_of(f"the media type of {platform}'s config", (_CONFIG,), manifest["config"]["mediaType"])
        for layer in layers:
            self.one_of(f"the media type of {platform}'s layer {layer['digest']}", _LAYERS, layer["mediaType"])
        config = json.loads(self.small(manifest["config"]))
        self.equal(f"the platform in the config of {platform}", platform, platform_of(config))
        unpacked = config["rootfs"]["diff_ids"]
        self.equal(f"the number of layers in the config of {platform}", len(layers), len(unpacked))
        self.agree(f"the config of {platform}", stated, config["config"].get("Labels") or {})
        for layer in layers:
            self._hash(layer)
        self.log.say(f"{platform} {entry['digest']}: {len(layers)} layers, every byte hashed")

    def _attestation(self, entry: Document) -> list[str]:
        """The predicate types of one of BuildKit's attestations, which say how an image was built."""
        kinds = []
        manifest = self.described("an attestation of the index", entry)
        for layer in manifest["layers"]:
            kinds.append(annotations_of(layer).get("in-toto.io/predicate-type", ""))
            found = json.loads(self.small(layer)).get("predicateType")
            self.equal(f"the predicate type of the attestation {layer['digest']}", kinds[-1], found)
        self._hash(manifest["config"])
        return kinds

    def described(self, what: str, entry: Document) -> Document:
        """A manifest, checked against the digest, size and type that an index gives it."""
        self.equal(f"the media type that the index gives {what}", MANIFEST, entry["mediaType"])
        raw, served = self.reader.manifest(entry["digest"], MANIFEST)
        self.equal(f"the media type of {what}", MANIFEST, served)
        self.equal(f"the digest of {what}", entry["digest"], _sha256(raw))
        self.equal(f"the size of {what}", entry["size"], len(raw))
        manifest: Document = json.loads(raw)
        self.equal(f"the media type that {what} gives itself", MANIFEST, manifest.get("mediaType"))
        return manifest

    def small(self, part: Document) -> bytes:
        """A document that is a blob."""
        if not 0 <= part["size"] <= _LARGEST:
            expected = f"at most {size(_LARGEST)}"
            raise self.refused("a document is too large", expected=expected, found=size(part["size"]))
        raw = self.reader.blob(part["digest"])
        self.equal(f"the blob {part['digest']}", part["digest"], _sha256(raw))
        self.equal(f"the size of {part['digest']}", part["size"], len(raw))
        self.hashed[part["digest"]] = len(raw)
        return raw

    def _hash(self, part: Document) -> None:
        """Have every byte of a blob hashed, once."""
        digest = part["digest"]
        if digest not in self.hashed:
            length, found = self.reader.hash(digest)
            self.equal(f"the blob {digest}", digest, found)
            self.hashed[digest] = length
        self.equal(f"the size of {digest}", part["size"], self.hashed[digest])


@dataclass(frozen=True, kw_only=True)
class _Signatures:
    """Checks of what refers to a manifest or index: signatures and SBOMs, by whom we trust."""

    audit: _Audit
    trust: Trust

    def on(self, what: str, digest: str, kind: str = _SIGNATURE, word: str = "signed") -> list[Document]:
        """The statements of that kind about a digest by whom we trust; at least one."""
        held: list[Document] = []
        failures: list[VerificationFailed] = []
        for entry in self._referrers(digest):
            try:
                held += self._statement(entry, what, digest, kind)
            except VerificationFailed as failure:
                failures.append(failure)
        if held:
            return held
        summary, expected, found = f"{what} is not {word}", f"{kind} by {self.trust}", "none"
        if failures:
            summary += f" by whom it must be: {failures[0].summary}"
            expected, found = failures[0].expected or str(self.trust), failures[0].found or ""
        where = f"{self.audit.reader.name}@{digest}"
        raise self.audit.refused(summary, expected=expected, found=found, where=where)

    def _statement(self, entry: Document, what: str, digest: str, kind: str) -> Iterator[Document]:
        """The statement that an artifact holds; none when it holds something else."""
        audit = self.audit
        manifest = audit.described(f"an artifact beside {what}", entry)
        is_bundle = [layer["mediaType"] for layer in manifest["layers"]] == [bundle.TYPE]
        if not is_bundle or annotations_of(manifest).get(_PREDICATE, kind) != kind:
            return
        subject = (manifest.get("subject") or {}).get("digest")
        audit.equal(f"what an artifact beside {what} refers to", digest, subject)
        statement = bundle.statement(audit.small(manifest["layers"][0]), self.trust)
        if (signed := statement.get("predicateType")) != kind:
            raise audit.refused(f"an artifact beside {what} signs something else", expected=kind, found=str(signed))
        subjects = [f"sha256:{subject['digest'].get('sha256')}" for subject in statement["subject"]]
        if digest not in subjects:
            summary = f"a signature beside {what} is one of another digest"
            raise audit.refused(summary, expected=digest, found=", ".join(subjects))
        yield statement

    def _referrers(self, digest: str) -> list[Document]:
        """What the registry lists, else what the tag lists that stands for it."""
        for path in (f"referrers/{digest}", f"manifests/{digest.replace(':', '-', 1)}"):
            raw = self.audit.reader.optional(path, INDEX)
            if raw is not None:
                return [entry for entry in json.loads(raw)["manifests"] if entry.get("mediaType") == MANIFEST]
        return []

    def sbom(self, platform: str, digest: str, form: Form, stated: Mapping[str, str]) -> None:
        """One SBOM of a manifest, with the versions that the index states."""
        name = _NAMES[form]
        what = f"the {name} SBOM of {platform}"
        failures: list[VerificationFailed] = []
        word = f"attested with a {name} SBOM"
        for statement in self.on(f"the manifest of {platform}", digest, form.predicate, word):
            about, versions = _described_by(form, statement["predicate"])
            try:
                self.audit.equal(f"the manifest that {what} is about", digest, f"sha256:{about}")
                for component in COMPONENTS:
                    expected = stated[f"{KEY}.{component}"]
                    self.audit.equal(f"{component}'s version in {what}", expected, versions.get(component))
                self.audit.log.say(f"{what}: {len(versions)} names, signed")
                return
            except VerificationFailed as failure:
                failures.append(failure)
        raise failures[0]


def _described_by(form: Form, document: Document) -> tuple[str, dict[str, str]]:
    """The manifest's digest in hexadecimal, and versions by name, of an SBOM."""
    if form is Form.SPDX:
        versions = {package["name"]: package.get("versionInfo", "") for package in document["packages"]}
        return str(document["documentNamespace"]).rpartition("/")[2], versions
    versions = {component["name"]: component.get("version", "") for component in document["components"]}
    return str(document["metadata"]["component"]["hashes"][0]["content"]), versions


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
