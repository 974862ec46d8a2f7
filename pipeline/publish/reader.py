"""Anonymous reading of one repository, for checking what others see.

None of the code that pushes is used here: own requests, raw bytes, hashlib, and no credentials. Sources:
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
from pipeline.http.transport import AGAIN, registry_origin, shown

PAUSES = (1.0, 3.0)  # seconds before the second and third try
_AGAIN = AGAIN | {404}  # a registry may not show yet what it was given
_ABSENT = (400, 404, 405, 406)  # nothing is there, or the registry has no such kind of thing

_T = TypeVar("_T")


class _Absent(Exception):
    """Nothing is there."""


class Reader:
    """Raises VerificationFailed for what cannot be read."""

    def __init__(self, name: ImageName, client: httpx.Client, sleep: Callable[[float], None] = time.sleep) -> None:
        self.name = name
        self._base = f"{registry_origin(name)}/v2/{name.repository}"
        self._client = client
        self._sleep = sleep
        self._token = ""

    def manifest(self, reference: str, media_type: str) -> tuple[bytes, str]:
        """The raw bytes behind a tag or digest, and the media type that they are served as."""

        def take(answer: httpx.Response) -> tuple[bytes, str]:
            return answer.read(), answer.headers.get("Content-Type", "").partition(";")[0]

        return self._get(f"manifests/{reference}", media_type, take)

    def optional(self, path: str, accept: str) -> bytes | None:
        """What is at a path below the repository; None when there is nothing."""
        try:
            return self._get(path, accept, httpx.Response.read, absent=_ABSENT)
        except _Absent:
            return None

    def blob(self, digest: str) -> bytes:
        """A small blob, whole."""
        return self._get(f"blobs/{digest}", "*/*", httpx.Response.read)

    def hash(self, digest: str) -> tuple[int, str]:
        """Length and digest of a blob, streamed."""

        def take(answer: httpx.Response) -> tuple[int, str]:
            state, count = hashlib.sha256(), 0
            for chunk in answer.iter_raw():
                state.update(chunk)
                count += len(chunk)
            return count, f"sha256:{state.hexdigest()}"

        return self._get(f"blobs/{digest}", "*/*", take)

    def _get(self, path: str, accept: str, take: Callable[[httpx.Response], _T], *, absent: Sequence[int] = ()) -> _T:
        """`take` of the answer; tried again when the registry is busy or the connection breaks, also in the middle.

        `absent`: statuses that are an answer too; raises _Absent.
        """
        url = f"{self._base}/{path}"
        pauses = iter(PAUSES)
        asked = False
        while True:
            headers = {"Accept": accept, "Accept-Encoding": "identity"}
            if self._token:
                headers["Authorization"] = f"Bearer {self._token}"
            try:
                with self._client.stream("GET", url, headers=headers, follow_redirects=True) as answer:
                    if answer.status_code == 200:
                        return take(answer)
                    if answer.status_code in absent:
                        raise _Absent
                    challenge = answer.headers.get("WWW-Authenticate", "")
                    found, again = f"status {answer.status_code}", answer.status_code in _AGAIN
                if answer.status_code == 401 and not asked and (status := self._ask_token(challenge)):
                    asked = status == 200
                    if asked:
                        continue
                    found, again = f"status {status} of its token server", status in _AGAIN
            except httpx.HTTPError as error:
                found, again = str(error) or type(error).__name__, not isinstance(error, httpx.ConnectError)
            pause = next(pauses, None)
            if not again or pause is None:
                raise VerificationFailed(
                    f"{self.name} does not give {path.partition('/')[0]} to a reader without credentials",
                    expected="status 200",
                    found=found,
                    where=shown(url),
                    next_step="is it published, and is the repository public? Then again: nox -s verify",
                )
            self._sleep(pause)

    def _ask_token(self, challenge: str) -> int:
        """Ask the token server of the challenge for what anyone may do; its status, 0 without such a server."""
        words = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        if not challenge.lower().startswith("bearer") or "realm" not in words:
            return 0
        scope = {"service": words.get("service", ""), "scope": f"repository:{self.name.repository}:pull"}
        answer = self._client.get(httpx.URL(words["realm"]).copy_merge_params(scope))
        if answer.status_code == 200:
            document = answer.json()
            self._token = document.get("token") or document.get("access_token") or ""
        return answer.status_code
