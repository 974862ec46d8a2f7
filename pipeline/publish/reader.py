"""Anonymous reading of one repository, to check what others see.

Shares no code with push: its own requests, raw bytes, hashlib, and no credentials. Sources:
https://github.com/opencontainers/distribution-spec/blob/main/spec.md, distribution's docs/spec/auth/token.md.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import httpx

from pipeline.core.errors import VerificationFailed
from pipeline.core.names import ImageName
from pipeline.http.retries import AGAIN
from pipeline.http.transport import registry_origin, shown

PAUSES = (1.0, 3.0)  # seconds before the second and third try
_AGAIN = AGAIN | {404}  # a registry can be slow to show what was pushed
_ABSENT = (400, 404, 405, 406)  # the object does not exist, or the registry has no such API

_T = TypeVar("_T")


class _Absent(Exception):
    """The object does not exist."""


class Reader:
    """Reads one repository. Methods raise VerificationFailed for what cannot be read."""

    def __init__(self, name: ImageName, client: httpx.Client, sleep: Callable[[float], None] = time.sleep) -> None:
        self.name = name
        self._base = f"{registry_origin(name)}/v2/{name.repository}"
        self._client = client
        self._sleep = sleep
        self._token = ""

    def manifest(self, reference: str, media_type: str) -> tuple[bytes, str]:
        """Return the raw bytes of a tag or digest, and their media type."""

        def take(response: httpx.Response) -> tuple[bytes, str]:
            return response.read(), response.headers.get("Content-Type", "").partition(";")[0]

        return self._get(f"manifests/{reference}", media_type, take)

    def optional(self, path: str, accept: str) -> bytes | None:
        """Return the bytes at a path below the repository; None if it does not exist."""
        try:
            return self._get(path, accept, httpx.Response.read, absent=_ABSENT)
        except _Absent:
            return None

    def blob(self, digest: str) -> bytes:
        """Return a small blob."""
        return self._get(f"blobs/{digest}", "*/*", httpx.Response.read)

    def hash(self, digest: str) -> tuple[int, str]:
        """Stream a blob; return its length and digest."""

        def take(response: httpx.Response) -> tuple[int, str]:
            state, count = hashlib.sha256(), 0
            for chunk in response.iter_raw():
                state.update(chunk)
                count += len(chunk)
            return count, f"sha256:{state.hexdigest()}"

        return self._get(f"blobs/{digest}", "*/*", take)

    def _get(self, path: str, accept: str, take: Callable[[httpx.Response], _T], *, absent: Sequence[int] = ()) -> _T:
        """Return `take` of the response; retry when the registry is busy or the connection breaks, also in the middle.

        `absent`: statuses for which it raises _Absent.
        """
        url = f"{self._base}/{path}"
        pauses = iter(PAUSES)
        authorized = False
        while True:
            headers = {"Accept": accept, "Accept-Encoding": "identity"}
            if self._token:
                headers["Authorization"] = f"Bearer {self._token}"
            try:
                with self._client.stream("GET", url, headers=headers, follow_redirects=True) as response:
                    if response.status_code == 200:
                        return take(response)
                    if response.status_code in absent:
                        raise _Absent
                    challenge = response.headers.get("WWW-Authenticate", "")
                    reason, retry = f"status {response.status_code}", response.status_code in _AGAIN
                if response.status_code == 401 and not authorized and (status := self._request_token(challenge)):
                    authorized = status == 200
                    if authorized:
                        continue
                    reason, retry = f"status {status} of its token server", status in _AGAIN
            except httpx.HTTPError as error:
                reason, retry = str(error) or type(error).__name__, not isinstance(error, httpx.ConnectError)
            pause = next(pauses, None)
            if not retry or pause is None:
                raise VerificationFailed(
                    f"cannot read {path.partition('/')[0]} of {self.name} without credentials",
                    expected="status 200",
                    found=reason,
                    where=shown(url),
                    next_step="is it published, and is the repository public? Then again: nox -s verify",
                )
            self._sleep(pause)

    def _request_token(self, challenge: str) -> int:
        """Request an anonymous token from the server of the challenge; return its status, 0 without such a server."""
        words = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        if not challenge.lower().startswith("bearer") or "realm" not in words:
            return 0
        scope = {"service": words.get("service", ""), "scope": f"repository:{self.name.repository}:pull"}
        response = self._client.get(httpx.URL(words["realm"]).copy_merge_params(scope))
        if response.status_code == 200:
            document = response.json()
            self._token = document.get("token") or document.get("access_token") or ""
        return response.status_code
