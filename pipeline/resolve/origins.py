"""The vendors' servers as `resolve` asks them: each thing once, and only expected answers are answers."""

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

_THERE_OR_NOT = frozenset({200, 404})
_API_ANSWERS = frozenset({200, 401, 403, 404, 429})


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a server reports of a file without sending it."""

    url: str
    size: int | None  # bytes
    etag: str | None  # strong
    released: datetime | None  # when it was uploaded


class Origins:
    """The servers of an intent. Thread-safe; `token` is for GitHub's API and is sent nowhere else."""

    def __init__(self, intent: Intent, client: httpx.Client, log: Log, *, token: str | None = None) -> None:
        self.intent = intent
        self.client = client
        self.log = log
        self._token = token
        self._heads: dict[str, Head | None] = {}
        self._assets: dict[tuple[str, str], Mapping[str, Digest]] = {}
        self._asking = threading.Lock()

    def url(self, origin: str, path: str) -> str:
        """A path below an origin's base URL."""
        return f"{self.intent.upstream[origin]}/{path}"

    def text(self, origin: str, path: str, what: str) -> str:
        """A text that must be there. Raises UpstreamError."""
        return transport.get(self.client, self.url(origin, path), what=what).text

    def page(self, origin: str, path: str, what: str) -> str:
        """The path of the page that an address redirects to. Raises UpstreamError."""
        return transport.get(self.client, self.url(origin, path), what=what).url.path

    def content(self, url: str, what: str) -> bytes | None:
        """Bytes that may be missing. Raises UpstreamError for every other answer."""
        answer = transport.get(self.client, url, what=what, expected=_THERE_OR_NOT)
        return answer.content if answer.status_code == 200 else None

    def head(self, url: str, what: str) -> Head | None:
        """Return what HEAD reports of a file; None when it is missing. Raises UpstreamError for every other answer."""
        if url not in self._heads:
            answer = transport.get(self.client, url, what=what, method="HEAD", expected=_THERE_OR_NOT)
            head = Head(
                url=url,
                size=headers.length(answer),
                etag=headers.strong_etag(answer),
                released=headers.modified(answer),
            )
            self._heads[url] = head if answer.status_code == 200 else None
        return self._heads[url]

    def assets_url(self, component: str, version: str) -> str:
        """Where GitHub's API describes a release; empty where there is no such API."""
        base = self.intent.github_api
        return f"{base}/{upstream.assets_path(component, version)}" if base else ""

    def assets(self, component: str, version: str) -> Mapping[str, Digest]:
        """Return the digests that GitHub records of a release's files; none, with a warning, when it refuses.

        They are a second word on what a checksum file says already, so a quota that is used up stops nothing.
        """
        url = self.assets_url(component, version)
        if not url:
            return {}
        with self._asking:
            if (component, version) not in self._assets:
                try:
                    self._assets[component, version] = self._ask(url, f"GitHub's record of {component} {version}")
                except UpstreamError as error:
                    self._assets[component, version] = {}
                    self.log.warn(f"{error.summary}{f': {error.found}' if error.found else ''}; resolved without it")
            return self._assets[component, version]

    def _ask(self, url: str, what: str) -> Mapping[str, Digest]:
        sent = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
        if self._token and (url.startswith("https://") or urlsplit(url).hostname == "127.0.0.1"):
            sent["Authorization"] = f"Bearer {self._token}"
        answer = transport.get(self.client, url, what=what, expected=_API_ANSWERS, sent=sent)
        match answer.status_code:
            case 200:
                return upstream.assets(answer.text)
            case 404:
                raise UpstreamError(f"{what}: it knows no such release")
            case 401:
                raise UpstreamError(f"{what}: it does not accept the token in GITHUB_TOKEN")
            case _ if answer.headers.get("X-RateLimit-Remaining") == "0" or "Retry-After" in answer.headers:
                hint = "" if self._token else "; with a token in GITHUB_TOKEN it is larger"
                raise UpstreamError(f"{what}: the API's quota is used up{_until(answer)}{hint}")
            case status:
                raise UpstreamError(f"{what}: it refuses", found=f"status {status}")


def _until(answer: httpx.Response) -> str:
    """When GitHub's quota is renewed, as it says itself (seconds since 1970)."""
    with suppress(ValueError, OverflowError, OSError):
        reset = datetime.fromtimestamp(int(answer.headers.get("X-RateLimit-Reset", "")), UTC)
        return f" until {reset:%H:%M} UTC"
    return ""
