"""What a stranger can check of a published image, with nothing at hand but its name and whose signature to expect.

`verify` holds a release against what was built here; this holds any reference against itself and against its
signatures: the digest of every byte down from the index, what index, manifests and configs say of themselves, the
provenance of each platform, the signatures on the index and on each platform's manifest, and the signed SBOMs.

Whoever may write to a repository can replace all of it by something consistent. That is what the signatures are for;
a digest alone only says that nothing was lost on the way. Nothing of the code that signs or pushes is used here.
Sources: OCI image-spec and distribution-spec 1.1 («Listing Referrers»), sigstore/cosign (what version 3 writes).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import httpx

from pipeline.components import COMPONENTS
from pipeline.core.annotations import KEY, REHEARSAL
from pipeline.core.errors import VerificationFailed
from pipeline.core.log import Log, seconds, size
from pipeline.core.names import ANY_MANIFEST, INDEX, MANIFEST, REFERENCE_TYPE, ImageName
from pipeline.core.platforms import Platform
from pipeline.publish.verify import Reader
from pipeline.signing import bundle
from pipeline.signing.bundle import Trust

_SIGNATURE = "https://sigstore.dev/cosign/sign/v1"
_SPDX = "https://spdx.dev/Document"
_CYCLONEDX = "https://cyclonedx.org/bom"
_PROVENANCE = "https://slsa.dev/provenance/"
_PREDICATE = "dev.sigstore.bundle.predicateType"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYERS = tuple(f"application/vnd.oci.image.layer.v1.tar{packed}" for packed in ("", "+gzip", "+zstd"))
_LARGEST = 1 << 26  # bytes of a manifest, config or bundle; ours have less than two million
_NEXT = "do not use this image; ask its makers (docs/verify.md, «When it is refused»)"


def run(
    references: Sequence[str],
    trust: Trust,
    platforms: Iterable[Platform],
    client: httpx.Client,
    log: Log,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Check each reference (`registry/repository[:tag][@digest]`) from its index to the last byte.

    Raises VerificationFailed with the first thing that is wrong, IntentError for what is no reference.
    """
    for text in references:
        name, reference = ImageName.meant(text)
        started = time.monotonic()
        checked = _Checked(Reader(name, client, sleep), name, trust, log)
        try:
            found = checked.image(reference, tuple(platforms))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise _refused(f"{text} is made of documents that cannot be read", found=repr(error)[:200]) from None
        log.say(f"{name}@{found} holds: {size(checked.read)} read in {seconds(time.monotonic() - started)}")


