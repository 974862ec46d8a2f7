"""Requests to one repository of a registry: its address, authorization, retries and errors.

Source: https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import httpx

from pipeline.core.errors import RegistryError
from pipeline.core.names import ImageName
from pipeline.http.retries import Retry, Sleep, failed, reason, retrying
from pipeline.http.transport import registry_origin
from pipeline.oci.credentials import Challenge, Credentials

# After the last byte of a layer a registry can copy it to its storage before it responds.
_UPLOAD = httpx.Timeout(30.0, read=300.0)  # seconds


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request to the repository, and its expected statuses."""

    method: str
    path: str | httpx.URL  # relative to the repository's address
    expect: tuple[int, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Callable[[], Iterator[bytes]] | None = None
    write: bool = False  # with a token that allows push
    stream: bool = False
    late: bool = False  # retry a 404: a registry can be slow to show what was pushed

    @property
    def actions(self) -> str:
        """The actions that its token must allow."""
        return "pull,delete" if self.method == "DELETE" else "pull,push" if self.write else "pull"


class Session:
    """Thread-safe. Methods raise RegistryError."""

    def __init__(self, client: httpx.Client, name: ImageName, credentials: Credentials | None, sleep: Sleep) -> None:
        self.sleep = sleep
        self._client, self._name, self._credentials = client, name, credentials
        self._authorization: dict[str, str] = {}  # actions → value of the header
        self._authorizing = threading.Lock()

    @cached_property
    def base(self) -> httpx.URL:
        """The repository's address in the registry's API, with a trailing slash."""
        return httpx.URL(f"{registry_origin(self._name)}/v2/{self._name.repository}/")

    def ask(self, method: str, path: str | httpx.URL, **options: Any) -> httpx.Response:
        """Send a request with retries; `options`: the other fields of Request."""
        return retrying(lambda: self.send(Request(method=method, path=path, **options)), self.sleep)

    def send(self, request: Request) -> httpx.Response:
        """Send a request once and return its response, of a status in `expect`; renew a refused token once.

        Raises retries.Retry for what may pass.
        """
        url = request.path if isinstance(request.path, httpx.URL) else self.base.join(request.path)
        # A second attempt only after the registry has requested credentials.
        for renew in (False, True):
            headers = {**request.headers, **self._authorized(request.actions, url)}
            options: dict[str, Any] = {"content": request.body(), "timeout": _UPLOAD} if request.body else {}
            try:
                # Downloads of layers are redirected to other hosts; httpx does not send Authorization there.
                follow = request.method in ("GET", "HEAD")
                sent = self._client.build_request(request.method, url, headers=headers, **options)
                response = self._client.send(sent, stream=request.stream, follow_redirects=follow)
            except (httpx.RequestError, httpx.InvalidURL) as error:
                raise failed(self.unavailable(reason(error)), error) from None
            if response.status_code in request.expect:
                return response
            if request.stream:
                response.read()
                response.close()
            if response.status_code != 401 or renew or not self._authorize(response, request.actions):
                break
        problem = self._refused(request, url, response)
        raise Retry(problem, response) if request.late and response.status_code == 404 else failed(problem, response)

    def _refused(self, request: Request, url: httpx.URL, response: httpx.Response) -> RegistryError:
        registry, status = self._name.registry, f"status {response.status_code}"
        if response.status_code == 429 or response.status_code >= 500:
            return self.unavailable(status)
        if response.status_code in (401, 403):
            user = f"as {self._credentials.username}" if self._credentials else "without credentials"
            return RegistryError(
                f"{registry} denied {'push' if request.write else 'pull'} access",
                expected=f"the right to {request.actions.replace(',', ' and ')} {self._name.repository}",
                found=f"{status}, {user}",
                next_step=f"docker login {registry}",
            )
        return RegistryError(
            f"{registry} sent an unexpected response",
            expected=f"status {' or '.join(map(str, request.expect))}",
            found=status + _errors_of(response),
            where=f"{request.method} {url.copy_with(query=None)}",
        )

    def _authorized(self, actions: str, url: httpx.URL) -> dict[str, str]:
        # An upload can go to another host, which must not get our token.
        value = self._authorization.get(actions) if url.netloc == self.base.netloc else None
        return {"Authorization": value} if value else {}

    def _authorize(self, refused: httpx.Response, actions: str) -> bool:
        """Get a token for a challenge; return False if that is not possible. Threads wait for the first one's token."""
        challenge = Challenge.of(refused.headers.get_list("WWW-Authenticate"))
        if challenge is None or (challenge.scheme == "basic" and self._credentials is None):
            return False
        with self._authorizing:
            tried = refused.request.headers.get("Authorization")
            if self._authorization.get(actions) in (None, tried):
                if challenge.scheme == "basic" and self._credentials is not None:
                    self._authorization[actions] = self._credentials.basic
                else:
                    self._authorization[actions] = f"Bearer {self._token(challenge, actions)}"
        return True

    def _token(self, challenge: Challenge, actions: str) -> str:
        """Request a token for the repository from the registry's token server; anonymous without credentials."""
        realm = self._token_server(challenge)
        scope = {"service": challenge.service, "scope": f"repository:{self._name.repository}:{actions}"}
        headers = {"Authorization": self._credentials.basic} if self._credentials else {}
        try:
            response = self._client.get(realm.copy_merge_params(scope), headers=headers)
        except httpx.RequestError as error:
            raise failed(self.unavailable(f"its token server {realm.host}: {reason(error)}"), error) from None
        status = f"status {response.status_code}"
        if response.status_code == 429 or response.status_code >= 500:
            raise failed(self.unavailable(f"its token server: {status}"), response)
        if response.status_code != 200:
            raise RegistryError(
                f"{self._name.registry} did not accept the credentials",
                found=f"{status} of its token server",
                next_step=f"docker login {self._name.registry}",
            )
        try:
            document = response.json()
            return str(document.get("token") or document["access_token"])
        except (ValueError, KeyError, AttributeError):
            raise RegistryError(
                f"the token server of {self._name.registry} returned no token", where=realm.host
            ) from None

    def _token_server(self, challenge: Challenge) -> httpx.URL:
        try:
            realm = httpx.URL(challenge.realm)
        except httpx.InvalidURL as error:
            raise RegistryError(f"{self._name.registry} names an invalid token server", found=str(error)) from None
        if realm.scheme != "https" and not self._name.is_loopback:
            raise RegistryError(
                f"{self._name.registry} requests credentials over plain HTTP",
                expected="a token server at https://…",
                found=f"{realm.scheme}://{realm.host}",
                next_step="ask the operator of that registry; nothing was sent",
            )
        return realm

    def unavailable(self, found: str) -> RegistryError:
        """Return the error for a registry that did not respond, or not usefully."""
        next_step = "check the network and the registry's status page, then run the same command again: "
        next_step += "what was pushed is not pushed again"
        if "status 429" in found and self._credentials is None:
            next_step = f"docker login {self._name.registry}: anonymous clients have a lower rate limit"
        return RegistryError(
            f"{self._name.registry} is not available", found=found, where=str(self.base), next_step=next_step
        )


def _errors_of(response: httpx.Response) -> str:
    """Return the registry's errors (distribution-spec, "Error Codes") in one line."""
    try:
        errors = response.json()["errors"]
        return ": " + "; ".join(f"{entry['code']} {entry.get('message', '')}".strip() for entry in errors)[:200]
    except (ValueError, KeyError, TypeError):
        return ""
