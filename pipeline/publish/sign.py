"""Stage `sign`: sign the index and each platform's manifest, and attest each platform's SBOMs, in every repository.

A claim is a statement in a Sigstore bundle. It is signed once, kept in dist/signed/, and pushed with the same bytes to
every repository of the image, as an artifact that refers to its subject, as cosign 3 writes and reads it. Existing
signatures, in dist/ or in any of the repositories, are used again.

    dist/signed/index.signature.json                     the index
    dist/signed/amd64.{signature,spdx,cdx}.json, …       each platform's manifest
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.core import sboms
from pipeline.core.errors import IntentError, VerificationFailed
from pipeline.core.names import Digest
from pipeline.core.records import Release, read_json, write_text
from pipeline.core.sboms import Form
from pipeline.oci import referrers
from pipeline.oci.referrers import Referrer
from pipeline.oci.registry import Registry
from pipeline.publish.publication import Publication
from pipeline.signing import bundle, statement
from pipeline.signing.bundle import Trust
from pipeline.signing.signer import Signer

FOLDER = "signed"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement to sign."""

    name: str  # index or architecture, a dot, and its kind: signature, spdx, cdx
    statement: bytes
    artifact: Referrer  # its bundle


def claims(publication: Publication) -> Iterator[Claim]:
    """Yield all claims of an image.

    Raises IntentError if an SBOM is missing, VerificationFailed if one is of another image, DigestMismatch if the
    layout has changed.
    """
    image, layout = publication.image, publication.layout
    title = image.annotations.get("org.opencontainers.image.title", "image")

    def claim(name: str, about: str, digest: Digest, kind: str, predicate: dict[str, object]) -> Claim:
        artifact = Referrer(
            subject=layout.part(digest),
            kind=bundle.TYPE,
            # For a reader, without a download (as cosign and GitHub write them).
            annotations={
                "dev.sigstore.bundle.content": "dsse-envelope",
                "dev.sigstore.bundle.predicateType": kind,
            },
            path=publication.dist / FOLDER / f"{name}.json",
        )
        return Claim(name=name, statement=statement.make(about, digest, kind, predicate), artifact=artifact)

    yield claim("index.signature", title, image.digest, statement.SIGNATURE, {})
    for platform, built in image.platforms.items():
        about = f"{title} {platform}"
        yield claim(f"{platform.architecture}.signature", about, built.digest, statement.SIGNATURE, {})
        for form in Form:
            path = sboms.path(publication.dist, platform, form)
            document = read_json(path, next_step="write the SBOMs first: nox -s sbom")
            if (subject := sboms.subject(form, document)) != built.digest:
                raise VerificationFailed(
                    f"{path.name} is not about this image",
                    expected=built.digest.text,
                    found=subject.text if subject else "no digest of a manifest",
                    where=str(path),
                    next_step="nox -s sbom",
                )
            yield claim(f"{platform.architecture}.{form}", about, built.digest, form.predicate, document)


def run(publication: Publication, signer: Callable[[], Signer], trust: Trust) -> Release:
    """Sign the claims without a signature, and push all to every repository; recorded in release.json.

    The digest must be recorded as pushed. `signer` is called only if there is something to sign. `trust`: accepted
    signers of earlier signatures; new signatures are checked against it, too. Raises IntentError, RegistryError,
    UpstreamError, VerificationFailed.
    """
    log = publication.log
    publication.require_loopback()
    release = publication.release
    release.require("pushed", publication.intent.names)
    everything = tuple(claims(publication))
    for registry in publication.registries:
        if not registry.has("manifests", publication.image.digest):
            expected = publication.image.digest.text
            raise IntentError(f"{registry.name} does not have this image", expected=expected, next_step="nox -s push")
    _sign(everything, publication, functools.cache(signer), trust)
    for registry in publication.registries:
        sent = sum(referrers.push(registry, claim.artifact, publication.dist / FOLDER, log) for claim in everything)
        log.say(f"{registry.name}: " + (f"{sent} of {len(everything)} claims pushed" if sent else "nothing to push"))
        release = publication.record(release.having(signed=str(registry.name)))
    return release


def _sign(everything: Sequence[Claim], publication: Publication, signer: Callable[[], Signer], trust: Trust) -> None:
    """Write a bundle of every claim to dist/signed/."""
    log = publication.log
    for claim in everything:
        path = claim.artifact.path
        if path.exists() and _is_valid(claim, path.read_bytes(), trust):
            log.say(f"{claim.name}: signed before")
            continue
        existing = (_existing(claim, registry, trust) for registry in publication.registries)
        raw = next(filter(None, existing), None)
        if raw is not None:
            log.say(f"{claim.name}: signed before, found in the registry")
        else:
            raw = signer().sign(claim.statement)
            if not _is_valid(claim, raw, trust):
                raise VerificationFailed(
                    "verify would refuse the new signature",
                    expected=str(trust),
                    found=str(signer()),
                    next_step="sign in the release workflow of versions.yaml's source, or with the key to verify",
                )
            log.say(f"{claim.name}: signed by {signer()}")
        write_text(path, raw.decode())


def _existing(claim: Claim, registry: Registry, trust: Trust) -> bytes | None:
    """Return a bundle of that statement from a registry; None if there is none."""
    for entry in referrers.entries(registry, claim.artifact.subject.digest):
        manifest = registry.manifest(entry["digest"])
        if manifest is None:
            continue
        try:
            (layer,) = manifest.document["layers"]
            if layer["mediaType"] != bundle.TYPE:
                continue
            digest = Digest(layer["digest"])
        except (ValueError, KeyError, TypeError):
            continue
        with registry.blob(digest) as chunks:
            raw = b"".join(chunks)
        if _is_valid(claim, raw, trust):
            return raw
    return None


def _is_valid(claim: Claim, raw: bytes, trust: Trust) -> bool:
    try:
        return bool(bundle.statement(raw, trust) == json.loads(claim.statement))
    except VerificationFailed:
        return False
