"""GitHub's packages API, to remove manifests from ghcr.io, whose registry API does not support it.

Each manifest is a "version" of a package, named by its digest. Source:
https://docs.github.com/en/rest/packages/packages. A token needs `delete:packages` (classic) or, in a workflow, the
right `packages: write` and the package's role admin for the repository.
"""

from __future__ import annotations

from functools import cached_property
from urllib.parse import quote

import httpx

from pipeline.core.errors import RegistryError
from pipeline.core.names import Digest, ImageName

HOST = "ghcr.io"
API = "https://api.github.com"
_PAGE = 100


class Packages:
    """The package of one repository of ghcr.io. Methods raise RegistryError."""

    def __init__(self, client: httpx.Client, name: ImageName, token: str | None, api: str = API) -> None:
        self._client, self._name, self._api = client, name, api
        self._headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def delete(self, digest: Digest) -> None:
        """Remove a manifest or index with its tags, if it exists."""
        number = self._versions.pop(digest.text, None)
        if number is not None:
            self._request("DELETE", f"{self._package}/versions/{number}", expect=(204, 404))

    @cached_property
    def _package(self) -> str:
        """The package's address: an organization's or a user's."""
        owner, _, package = self._name.repository.partition("/")
        path = f"packages/container/{quote(package, safe='')}"
        for kind in ("orgs", "users"):
            address = f"{self._api}/{kind}/{owner}/{path}"
            if self._request("GET", address, expect=(200, 404)).status_code == 200:
                return address
        raise self._refused("there is no such package, or no permission to see it", "status 404")

    @cached_property
    def _versions(self) -> dict[str, int]:
        """Digest → the version's number."""
        versions: dict[str, int] = {}
        url: str | None = f"{self._package}/versions?per_page={_PAGE}"
        while url:
            response = self._request("GET", url, expect=(200,))
            try:
                versions |= {str(entry["name"]): int(entry["id"]) for entry in response.json()}
            except (ValueError, KeyError, TypeError):
                raise self._refused("GitHub's list of its versions is invalid", response.text[:80]) from None
            url = response.links.get("next", {}).get("url")
        return versions

    def _request(self, method: str, url: str, *, expect: tuple[int, ...]) -> httpx.Response:
        try:
            response = self._client.request(method, url, headers=self._headers)
        except httpx.HTTPError as error:
            raise self._refused("GitHub is not available", str(error) or type(error).__name__) from None
        if response.status_code not in expect:
            raise self._refused(f"GitHub refuses {method}", f"status {response.status_code}")
        return response

    def _refused(self, summary: str, reason: str) -> RegistryError:
        return RegistryError(
            f"{self._name}: {summary}",
            expected="GITHUB_TOKEN or GH_TOKEN of a user with the right to delete the package",
            found=reason,
            where=self._api,
            next_step="gh auth refresh --scopes delete:packages,read:packages; then again, GH_TOKEN=$(gh auth token)",
        )