class _Checked:
    """One reference."""

    def __init__(self, reader: Reader, name: ImageName, trust: Trust, log: Log) -> None:
        self._reader, self._name, self._trust, self._log = reader, name, trust, log
        self._hashed: dict[str, int] = {}  # digest → bytes

    @property
    def read(self) -> int:
        """Bytes of all blobs."""
        return sum(self._hashed.values())

    def image(self, reference: str, platforms: Sequence[Platform]) -> str:
        """Everything; returns the index's digest."""
        raw = self._top(reference)
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if reference.startswith("sha256:"):
            _equal(f"the index {reference}", reference, digest)
        index = json.loads(raw)
        _equal("the media type that the index gives itself", INDEX, index.get("mediaType"))
        said = self._said(index)
        manifests = self._platforms(index, platforms)
        for platform, entry in manifests.items():
            self._platform(platform, entry, said)
        self._provenance(index, manifests)
        self._signed("the index", digest, _SIGNATURE, "signed")
        for platform, entry in manifests.items():
            self._signed(f"the manifest of {platform}", entry["digest"], _SIGNATURE, "signed")
        self._log.say(f"index and {len(manifests)} manifests are signed by {self._trust}")
        for platform, entry in manifests.items():
            for kind, form in ((_SPDX, "SPDX"), (_CYCLONEDX, "CycloneDX")):
                self._sbom(platform, entry["digest"], kind, form, said)
        return digest

    def _top(self, reference: str) -> bytes:
        raw = self._reader.optional(f"manifests/{reference}", ", ".join(ANY_MANIFEST))
        if raw is None:
            raise _refused(
                f"there is no {self._name}, {reference}",
                next_step="is the name right, and is it public? (docs/verify.md)",
            )
        if "manifests" not in json.loads(raw):
            raise _refused(
                f"{self._name}, {reference}, is one manifest and no index of platforms",
                expected=INDEX,
                found=json.loads(raw).get("mediaType", "no media type"),
            )
        return raw

    def _said(self, index: Mapping[str, Any]) -> Mapping[str, str]:
        """What the index says of the image, complete."""
        said: Mapping[str, str] = index.get("annotations") or {}
        for key in ("org.opencontainers.image.title", *(f"{KEY}.{component}" for component in COMPONENTS)):
            if key not in said:
                raise _refused("the index does not say what it is", expected=f"the annotation {key}")
        if REHEARSAL in said and not self._name.is_loopback:
            raise _refused("this is a rehearsed image, made of stand-ins", found=said[REHEARSAL])
        return said

    def _platforms(self, index: Mapping[str, Any], platforms: Sequence[Platform]) -> dict[str, Mapping[str, Any]]:
        images = [entry for entry in index["manifests"] if REFERENCE_TYPE not in (entry.get("annotations") or {})]
        _equal(
            "the list of platforms",
            ", ".join(sorted(platform.value for platform in platforms)),
            ", ".join(sorted(_platform(entry["platform"]) for entry in images)),
        )
        return {_platform(entry["platform"]): entry for entry in images}

    def _platform(self, platform: str, entry: Mapping[str, Any], said: Mapping[str, str]) -> None:
        manifest = self._described(f"the manifest of {platform}", entry, MANIFEST)
        self._agree(f"the manifest of {platform}", said, manifest.get("annotations") or {})
        layers = manifest["layers"]
        _one_of(f"the media type of {platform}'s config", (_CONFIG,), manifest["config"]["mediaType"])
        for layer in layers:
            _one_of(f"the media type of {platform}'s layer {layer['digest']}", _LAYERS, layer["mediaType"])
        config = json.loads(self._small(manifest["config"]))
        _equal(f"the platform in the config of {platform}", platform, _platform(config))
        _equal(f"the number of layers in the config of {platform}", len(layers), len(config["rootfs"]["diff_ids"]))
        self._agree(f"the config of {platform}", said, config["config"].get("Labels") or {})
        for layer in layers:
            self._hash(layer)
        self._log.say(f"{platform} {entry['digest']}: {len(layers)} layers, every byte hashed")

    def _provenance(self, index: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]]) -> None:
        """BuildKit's attestations in the index: how the image was built."""
        found: dict[str, list[str]] = {entry["digest"]: [] for entry in manifests.values()}
        for entry in index["manifests"]:
            about = entry.get("annotations") or {}
            if REFERENCE_TYPE not in about:
                continue
            subject = about.get("vnd.docker.reference.digest")
            if subject not in found:
                raise _refused(
                    "an attestation in the index is about another image",
                    expected=f"one of {', '.join(found)}",
                    found=str(subject),
                )
            manifest = self._described("an attestation of the index", entry, MANIFEST)
            for layer in manifest["layers"]:
                statement = json.loads(self._small(layer))
                kind = (layer.get("annotations") or {}).get("in-toto.io/predicate-type", "")
                _equal(f"the predicate type of the attestation {layer['digest']}", kind, statement.get("predicateType"))
                found[subject].append(kind)
            self._hash(manifest["config"])
        for platform, entry in manifests.items():
            if not any(kind.startswith(_PROVENANCE) for kind in found[entry["digest"]]):
                raise _refused(
                    f"{platform} has no provenance attestation in the index",
                    expected=f"one of type {_PROVENANCE}… for {entry['digest']}",
                    found=", ".join(found[entry["digest"]]) or "none",
                )

    def _signed(self, what: str, digest: str, kind: str, word: str) -> list[Mapping[str, Any]]:
        """The statements of that kind about a digest by whom we trust; at least one. Raises VerificationFailed."""
        held: list[Mapping[str, Any]] = []
        failures: list[VerificationFailed] = []
        for entry in self._referrers(digest):
            try:
                manifest = self._described(f"an artifact beside {what}", entry, MANIFEST)
                if (manifest.get("annotations") or {}).get(_PREDICATE, kind) != kind:
                    continue
                if [layer["mediaType"] for layer in manifest["layers"]] != [bundle.TYPE]:
                    continue
                about = (manifest.get("subject") or {}).get("digest")
                _equal(f"what an artifact beside {what} refers to", digest, about)
                said = bundle.statement(self._small(manifest["layers"][0]), self._trust)
                if (signed := said.get("predicateType")) != kind:
                    raise _refused(f"an artifact beside {what} signs something else", expected=kind, found=str(signed))
                subjects = [subject["digest"].get("sha256") for subject in said["subject"]]
                if digest.removeprefix("sha256:") not in subjects:
                    raise _refused(
                        f"a signature beside {what} is one of another digest",
                        expected=digest,
                        found=", ".join(f"sha256:{subject}" for subject in subjects),
                    )
                held.append(said)
            except VerificationFailed as failure:
                failures.append(failure)
        if held:
            return held
        if failures:
            first = failures[0]
            raise _refused(
                f"{what} is not {word} by whom it must be: {first.summary}",
                expected=first.expected or str(self._trust),
                found=first.found,
                where=f"{self._name}@{digest}",
            )
        raise _refused(
            f"{what} is not {word}", expected=f"{kind} by {self._trust}", found="none", where=f"{self._name}@{digest}"
        )

    def _sbom(self, platform: str, digest: str, kind: str, form: str, said: Mapping[str, str]) -> None:
        what = f"the {form} SBOM of {platform}"
        failure: VerificationFailed | None = None
        for statement in self._signed(f"the manifest of {platform}", digest, kind, f"attested with a {form} SBOM"):
            document = statement["predicate"]
            try:
                about, versions = _spdx(document) if kind == _SPDX else _cyclonedx(document)
                _equal(f"the manifest that {what} is about", digest, f"sha256:{about}")
                for component in COMPONENTS:
                    _equal(f"{component}'s version in {what}", said[f"{KEY}.{component}"], versions.get(component))
                self._log.say(f"{what}: {len(versions)} names, signed")
                return
            except VerificationFailed as one:
                failure = failure or one
        assert failure is not None
        raise failure

    def _referrers(self, digest: str) -> list[Mapping[str, Any]]:
        """What the registry lists, else what the tag lists that stands for it."""
        for path in (f"referrers/{digest}", f"manifests/{digest.replace(':', '-', 1)}"):
            raw = self._reader.optional(path, INDEX)
            if raw is not None:
                listed: list[Mapping[str, Any]] = json.loads(raw)["manifests"]
                return [entry for entry in listed if entry.get("mediaType") == MANIFEST]
        return []

    def _described(self, what: str, entry: Mapping[str, Any], media_type: str) -> dict[str, Any]:
        """A document, held against the digest, size and type that an index says."""
        _equal(f"the media type that the index gives {what}", media_type, entry["mediaType"])
        raw = self._reader.manifest(entry["digest"], media_type)
        _equal(f"the digest of {what}", entry["digest"], f"sha256:{hashlib.sha256(raw).hexdigest()}")
        _equal(f"the size of {what}", entry["size"], len(raw))
        document: dict[str, Any] = json.loads(raw)
        _equal(f"the media type that {what} gives itself", media_type, document.get("mediaType"))
        return document

    def _small(self, part: Mapping[str, Any]) -> bytes:
        if not 0 <= part["size"] <= _LARGEST:
            raise _refused("a document is too large", expected=f"at most {size(_LARGEST)}", found=size(part["size"]))
        raw = self._reader.blob(part["digest"])
        _equal(f"the size of {part['digest']}", part["size"], len(raw))
        self._hashed[part["digest"]] = len(raw)
        return raw

    def _hash(self, part: Mapping[str, Any]) -> None:
        """Have every byte of a blob hashed, once."""
        digest = part["digest"]
        if digest not in self._hashed:
            self._hashed[digest], found = self._reader.hash(digest)
            _equal(f"the blob {digest}", digest, found)
        _equal(f"the size of {digest}", part["size"], self._hashed[digest])

    def _agree(self, where: str, said: Mapping[str, str], found: Mapping[str, str]) -> None:
        """Manifests and configs say what the index says, letter for letter."""
        for key, value in said.items():
            _equal(f"{key} on {where}", value, found.get(key))


def _spdx(document: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The manifest's digest in hexadecimal, and versions by name."""
    versions = {one["name"]: one.get("versionInfo", "") for one in document["packages"]}
    return str(document["documentNamespace"]).rpartition("/")[2], versions


def _cyclonedx(document: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    versions = {one["name"]: one.get("version", "") for one in document["components"]}
    return str(document["metadata"]["component"]["hashes"][0]["content"]), versions


def _platform(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('os')}/{entry.get('architecture')}"


def _refused(summary: str, **parts: str | None) -> VerificationFailed:
    return VerificationFailed(summary, **{"next_step": _NEXT, **parts})


def _equal(what: str, expected: object, found: object) -> None:
    if expected != found:
        raise _refused(f"{what} is not what it should be", expected=str(expected), found=str(found))


def _one_of(what: str, expected: Sequence[str], found: str) -> None:
    if found not in expected:
        raise _refused(f"{what} is not what it should be", expected=" or ".join(expected), found=found)
