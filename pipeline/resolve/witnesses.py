"""Who speaks for a digest: checksum files, signatures, GitHub's records, the bytes themselves from two places.

Nothing is taken over quietly: two witnesses that contradict one another, or the lock, stop the run. A witness that is
silent stops nothing; what is asked of the grade in the end is the policy's matter (evidence.py).
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


_PATIENCE = 900.0  # seconds for one file of a witness: 86 MB at 100 kB/s. A release waits, and another one may answer


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file of a release, and where its vendor publishes it."""

    component: str
    version: str
    platform: Platform
    where: Published
    url: str

    def __str__(self) -> str:
        return f"{self.component} {self.version} for {self.platform}"


@dataclass(kw_only=True)
class Witnesses:
    """Asks for the files of components. The caller holds `cache.writing`."""

    origins: Origins
    cache: Path
    transfers: Transfers
    today: str  # YYYY-MM-DD
    _root: TrustedRoot | None = None
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def file(self, component: str, version: str, platform: Platform, known: Artifact | None) -> Artifact:
        """Return one file: it exists, its digest, and every reason to believe it. `known`: the lock's entry for it.

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
                next_step="the release is not complete (yet): ask for another version in versions.yaml",
            )
        digest, size, seen = self._first(file, head, known)
        if known is not None and known.digest != digest:
            raise DigestMismatch(
                f"{file}: upstream publishes another digest than the one that is locked",
                expected=known.digest.text,
                found=digest.text,
                where=url,
                next_step="find out why before anything else; a release that was replaced on purpose is locked again "
                "by removing its entry from versions.lock.yaml and running nox -s resolve",
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
            # Where a checksum proves that nothing changed, the tag of another edge of a CDN is no news.
            etag=(before or head.etag) if where.checksums else (head.etag or before),
            evidence=reasons,
        )

    def _first(self, file: _File, head: Head, known: Artifact | None) -> tuple[Digest, int | None, list[Evidence]]:
        """The digest, by the vendor's word, else by the lock's while nothing speaks against it, else by the bytes."""
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
        """What else is published about it: signatures, GitHub's records."""
        signed_by = COMPONENTS[file.component].signed if file.component in COMPONENTS else ""
        signed = None
        if signed_by == "certificate":
            signed = self._pair(file, digest)
        elif signed_by == "bundle":
            signed = self._bundle(file, digest)
        found = [signed] if signed else []
        release = components.owner(file.component).name
        if file.where.origin == "github" and (
            recorded := self.origins.assets(release, file.version).get(file.where.name)
        ):
            source = self.origins.assets_url(release, file.version)
            if recorded != digest:
                raise _contradiction(file, digest, recorded, source)
            found.append(Evidence(grade=Grade.RECORDED, source=f"{source} (GitHub computed it at the upload)"))
        return found

    def _pair(self, file: _File, digest: Digest) -> Evidence | None:
        """Kubernetes' signature and certificate."""
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
        """A Sigstore bundle of the release's workflow."""
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
            self.origins.log.warn(f"the signature of {file} cannot be judged: {error}; its checksum stands alone")
            return None
        except VerificationFailed as error:
            raise _forged(file, url, error) from None
        return Evidence(grade=Grade.SIGNED, source=f"{url} by a workflow of {repository} at {workflow.ref}")

    def _trusted(self) -> TrustedRoot:
        with self._reading:
            if self._root is None:
                self._root = signature.trust()
            return self._root

    def _elsewhere(self, file: _File, digest: Digest) -> list[Evidence]:
        """The same file from another site: it corroborates what nobody publishes a checksum of.

        Mirrors that `fetch` uses are asked first: they were named because they are near. One that only redirects to
        the vendor proves nothing.
        """
        ours = Evidence(grade=Grade.FIRST_USE, source=file.url)
        intent, origin, warn = self.origins.intent, file.where.origin, self.origins.log.warn
        for base in dict.fromkeys((*intent.mirrors.get(origin, ()), *intent.witnesses.get(origin, ()))):
            there = Evidence(grade=Grade.FIRST_USE, source=f"{base}/{file.where.path}")
            if there.site in ("", ours.site):
                continue
            try:
                copy = self._download(file, there.source, Rules(longest=_PATIENCE))
            except UpstreamError as error:
                warn(f"{error.summary}; it corroborates nothing")
                continue
            if Evidence(grade=Grade.FIRST_USE, source=copy.url).site in ("", ours.site):
                warn(f"{file} from {there.site}: it sends on to {copy.url}; it corroborates nothing")
                continue
            if copy.digest != digest:
                raise _contradiction(file, digest, copy.digest, there.source)
            return [there]
        return []

    def _download(self, file: _File, url: str, rules: Rules, *, size: int | None = None) -> Copy:
        """Download a file under the digest that it turns out to have; `fetch` need not bring it again.

        Raises UpstreamError.
        """
        downloader = Downloader(client=self.origins.client, rules=rules)
        transfer = self.transfers.start(f"{file}", size)
        return downloader.download(File(name=f"{file}", urls=(url,), size=size), self.cache / "sha256", transfer)


def _unchanged(known: Artifact, head: Head) -> bool:
    """Whether URL, size and strong ETag, as far as they are sent, speak for the bytes that were hashed then."""
    sizes = known.size is None or head.size is None or known.size == head.size
    return known.url == head.url and sizes and (known.etag is None or head.etag is None or known.etag == head.etag)


def _contradiction(file: _File, ours: Digest, theirs: Digest, source: str) -> DigestMismatch:
    return DigestMismatch(
        f"{file}: two witnesses contradict one another",
        expected=ours.text,
        found=theirs.text,
        where=transport.shown(source),
        next_step="find out which is right; nothing was locked. A mirror that is behind: take it out of versions.yaml",
    )


def _forged(file: _File, source: str, error: VerificationFailed) -> VerificationFailed:
    return VerificationFailed(
        f"{file}: {error.summary}",
        expected=error.expected,
        found=error.found,
        where=transport.shown(source),
        next_step="do not use that file; nothing was locked. Ask the vendor",
    )
