"""Collects evidence for digests: checksum files, signatures, GitHub's records, the bytes from two sites.

Two witnesses that contradict each other, or the lock, stop the run. A witness without a response does not: the policy
decides later whether the grade is sufficient (evidence.py).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import components
from pipeline.components import COMPONENTS, Published
from pipeline.core.errors import DigestMismatch, UpstreamError, VerificationFailed
from pipeline.core.log import Transfers
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.http import transport
from pipeline.http.download import Copy, Downloader, File, Rules
from pipeline.inputs import evidence
from pipeline.inputs.evidence import Evidence, Grade
from pipeline.inputs.lock import Artifact
from pipeline.resolve import upstream
from pipeline.resolve.origins import Head, Origins
from pipeline.signing import signature

if TYPE_CHECKING:
    from sigstore.models import TrustedRoot

_PATIENCE = 900.0  # seconds for one file of a witness: 86 MB at 100 kB/s


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file of a release."""

    component: str
    version: str
    platform: Platform
    where: Published
    url: str

    def __str__(self) -> str:
        return f"{self.component} {self.version} for {self.platform}"


@dataclass(kw_only=True)
class Witnesses:
    """Collects evidence for the files of components. The caller holds `cache.writing`."""

    origins: Origins
    cache: Path
    transfers: Transfers
    today: str  # YYYY-MM-DD
    _root: TrustedRoot | None = None
    _loading: threading.Lock = field(default_factory=threading.Lock)

    def file(self, component: str, version: str, platform: Platform, known: Artifact | None) -> Artifact:
        """Return a file with its digest and evidence. `known`: its entry in the lock.

        Raises UpstreamError, DigestMismatch, VerificationFailed.
        """
        where = components.published(component, version, platform)
        url = self.origins.url(where.origin, where.path)
        file = _File(component=component, version=version, platform=platform, where=where, url=url)
        head = self.origins.head(url, f"{file}")
        if head is None:
            raise UpstreamError(
                f"{file} does not exist",
                expected="status 200",
                found="status 404",
                where=transport.shown(url),
                next_step="the release is incomplete: choose another version in versions.yaml",
            )
        digest, size, seen = self._first(file, head, known)
        if known is not None and known.digest != digest:
            raise DigestMismatch(
                f"{file}: upstream publishes another digest than the lock",
                expected=known.digest.text,
                found=digest.text,
                where=url,
                next_step="find out why; if the release was replaced on purpose, remove its entry from "
                "versions.lock.yaml and run nox -s resolve",
            )
        seen += self._more(file, digest)
        reasons = evidence.merge(known.evidence if known else (), seen, self.today)
        if component == "docker" and not evidence.grade(reasons).reaches(Grade.CORROBORATED):
            reasons = evidence.merge(reasons, self._elsewhere(file, digest), self.today)
        before = known.etag if known is not None and known.url == url else None
        return Artifact(
            component=component,
            version=version,
            platform=platform,
            origin=where.origin,
            path=where.path,
            url=url,
            digest=digest,
            size=size if size is not None else (known.size if known else None),
            # ETags can differ between the nodes of a CDN; with a checksum file they are not needed.
            etag=(before or head.etag) if where.checksums else (head.etag or before),
            evidence=reasons,
        )

    def _first(self, file: _File, head: Head, known: Artifact | None) -> tuple[Digest, int | None, list[Evidence]]:
        """Return digest, size, evidence: from the checksum file, else the lock if unchanged, else a download."""
        where = file.where
        if where.checksums is not None:
            source = self.origins.url(where.origin, where.checksums)
            listed = self.origins.text(where.origin, where.checksums, f"the checksum of {file}")
            digest = upstream.checksum(listed, where.name)
            return digest, head.size, [Evidence(grade=Grade.PUBLISHED, source=source)]
        if known is not None and _unchanged(known, head):
            return known.digest, head.size, []
        copy = self._download(file, head.url, Rules(), size=head.size)
        return copy.digest, copy.size, [Evidence(grade=Grade.FIRST_USE, source=head.url)]

    def _more(self, file: _File, digest: Digest) -> list[Evidence]:
        """Return further published evidence: signatures, GitHub's records."""
        signed_by = COMPONENTS[file.component].signed if file.component in COMPONENTS else ""
        check = {"certificate": self._pair, "bundle": self._bundle}.get(signed_by)
        signed = check(file, digest) if check else None
        reasons = [signed] if signed else []
        if file.where.origin == "github":
            release = components.owner(file.component).name
            source = self.origins.assets_url(release, file.version)
            recorded = self.origins.assets(release, file.version).get(file.where.name, digest)
            if recorded != digest:
                raise _contradiction(file, digest, recorded, source)
            if file.where.name in self.origins.assets(release, file.version):
                reasons.append(Evidence(grade=Grade.RECORDED, source=f"{source} (GitHub computed it at the upload)"))
        return reasons

    def _pair(self, file: _File, digest: Digest) -> Evidence | None:
        """Verify Kubernetes' signature and certificate."""
        signed = self.origins.content(f"{file.url}.sig", f"the signature of {file}")
        certificate = self.origins.content(f"{file.url}.cert", f"the certificate of {file}") if signed else None
        if not signed or not certificate:
            return None
        try:
            signature.check_pair(
                certificate=certificate,
                signature=signed,
                digest=digest,
                identity=signature.KUBERNETES,
                issuer=signature.GOOGLE,
                authorities=self._trusted().get_fulcio_certs(),
            )
        except VerificationFailed as error:
            raise _forged(file, f"{file.url}.sig", error) from None
        return Evidence(
            grade=Grade.SIGNED,
            source=f"{file.url}.sig by {signature.KUBERNETES} (no entry of the transparency log is published beside "
            "it: the time of signing is not proven)",
        )

    def _bundle(self, file: _File, digest: Digest) -> Evidence | None:
        """Verify a Sigstore bundle of the release's workflow."""
        assert file.where.signature is not None
        url = self.origins.url(file.where.origin, file.where.signature)
        raw = self.origins.content(url, f"the signature of {file}")
        if raw is None:
            return None
        component = COMPONENTS[file.component]
        repository, tag = f"https://github.com/{component.repository}", component.release_tag(file.version)
        workflow = signature.Workflow(repository=repository, ref=f"refs/tags/{tag}")
        try:
            signature.check_bundle(raw, digest=digest, workflow=workflow, root=self._trusted())
        except signature.Unreadable as error:
            self.origins.log.warn(f"cannot read the signature of {file}: {error}; using its checksum alone")
            return None
        except VerificationFailed as error:
            raise _forged(file, url, error) from None
        return Evidence(grade=Grade.SIGNED, source=f"{url} by a workflow of {repository} at {workflow.ref}")

    def _trusted(self) -> TrustedRoot:
        with self._loading:
            if self._root is None:
                self._root = signature.trust()
            return self._root

    def _elsewhere(self, file: _File, digest: Digest) -> list[Evidence]:
        """Download the file from another site, if no checksum is published: mirrors first, which are near.

        One that redirects to the vendor is not a witness.
        """
        own_sites = ("", Evidence(grade=Grade.FIRST_USE, source=file.url).site)
        intent, origin, warn = self.origins.intent, file.where.origin, self.origins.log.warn
        for base in dict.fromkeys((*intent.mirrors.get(origin, ()), *intent.witnesses.get(origin, ()))):
            witness = Evidence(grade=Grade.FIRST_USE, source=f"{base}/{file.where.path}")
            if witness.site in own_sites:
                continue
            try:
                copy = self._download(file, witness.source, Rules(longest=_PATIENCE))
            except UpstreamError as error:
                warn(f"{error.summary}; it corroborates nothing")
                continue
            if Evidence(grade=Grade.FIRST_USE, source=copy.url).site in own_sites:
                warn(f"{file} from {witness.site}: redirect to {copy.url}; it corroborates nothing")
                continue
            if copy.digest != digest:
                raise _contradiction(file, digest, copy.digest, witness.source)
            return [witness]
        return []

    def _download(self, file: _File, url: str, rules: Rules, *, size: int | None = None) -> Copy:
        """Download a file of unknown digest to the cache. Raises UpstreamError."""
        downloader = Downloader(client=self.origins.client, rules=rules)
        transfer = self.transfers.start(f"{file}", size)
        return downloader.download(File(name=f"{file}", urls=(url,), size=size), self.cache / "sha256", transfer)


def _unchanged(known: Artifact, head: Head) -> bool:
    """Return whether URL, size and strong ETag, if known, are those of the locked bytes."""
    sizes = known.size is None or head.size is None or known.size == head.size
    return known.url == head.url and sizes and (known.etag is None or head.etag is None or known.etag == head.etag)


def _contradiction(file: _File, ours: Digest, theirs: Digest, source: str) -> DigestMismatch:
    return DigestMismatch(
        f"{file}: two witnesses contradict each other",
        expected=ours.text,
        found=theirs.text,
        where=transport.shown(source),
        next_step="find out which is right; the lock is unchanged. Remove an outdated mirror from versions.yaml",
    )


def _forged(file: _File, source: str, error: VerificationFailed) -> VerificationFailed:
    return VerificationFailed(
        f"{file}: {error.summary}",
        expected=error.expected,
        found=error.found,
        where=transport.shown(source),
        next_step="do not use that file, ask the vendor; the lock is unchanged",
    )
