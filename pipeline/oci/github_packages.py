"""GitHub's packages: how manifests are removed from ghcr.io, which does not offer that over the registry's API.

Each manifest is a "version" of a package, whose name is its digest. Source:
https://docs.github.com/en/rest/packages/packages. A token needs `delete:packages` (classic) or, in a workflow, the
right `packages: write` and the package's role admin for the repository.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from urllib.parse import quote

import httpx

from pipeline.core.errors import RegistryError
from pipeline.core.names import Digest, ImageName

HOST = "ghcr.io"
API = "https://api.github.com"
_PAGE = 100


class Packages:
    """The package behind one repository of ghcr.io. Methods raise RegistryError."""

    def __init__(self, client: httpx.Client, name: ImageName, token: str | None, api: str = API) -> None:
        self._client, self._name, self._api = client, name, api
        self._headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def delete(self, digest: Digest) -> None:
        """Remove a manifest or index with its tags; nothing happens when it is gone already."""
        number = self._versions.pop(digest.text, None)
        if number is not None:
            self._ask("DELETE", f"{self._package}/versions/{number}", expect=(204, 404))

    @cached_property
    def _package(self) -> str:
        """The package's address: an organization's or a user's."""
        owner, _, package = self._name.repository.partition("/")
        path = f"packages/container/{quote(package, safe='')}"
        for kind in ("orgs", "users"):
            address = f"{self._api}/{kind}/{owner}/{path}"
            if self._ask("GET", address, expect=(200, 404)).status_code == 200:
                return address
        raise self._refused("there is no such package, or it may not be seen", "status 404")

    @cached_property
    def _versions(self) -> dict[str, int]:
        """Digest → the version's number."""
        return {digest: number for page in self._pages() for digest, number in page.items()}

    def _pages(self) -> Iterator[dict[str, int]]:
        url: str | None = f"{self._package}/versions?per_page={_PAGE}"
        while url:
            answer = self._ask("GET", url, expect=(200,))
            try:
                yield {str(entry["name"]): int(entry["id"]) for entry in answer.json()}
            except (ValueError, KeyError, TypeError):
                raise self._refused("GitHub's list of its versions cannot be read", answer.text[:80]) from None
            url = answer.links.get("next", {}).get("url")

    def _ask(self, method: str, url: str, *, expect: tuple[int, ...]) -> httpx.Response:
        try:
            answer = self._client.request(method, url, headers=self._headers)
        except httpx.HTTPError as error:
            raise self._refused("GitHub is not available", str(error) or type(error).__name__) from None
        if answer.status_code not in expect:
            raise self._refused(f"GitHub refuses {method}", f"status {answer.status_code}")
        return answer

    def _refused(self, summary: str, found: str) -> RegistryError:
        return RegistryError(
            f"{self._name}: {summary}",
            expected="GITHUB_TOKEN or GH_TOKEN of a user who may delete the package",
            found=found,
            where=self._api,
            next_step="gh auth refresh --scopes delete:packages,read:packages; then again, GH_TOKEN=$(gh auth token)",
        )
