"""One repository of a registry, over the registry's HTTP API: read it, push an OCI layout into it, tag it.

Source: https://github.com/opencontainers/distribution-spec/blob/main/spec.md. Image bytes are never rewritten, so a
digest is the same here, in the layout and in every registry.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import httpx

from pipeline.core.errors import RegistryError
from pipeline.core.log import Log, Transfers
from pipeline.core.names import ANY_MANIFEST, INDEX, Digest, ImageName
from pipeline.http.transport import registry_origin
from pipeline.oci import layout as layouts
from pipeline.oci.credentials import Challenge, Credentials
from pipeline.oci.index import Document, annotations_of

__all__ = ["Credentials", "Manifest", "Pushed", "Registry"]

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds between attempts
_LONGEST_PAUSE = 60.0  # seconds; the limit of Retry-After
_AT_ONCE = 3  # blobs
_CHUNK = 1 << 20
NO_SUCH_LIST = (400, 404, 405, 406)  # statuses of registries without a referrers API

# After the last byte of a layer a registry can copy it to its storage before it responds.
_UPLOAD = httpx.Timeout(30.0, read=300.0)  # seconds

# `identity`: the digest is of the stored bytes, which a proxy could compress.
_AS_STORED = {"Accept-Encoding": "identity"}

_T = TypeVar("_T")


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


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """The result of a push; manifests count like blobs."""

    sent: int  # files
    skipped: int  # files that the repository had
    bytes_sent: int
    bytes_skipped: int


class _Retry(Exception):
    """A failure to retry; `pause`: seconds that the registry requests."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One request to the repository, and its expected statuses."""

    method: str
    path: str | httpx.URL  # relative to the repository's address
    expect: tuple[int, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Callable[[], Iterator[bytes]] | None = None
    write: bool = False  # with a token that allows push
    stream: bool = False

    @property
    def actions(self) -> str:
        """The actions that its token must allow."""
        return "pull,delete" if self.method == "DELETE" else "pull,push" if self.write else "pull"


class Registry:
    """One repository. HTTPS; on loopback plain HTTP if the registry supports nothing else.

    Every method raises RegistryError if the registry refuses, contradicts itself or stays unreachable: broken
    connections, timeouts, 429 and 5xx are retried with growing pauses. Everything else is final, also a refused
    connection, since a retry within seconds would not help.
    """

    def __init__(
        self,
        client: httpx.Client,
        name: ImageName,
        credentials: Credentials | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = name
        self._client = client
        self._credentials = credentials
        self._sleep = sleep
        self._authorization: dict[str, str] = {}  # actions → value of the header
        self._authorizing = threading.Lock()

    @cached_property
    def _origin(self) -> httpx.URL:
        return httpx.URL(registry_origin(self.name))

    @property
    def _base(self) -> httpx.URL:
        return self._origin.join(f"/v2/{self.name.repository}/")

    def manifest(self, reference: str) -> Manifest | None:
        """Return the manifest or index of a tag or digest; None if it does not exist."""
        headers = {"Accept": ", ".join(ANY_MANIFEST), **_AS_STORED}
        response = self._ask("GET", f"manifests/{reference}", expect=(200, 404), headers=headers)
        if response.status_code == 404:
            return None
        raw = response.content
        digest = Digest.of(raw)
        stated = response.headers.get("Docker-Content-Digest", digest.text)
        expected = reference if reference.startswith("sha256:") else stated
        if digest.text != stated or digest.text != expected:
            raise RegistryError(
                "the registry sent a manifest with another digest",
                expected=expected,
                found=digest.text,
                where=f"{self.name}:{reference}",
            )
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        return Manifest(raw=raw, media_type=media_type, digest=digest)

    @contextmanager
    def blob(self, digest: Digest) -> Iterator[Iterator[bytes]]:
        """Stream a blob and hash it. Raises RegistryError at the end if its digest differs.

        Resumes after a broken connection.
        """
        chunks = self._chunks(digest)
        try:
            yield chunks
        finally:
            chunks.close()

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

    @property
    def url(self) -> str:
        """The repository's address in the registry's API."""
        return str(self._base).rstrip("/")

    def ping(self) -> None:
        """Request the API's root (end-1 of the specification)."""
        self._ask("GET", self._origin.join("/v2/"), expect=(200, 401))

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
        url: httpx.URL | None = self._base.join(path)
        while url is not None:
            response = self._ask("GET", url, **options)
            yield response
            following = response.links.get("next", {}).get("url")
            url = url.join(following) if following else None

    def tag(self, tag: str, raw: bytes, media_type: str) -> None:
        """Point a tag at a manifest or index of the repository, by pushing its bytes again."""
        self._put_manifest(tag, raw, media_type)

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
            try:
                entries += [entry for entry in page.json()["manifests"] if isinstance(entry["digest"], str)]
            except (ValueError, KeyError, TypeError):
                raise RegistryError(
                    "the list of referrers cannot be read",
                    expected=INDEX,
                    found=page.text[:80],
                    where=str(page.url),
                ) from None
        return entries

    def push_blobs(self, blobs: tuple[layouts.Part, ...], log: Log) -> None:
        """Push the files that the repository does not have."""
        with log.transfers() as transfers:
            self._push_blobs(blobs, transfers)

    def push_layout(self, layout: Path, index: Digest, log: Log) -> Pushed:
        """Push the index and everything below it into the repository, without any tag.

        Blobs first, at most three at once, then the manifests, then the index, so that nothing in the repository ever
        lacks a part. Existing files are skipped, so another call completes an interrupted push. Raises DigestMismatch
        if the layout is not complete.
        """
        parts = layouts.read(layout, index)
        with log.transfers() as transfers:
            sent = self._push_blobs(parts.blobs, transfers)
        for part in (*parts.manifests, parts.index):
            if not self.has("manifests", part.digest):
                self._put_manifest(part.digest.text, part.path.read_bytes(), part.media_type)
                sent.append(part)
        everything = tuple(parts)
        bytes_sent = sum(part.size for part in sent)
        return Pushed(
            sent=len(sent),
            skipped=len(everything) - len(sent),
            bytes_sent=bytes_sent,
            bytes_skipped=sum(part.size for part in everything) - bytes_sent,
        )

    def _push_blobs(self, blobs: tuple[layouts.Part, ...], transfers: Transfers) -> list[layouts.Part]:
        """Push missing blobs and return them. The first failure stops the others."""
        stop = threading.Event()

        def push(blob: layouts.Part) -> bool:
            if self.has("blobs", blob.digest):
                return False
            self._retrying(lambda: self._upload(blob, transfers, stop))
            return True

        pool = ThreadPoolExecutor(max_workers=_AT_ONCE)
        try:
            futures = {pool.submit(push, blob): blob for blob in blobs}
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done() and (failure := future.exception()):
                    raise failure
            return [blob for future, blob in futures.items() if future.result()]
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _upload(self, blob: layouts.Part, transfers: Transfers, stop: threading.Event) -> None:
        """Upload a file once: open an upload, send the file, close it with the digest for the registry to check."""
        if stop.is_set():
            raise RegistryError("stopped")
        opening = _Request(
            method="POST", path="blobs/uploads/", expect=(202,), headers={"Content-Length": "0"}, write=True
        )
        opened = self._send(opening)
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
        self._send(_Request(method="PUT", path=url, expect=(201,), headers=headers, body=body, write=True))

    def _put_manifest(self, reference: str, raw: bytes, media_type: str) -> None:
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
        if stored != digest.text:
            raise RegistryError(
                "the registry stored a manifest with another digest",
                expected=digest.text,
                found=stored,
                where=f"{self.name}:{reference}",
            )

    def _chunks(self, digest: Digest) -> Generator[bytes, None, None]:
        state, received, failures = hashlib.sha256(), 0, 0
        while True:
            headers = {**_AS_STORED, **({"Range": f"bytes={received}-"} if received else {})}
            response = self._ask("GET", f"blobs/{digest}", expect=(200, 206), headers=headers, stream=True)
            # A server without support for Range starts again; the known bytes are skipped.
            skip = received if response.status_code == 200 else 0
            try:
                for chunk in response.iter_raw():
                    fresh, skip = chunk[skip:], max(0, skip - len(chunk))
                    if fresh:
                        state.update(fresh)
                        received += len(fresh)
                        failures = 0
                        yield fresh
                break
            except httpx.TransportError as error:
                if failures >= len(PAUSES):
                    raise self._unreachable(_reason(error)) from None
                self._sleep(PAUSES[failures])
                failures += 1
            finally:
                response.close()
        if state.hexdigest() != digest.hex:
            raise RegistryError(
                "the registry sent a blob with another digest",
                expected=digest.text,
                found=f"sha256:{state.hexdigest()}, {received} B",
                where=f"{self.name}@{digest}",
            )

    def _ask(self, method: str, path: str | httpx.URL, **options: Any) -> httpx.Response:
        """`_send` with retries."""
        return self._retrying(lambda: self._send(_Request(method=method, path=path, **options)))

    def _retrying(self, attempt: Callable[[], _T]) -> _T:
        pauses = iter(PAUSES)
        while True:
            try:
                return attempt()
            except _Retry as retry:
                pause = next(pauses, None)
                if pause is None:
                    raise self._unreachable(f"{retry}, {len(PAUSES) + 1} times") from None
                self._sleep(pause if retry.pause is None else min(retry.pause, _LONGEST_PAUSE))

    def _send(self, request: _Request) -> httpx.Response:
        """Send a request and return its response, of a status in `expect`; renew a refused token once."""
        actions, url = request.actions, request.path
        if not isinstance(url, httpx.URL):
            url = self._base.join(url)
        # A second attempt only after the registry has requested credentials.
        for renew in (False, True):
            headers = {**request.headers, **self._authorized(actions, url)}
            options: dict[str, Any] = {"content": request.body(), "timeout": _UPLOAD} if request.body else {}
            sent = self._client.build_request(request.method, url, headers=headers, **options)
            try:
                # Downloads of layers are redirected to other hosts; httpx does not send Authorization there.
                follow = request.method in ("GET", "HEAD")
                response = self._client.send(sent, stream=request.stream, follow_redirects=follow)
            except httpx.ConnectError as error:
                raise self._unreachable(_reason(error)) from None
            except (httpx.RequestError, httpx.InvalidURL) as error:
                raise _Retry(_reason(error)) from None
            if response.status_code in request.expect:
                return response
            if request.stream:
                response.read()
                response.close()
            if response.status_code == 401 and not renew and self._authorize(response, actions):
                continue
            break
        if response.status_code == 429 or response.status_code >= 500:
            pause = response.headers.get("Retry-After", "")
            raise _Retry(f"status {response.status_code}", float(pause) if pause.isdigit() else None)
        if response.status_code in (401, 403):
            raise RegistryError(
                f"{self.name.registry} denied {'push' if request.write else 'pull'} access",
                expected=f"the right to {actions.replace(',', ' and ')} {self.name.repository}",
                found=f"status {response.status_code}, "
                + (f"as {self._credentials.username}" if self._credentials else "without credentials"),
                next_step=f"docker login {self.name.registry}",
            )
        raise RegistryError(
            f"{self.name.registry} sent an unexpected response",
            expected=f"status {' or '.join(map(str, request.expect))}",
            found=f"status {response.status_code}{_reason_of(response)}",
            where=f"{request.method} {url.copy_with(query=None)}",
        )

    def _authorized(self, actions: str, url: httpx.URL) -> dict[str, str]:
        # An upload can go to another host, which must not get our token.
        value = self._authorization.get(actions) if url.netloc == self._base.netloc else None
        return {"Authorization": value} if value else {}

    def _authorize(self, refused: httpx.Response, actions: str) -> bool:
        """Get a token for a challenge; return False if that is not possible. Threads wait for the first one's token."""
        challenge = Challenge.of(refused.headers.get_list("WWW-Authenticate"))
        if challenge is None:
            return False
        with self._authorizing:
            tried = refused.request.headers.get("Authorization")
            if self._authorization.get(actions) not in (None, tried):
                return True
            if challenge.scheme == "basic":
                if self._credentials is None:
                    return False
                self._authorization[actions] = self._credentials.basic
                return True
            self._authorization[actions] = f"Bearer {self._token(challenge, actions)}"
            return True

    def _token(self, challenge: Challenge, actions: str) -> str:
        """Request a token for the repository from the registry's token server; anonymous without credentials."""
        scope = {"service": challenge.service, "scope": f"repository:{self.name.repository}:{actions}"}
        headers = {"Authorization": self._credentials.basic} if self._credentials else {}
        try:
            realm = httpx.URL(challenge.realm)
        except httpx.InvalidURL as error:
            raise RegistryError(f"{self.name.registry} names an invalid token server", found=str(error)) from None
        if realm.scheme != "https" and not self.name.is_loopback:
            raise RegistryError(
                f"{self.name.registry} requests credentials over plain HTTP",
                expected="a token server at https://…",
                found=f"{realm.scheme}://{realm.host}",
                next_step="ask the operator of that registry; nothing was sent",
            )
        try:
            response = self._client.get(realm.copy_merge_params(scope), headers=headers)
        except httpx.ConnectError as error:
            raise self._unreachable(f"its token server {realm.host}: {_reason(error)}") from None
        except httpx.RequestError as error:
            raise _Retry(f"its token server {realm.host}: {_reason(error)}") from None
        if response.status_code == 429 or response.status_code >= 500:
            raise _Retry(f"its token server: status {response.status_code}")
        if response.status_code != 200:
            raise RegistryError(
                f"{self.name.registry} did not accept the credentials",
                found=f"status {response.status_code} of its token server",
                next_step=f"docker login {self.name.registry}",
            )
        try:
            document = response.json()
            return str(document.get("token") or document["access_token"])
        except (ValueError, KeyError, AttributeError):
            raise RegistryError(
                f"the token server of {self.name.registry} returned no token", where=realm.host
            ) from None

    def _unreachable(self, reason: str) -> RegistryError:
        next_step = "check the network and the registry's status page, then run the same command again: "
        next_step += "what was pushed is not pushed again"
        if "status 429" in reason and self._credentials is None:
            next_step = f"docker login {self.name.registry}: anonymous clients have a lower rate limit"
        return RegistryError(
            f"{self.name.registry} is not available", found=reason, where=str(self._base), next_step=next_step
        )


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _reason_of(response: httpx.Response) -> str:
    """Return the registry's error (distribution-spec, "Error Codes") in one line."""
    try:
        errors = response.json()["errors"]
        return ": " + "; ".join(f"{entry['code']} {entry.get('message', '')}".strip() for entry in errors)[:200]
    except (ValueError, KeyError, TypeError):
        return ""
