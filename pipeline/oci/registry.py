"""One repository of a registry, over the registry's HTTP API: read it, push an OCI layout into it, tag it.

Source: https://github.com/opencontainers/distribution-spec/blob/main/spec.md. Image bytes are never rewritten, so a
digest is the same here, in the layout and in every registry.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from pipeline.core.errors import RegistryError
from pipeline.core.log import Log, Transfers
from pipeline.core.names import ANY_MANIFEST, INDEX, Digest, ImageName
from pipeline.http import retries
from pipeline.oci import layout as layouts
from pipeline.oci.credentials import Credentials
from pipeline.oci.index import Document, annotations_of
from pipeline.oci.session import Request, Session

__all__ = ["Credentials", "Manifest", "Registry"]

_AT_ONCE = 3  # blobs
_CHUNK = 1 << 20
NO_SUCH_LIST = (400, 404, 405, 406)  # statuses of registries without a referrers API

# `identity`: the digest is of the stored bytes, which a proxy could compress.
_AS_STORED = {"Accept-Encoding": "identity"}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest or index with the exact bytes of the registry."""

    raw: bytes
    media_type: str
    digest: Digest  # of `raw`

    @property
    def document(self) -> Document:
        """The parsed JSON. Raises ValueError."""
        document: Document = json.loads(self.raw)
        return document

    @property
    def annotations(self) -> Mapping[str, str]:
        """The annotations; empty if it has none. Raises ValueError."""
        return annotations_of(self.document)


def media_type_of(response: httpx.Response) -> str:
    """Return the Content-Type of a response, without its parameters."""
    return str(response.headers.get("Content-Type", "")).partition(";")[0].strip()


def listed(raw: bytes, where: str) -> list[dict[str, Any]]:
    """Return the entries of a list of referrers. Raises RegistryError."""
    try:
        return [entry for entry in json.loads(raw)["manifests"] if isinstance(entry["digest"], str)]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RegistryError(
            "the list of referrers cannot be read",
            expected=INDEX,
            found=repr(raw[:80]),
            where=where,
            next_step="if that is a tag with other content: look at it, and delete it if it is unused",
        ) from None


