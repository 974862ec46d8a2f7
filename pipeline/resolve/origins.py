"""The vendors' servers: requests of `resolve`, with a cache for HEAD and GitHub's API."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx

from pipeline.core.errors import UpstreamError
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.http import headers, transport
from pipeline.inputs.versions import Intent
from pipeline.resolve import upstream

_OPTIONAL = frozenset({200, 404})
_API = frozenset({200, 401, 403, 404, 429})


@dataclass(frozen=True, kw_only=True)
class Head:
    """The response to HEAD of a file."""

    url: str
    size: int | None  # bytes
    etag: str | None  # strong
    released: datetime | None  # when it was uploaded


class Origins:
    """The servers of versions.yaml. Thread-safe. `token` is only sent to GitHub's API."""

    def __init__(self, intent: Intent, client: httpx.Client, log: Log, *, token: str | None = None) -> None:
        self.intent = intent
        self.client = client
        self.log = log
        self._token = token
        self._heads: dict[str, Head | None] = {}
        self._assets: dict[tuple[str, str], Mapping[str, Digest]] = {}
        self._api = threading.Lock()

    def url(self, origin: str, path: str) -> str:
        """Return the URL of a path of an origin."""
        return f"{self.intent.upstream[origin]}/{path}"

    def text(self, origin: str, path: str, what: str) -> str:
        """Return a text. Raises UpstreamError."""
        return transport.get(self.client, self.url(origin, path), what=what).text

    def content(self, url: str, what: str) -> bytes | None:
        """Return a file; None for 404. Raises UpstreamError."""
        response = transport.get(self.client, url, what=what, expected=_OPTIONAL)
        return response.content if response.status_code == 200 else None

    def head(self, url: str, what: str) -> Head | None:
        """Return the response to HEAD; None for 404. Raises UpstreamError."""
        if url not in self._heads:
            response = transport.get(self.client, url, what=what, method="HEAD", expected=_OPTIONAL)
            head = Head(
                url=url,
                size=headers.length(response),
                etag=headers.strong_etag(response),
                released=headers.modified(response),
            )
            self._heads[url] = head if response.status_code == 200 else None
        return self._heads[url]

    def assets_url(self, component: str, version: str) -> str:
        """Return the URL of a release in GitHub's API; empty without an API."""
        base = self.intent.github_api
        return f"{base}/{upstream.assets_path(component, version)}" if base else ""

    def assets(self, component: str, version: str) -> Mapping[str, Digest]:
        """Return the digests that GitHub records for a release's files; none, with a warning, if it refuses.

        They only confirm a checksum file, so an exhausted quota does not stop the run.
        """
        url = self.assets_url(component, version)
        if not url:
            return {}
        with self._api:
            if (component, version) not in self._assets:
                try:
                    self._assets[component, version] = self._request(url, f"GitHub's record of {component} {version}")
                except UpstreamError as error:
                    self._assets[component, version] = {}
                    self.log.warn(f"{error.summary}{f': {error.found}' if error.found else ''}; resolved without it")
            return self._assets[component, version]

    def _request(self, url: str, what: str) -> Mapping[str, Digest]:
        sent = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
        if self._token and (url.startswith("https://") or urlsplit(url).hostname == "127.0.0.1"):
            sent["Authorization"] = f"Bearer {self._token}"
        response = transport.get(self.client, url, what=what, expected=_API, sent=sent)
        match response.status_code:
            case 200:
                return upstream.assets(response.text)
            case 404:
                raise UpstreamError(f"{what}: no such release")
            case 401:
                raise UpstreamError(f"{what}: invalid token in GITHUB_TOKEN")
            case _ if response.headers.get("X-RateLimit-Remaining") == "0" or "Retry-After" in response.headers:
                hint = "" if self._token else "; a token in GITHUB_TOKEN raises it"
                raise UpstreamError(f"{what}: the API's quota is exhausted{_until(response)}{hint}")
            case status:
                raise UpstreamError(f"{what}: denied", found=f"status {status}")


def _until(response: httpx.Response) -> str:
    """Return when GitHub renews the quota, from its header (seconds since 1970)."""
    with suppress(ValueError, OverflowError, OSError):
        reset = datetime.fromtimestamp(int(response.headers.get("X-RateLimit-Reset", "")), UTC)
        return f" until {reset:%H:%M} UTC"
    return ""
