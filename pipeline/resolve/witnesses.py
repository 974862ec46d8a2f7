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
from pipeline.core.log import Log, Transfers
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


@dataclass(kw_only=True)
class Witnesses:
    """Asks for the files of components. The caller holds `cache.writing`."""

    origins: Origins
    cache: Path
    log: Log
    transfers: Transfers
    today: str  # YYYY-MM-DD
    _root: TrustedRoot | None = None
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def file(self, component: str, version: str, platform: Platform, known: Artifact | None) -> Artifact:
        """One file: it exists, its digest, and every reason to believe it. `known`: the lock's entry for it.

        Raises UpstreamError, DigestMismatch, VerificationFailed.
        """
        where = components.published(component, version, platform)
        url = self.origins.url(where.origin, where.path)
        what = f"{component} {version} for {platform}"
        head = self.origins.head(url, what)
        if head is None:
            raise UpstreamError(
                f"{what} does not exist",
                expected="status 200",
                found="status 404",
                where=transport.shown(url),
                next_step="the release is not complete (yet): ask for another version in versions.yaml",
            )
        digest, size, seen = self._first(where, head, known, what)
        if known is not None and known.digest != digest:
            raise DigestMismatch(
                f"{what}: upstream publishes another digest than the one that is locked",
                expected=known.digest.text,
                found=digest.text,
                where=url,
                next_step="find out why before anything else; a release that was replaced on purpose is locked anew by "
                "removing its entry from versions.lock.yaml and running nox -s resolve",
            )
        seen += self._more(component, version, where, url, digest, what)
        reasons = evidence.merge(known.evidence if known else (), seen, self.today)
        if component == "docker" and not evidence.grade(reasons).reaches(Grade.CORROBORATED):
            reasons = evidence.merge(reasons, self._elsewhere(where, url, digest, what), self.today)
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

    def _first(
        self, where: Published, head: Head, known: Artifact | None, what: str
    ) -> tuple[Digest, int | None, list[Evidence]]:
        """The digest, by the vendor's word, else by the lock's while nothing speaks against it, else by the bytes."""
        if where.checksums is not None:
            source = self.origins.url(where.origin, where.checksums)
            listed = self.origins.text(where.origin, where.checksums, f"the checksum of {what}")
            digest = upstream.checksum(listed, where.name)
            return digest, head.size, [Evidence(grade=Grade.PUBLISHED, source=source)]
        if known is not None and _unchanged(known, head):
            return known.digest, head.size, []
        copy = self._download(head.url, what)
        return copy.digest, copy.size, [Evidence(grade=Grade.FIRST_USE, source=head.url)]

    def _more(
        self, component: str, version: str, where: Published, url: str, digest: Digest, what: str
    ) -> list[Evidence]:
        """What else is said of it: signatures, GitHub's records."""
        found = []
        signed_by = COMPONENTS[component].signed if component in COMPONENTS else ""
        if signed_by == "certificate" and (signed := self._kubectl(url, digest, what)):
            found.append(signed)
        if signed_by == "bundle" and (signed := self._bundle(component, version, where, digest, what)):
            found.append(signed)
        release = components.owner(component).name
        if where.origin == "github" and (recorded := self.origins.assets(release, version).get(where.name)):
            source = self.origins.assets_url(release, version)
            if recorded != digest:
                raise _contradiction(what, digest, recorded, source)
            found.append(Evidence(grade=Grade.RECORDED, source=f"{source} (GitHub computed it at the upload)"))
        return found

    def _kubectl(self, url: str, digest: Digest, what: str) -> Evidence | None:
        signed = self.origins.content(f"{url}.sig", f"the signature of {what}")
        certificate = self.origins.content(f"{url}.cert", f"the certificate of {what}") if signed else None
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
            raise _forged(what, f"{url}.sig", error) from None
        return Evidence(
            grade=Grade.SIGNED,
            source=f"{url}.sig by {signature.KUBERNETES} (no entry of the transparency log is published beside it: the "
            "time of signing is not proven)",
        )

    def _bundle(self, component: str, version: str, where: Published, digest: Digest, what: str) -> Evidence | None:
        assert where.signature is not None
        url = self.origins.url(where.origin, where.signature)
        raw = self.origins.content(url, f"the signature of {what}")
        if raw is None:
            return None
        repository = f"https://github.com/{COMPONENTS[component].repository}"
        workflow = signature.Workflow(
            repository=repository, ref=f"refs/tags/{COMPONENTS[component].release_tag(version)}"
        )
        try:
            signature.check_bundle(raw, digest=digest, workflow=workflow, root=self._trusted())
        except signature.Unreadable as error:
            self.log.warn(f"the signature of {what} cannot be judged: {error}; its checksum stands alone")
            return None
        except VerificationFailed as error:
            raise _forged(what, url, error) from None
        return Evidence(grade=Grade.SIGNED, source=f"{url} by a workflow of {repository} at {workflow.ref}")

    def _trusted(self) -> TrustedRoot:
        with self._reading:
            if self._root is None:
                self._root = signature.trust()
            return self._root

    def _elsewhere(self, where: Published, url: str, digest: Digest, what: str) -> list[Evidence]:
        """The same file from another site: it corroborates what nobody publishes a checksum of.

        Mirrors that `fetch` uses are asked first: whoever named one is near it. One that only sends on to the vendor
        has said nothing.
        """
        ours = Evidence(grade=Grade.FIRST_USE, source=url)
        intent = self.origins.intent
        bases = (*intent.mirrors.get(where.origin, ()), *intent.witnesses.get(where.origin, ()))
        for base in dict.fromkeys(bases):
            there = Evidence(grade=Grade.FIRST_USE, source=f"{base}/{where.path}")
            if there.site in ("", ours.site):
                continue
            try:
                copy = self._download(there.source, what, Rules(longest=_PATIENCE))
            except UpstreamError as error:
                self.log.warn(f"{error.summary}; it corroborates nothing")
                continue
            if Evidence(grade=Grade.FIRST_USE, source=copy.url).site in ("", ours.site):
                self.log.warn(f"{what} from {there.site}: it sends on to {copy.url}; it corroborates nothing")
                continue
            if copy.digest != digest:
                raise _contradiction(what, digest, copy.digest, there.source)
            return [there]
        return []

    def _download(self, url: str, what: str, rules: Rules | None = None) -> Copy:
        """Download a file under the digest that it turns out to have; `fetch` need not bring it again.

        Raises UpstreamError.
        """
        downloader = Downloader(client=self.origins.client, rules=rules or Rules())
        file = File(name=what, urls=(url,))
        return downloader.download(file, self.cache / "sha256", self.transfers.start(what, None))


def _unchanged(known: Artifact, head: Head) -> bool:
    """Whether URL, size and strong ETag, as far as they are told, speak for the same bytes as when they were hashed."""
    sizes = known.size is None or head.size is None or known.size == head.size
    return known.url == head.url and sizes and (known.etag is None or head.etag is None or known.etag == head.etag)


def _contradiction(what: str, ours: Digest, theirs: Digest, source: str) -> DigestMismatch:
    return DigestMismatch(
        f"{what}: two witnesses contradict one another",
        expected=ours.text,
        found=theirs.text,
        where=transport.shown(source),
        next_step="find out which is right; nothing was locked. A mirror that is behind: take it out of versions.yaml",
    )


def _forged(what: str, source: str, error: VerificationFailed) -> VerificationFailed:
    return VerificationFailed(
        f"{what}: {error.summary}",
        expected=error.expected,
        found=error.found,
        where=transport.shown(source),
        next_step="do not use that file; nothing was locked. Ask the vendor",
    )