class Registry:
    """One repository. HTTPS; on loopback plain HTTP if the registry supports nothing else.

    Every method raises RegistryError if the registry refuses, contradicts itself or stays unavailable: retries.py has
    the policy.
    """

    def __init__(
        self,
        client: httpx.Client,
        name: ImageName,
        credentials: Credentials | None = None,
        *,
        sleep: retries.Sleep = time.sleep,
    ) -> None:
        self.name = name
        self._session = Session(client, name, credentials, sleep)
        self._ask = self._session.ask

    @property
    def url(self) -> str:
        """The repository's address in the registry's API."""
        return str(self._session.base).rstrip("/")

    def manifest(self, reference: str) -> Manifest | None:
        """Return the manifest or index of a tag or digest; None if it does not exist."""
        response = self.read(f"manifests/{reference}", ANY_MANIFEST, expect=(200, 404))
        if response.status_code == 404:
            return None
        digest = Digest.of(response.content)
        stated = response.headers.get("Docker-Content-Digest", digest.text)
        for expected in (stated, reference) if reference.startswith("sha256:") else (stated,):
            self._require("the registry sent a manifest with another digest", expected, digest.text, reference)
        return Manifest(raw=response.content, media_type=media_type_of(response), digest=digest)

    def read(self, path: str, accept: Sequence[str], *, expect: tuple[int, ...], late: bool = False) -> httpx.Response:
        """Return the response to a GET of stored bytes below the repository, not checked; `late`: as in Request."""
        headers = {"Accept": ", ".join(accept), **_AS_STORED}
        return self._ask("GET", path, expect=expect, headers=headers, late=late)

    def _require(self, summary: str, expected: str, actual: str, reference: str) -> None:
        if actual != expected:
            raise RegistryError(summary, expected=expected, found=actual, where=f"{self.name}:{reference}")

    def blob(self, digest: Digest) -> closing[Generator[bytes, None, None]]:
        """Stream a blob as `chunks` does. Raises RegistryError at the end if its digest differs."""
        return closing(self._checked(digest))

    def _checked(self, digest: Digest) -> Generator[bytes, None, None]:
        state = hashlib.sha256()
        for chunk in self.chunks(digest):
            state.update(chunk)
            yield chunk
        actual = f"sha256:{state.hexdigest()}"
        self._require("the registry sent a blob with another digest", digest.text, actual, digest.text)

    def chunks(self, digest: Digest, *, late: bool = False) -> Generator[bytes, None, None]:
        """Stream a blob, not checked; resume after a broken connection. `late`: as in Request."""
        received, pauses = 0, iter(retries.PAUSES)
        while True:
            headers = {**_AS_STORED, **({"Range": f"bytes={received}-"} if received else {})}
            response = self._ask("GET", f"blobs/{digest}", expect=(200, 206), headers=headers, stream=True, late=late)
            # A server without support for Range starts again; the known bytes are skipped.
            skip = received if response.status_code == 200 else 0
            try:
                for chunk in response.iter_raw():
                    fresh, skip = chunk[skip:], max(0, skip - len(chunk))
                    if fresh:
                        received += len(fresh)
                        pauses = iter(retries.PAUSES)
                        yield fresh
                return
            except httpx.TransportError as error:
                if (pause := next(pauses, None)) is None:
                    raise self._session.unavailable(retries.reason(error)) from None
                self._session.sleep(retries.pause_after(None, pause))
            finally:
                response.close()

    def download(self, digest: Digest, path: Path, advance: Callable[[int], object] = lambda _: None) -> int:
        """Download a blob to a file atomically; return its size. `advance` is called with each chunk's size."""
        partial = path.with_name(f".{path.name}.partial")
        try:
            with self.blob(digest) as chunks, partial.open("wb") as stream:
                for chunk in chunks:
                    stream.write(chunk)
                    advance(len(chunk))
                count = stream.tell()
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return count

    def has(self, kind: str, digest: Digest, *, write: bool = True) -> bool:
        """Return whether the repository has it; `kind`: `blobs` or `manifests`; `write`: with a token for push."""
        headers = {"Accept": ", ".join(ANY_MANIFEST)}
        response = self._ask("HEAD", f"{kind}/{digest}", expect=(200, 404), headers=headers, write=write)
        return response.status_code == 200

    def tags(self) -> tuple[str, ...]:
        """Return all tags of the repository, sorted; none if it does not exist."""
        pages = self._pages("tags/list?n=1000", expect=(200, 404))
        return tuple(sorted(tag for page in pages if page.status_code == 200 for tag in page.json().get("tags") or ()))

    def _pages(self, path: str, **options: Any) -> Iterator[httpx.Response]:
        """Yield the responses of a paginated list."""
        url: httpx.URL | None = self._session.base.join(path)
        while url is not None:
            response = self._ask("GET", url, **options)
            yield response
            following = response.links.get("next", {}).get("url")
            url = url.join(following) if following else None

    def tag(self, reference: str, raw: bytes, media_type: str) -> None:
        """Push a manifest or index under a tag or its digest; what it refers to must be in the repository."""
        digest = Digest.of(raw)
        response = self._ask(
            "PUT",
            f"manifests/{reference}",
            expect=(201,),
            headers={"Content-Type": media_type},
            body=lambda: iter((raw,)),
            write=True,
        )
        stored = response.headers.get("Docker-Content-Digest", digest.text)
        self._require("the registry stored a manifest with another digest", digest.text, stored, reference)

    def delete(self, digest: Digest) -> None:
        """Remove a manifest or index with its tags, if it exists.

        Docker Hub and ghcr.io do not support this (distribution-spec, "Content Management", is optional); ghcr.io has a
        separate API: github_packages.py.
        """
        response = self._ask("DELETE", f"manifests/{digest}", expect=(202, 200, 404, 405), write=True)
        if response.status_code == 405:
            raise RegistryError(
                f"{self.name.registry} does not support the deletion of manifests by its API",
                expected="status 202",
                found="status 405",
                where=f"{self.name}@{digest}",
                next_step="delete manually what `nox -s retention` lists, or enable deletion in that registry",
            )

    def referrers(self, subject: Digest) -> list[dict[str, Any]] | None:
        """Return the descriptors of a manifest's referrers; None if the registry has no referrers API.

        The specification requires 404 for that; some registries use other statuses.
        """
        entries: list[dict[str, Any]] = []
        headers = {"Accept": INDEX, **_AS_STORED}
        for page in self._pages(f"referrers/{subject}", expect=(200, *NO_SUCH_LIST), headers=headers):
            if page.status_code != 200:
                return None
            entries += listed(page.content, str(page.url))
        return entries

    def push_layout(self, layout: Path, index: Digest, log: Log) -> list[layouts.Part]:
        """Push the index and everything below it into the repository, without any tag; return what was sent.

        Blobs first, at most three at once, then the manifests, then the index, so that nothing in the repository ever
        lacks a part. Existing files are skipped, so another call completes an interrupted push. Raises DigestMismatch
        if the layout is not complete.
        """
        parts = layouts.read(layout, index)
        sent = self.push_blobs(parts.blobs, log)
        for part in (*parts.manifests, parts.index):
            if not self.has("manifests", part.digest):
                self.tag(part.digest.text, part.path.read_bytes(), part.media_type)
                sent.append(part)
        return sent

    def push_blobs(self, blobs: Sequence[layouts.Part], log: Log) -> list[layouts.Part]:
        """Push the files that the repository does not have, and return them. The first failure stops the others."""
        stop = threading.Event()

        def push(blob: layouts.Part) -> bool:
            if self.has("blobs", blob.digest):
                return False
            retries.retrying(lambda: self._upload(blob, transfers, stop), self._session.sleep)
            return True

        with log.transfers() as transfers, ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            futures = {pool.submit(push, blob): blob for blob in blobs}
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [blob for future, blob in futures.items() if future.result()]

    def _upload(self, blob: layouts.Part, transfers: Transfers, stop: threading.Event) -> None:
        """Upload a file once: open an upload, send the file, close it with the digest for the registry to check."""
        if stop.is_set():
            raise RegistryError("stopped")
        opened = self._session.send(
            Request(method="POST", path="blobs/uploads/", expect=(202,), headers={"Content-Length": "0"}, write=True)
        )
        location = opened.request.url.join(opened.headers["Location"])
        transfer = transfers.start(f"push {blob.digest.short}", blob.size)

        def body() -> Iterator[bytes]:
            with blob.path.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    if stop.is_set():
                        raise RegistryError("stopped")
                    yield chunk
                    transfer.advance(len(chunk))

        headers = {"Content-Length": str(blob.size), "Content-Type": "application/octet-stream"}
        url = location.copy_merge_params({"digest": blob.digest.text})
        self._session.send(Request(method="PUT", path=url, expect=(201,), headers=headers, body=body, write=True))
