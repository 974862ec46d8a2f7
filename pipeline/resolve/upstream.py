"""What upstream servers answer: channels, listings, tags, checksum files. Text in, values out; no I/O.

Digests of release assets: GitHub's REST API, "Get a release by tag name".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, unquote

from pipeline.components import COMPONENTS, DOCKER, RELEASE, is_exact
from pipeline.core.errors import UpstreamError
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.inputs.compat import number


def assets_path(component: str, version: str) -> str:
    """GitHub's description of a release, below the API's base URL; it counts against the API's quota."""
    return f"repos/{COMPONENTS[component].repository}/releases/tags/{quote(COMPONENTS[component].release_tag(version))}"


def assets(document: str) -> Mapping[str, Digest]:
    """The digest that GitHub computed when each file of a release was uploaded. Raises UpstreamError.

    Files from before June 2025 have none; GitHub computes it again when a file is replaced, so it is no vendor's word.
    """
    try:
        found = {str(asset["name"]): asset.get("digest") for asset in json.loads(document)["assets"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UpstreamError("GitHub's API does not describe the release", found=document[:80]) from None
    return {
        name: Digest(text)
        for name, text in found.items()
        if isinstance(text, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", text)
    }


def listing_path(platform: Platform) -> str:
    """The folder of docker's static archives, which the server lists as HTML."""
    return f"{DOCKER.file.folder}/".format(arch=DOCKER.file.architectures[platform])


def refs_path(component: str) -> str:
    """git's list of a repository's tags over HTTP: no API quota (gitprotocol-http(5))."""
    return f"{COMPONENTS[component].repository}.git/info/refs?service=git-upload-pack"


CHANNELS_PATH = "v1-release/channels"


def channel_path(channel: str) -> str:
    """One channel of k3s: it redirects to the page of its release."""
    return f"{CHANNELS_PATH}/{channel}"


def listed_docker(html: str) -> list[str]:
    """The versions in docker's listing, newest first; candidates and other archives are left out."""
    found = set(re.findall(rf'href="(?:[^"]*/)?docker-({RELEASE})\.tgz"', html))
    return ordered(found)


def tagged(packets: str, component: str) -> list[str]:
    """The release versions among a repository's tags (pkt-lines), newest first; candidates are left out."""
    found = set(re.findall(rf" refs/tags/{COMPONENTS[component].tagged}(?=\s|\^|\0|$)", packets))
    return ordered(found)


def ordered(versions: Iterable[str]) -> list[str]:
    """Newest first, as numbers: 29.10.0 before 29.7.2."""
    return sorted(versions, key=_age, reverse=True)


def _age(version: str) -> tuple[int, ...]:
    """Orders versions: 29.10.0 after 29.7.2, v1.37.1+k3s2 after v1.37.1+k3s1."""
    revision = re.search(r"\+k3s([0-9]+)$", version)
    return (*number(version), int(revision[1]) if revision else 0)


def older(version: str, than: str) -> bool:
    """Whether a version is older than another one of the same component."""
    return _age(version) < _age(than)


def k3s_channel(document: str, channel: str) -> str:
    """The version that a channel of k3s points to. Raises UpstreamError: channels have been empty and wrong before."""
    try:
        entries = {str(entry["id"]): entry.get("latest", "") for entry in json.loads(document)["data"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UpstreamError("k3s's channels are not the JSON that they should be", found=document[:80]) from None
    version = entries.get(channel, "")
    if not isinstance(version, str) or not is_exact("k3s", version):
        raise UpstreamError(
            f"k3s's channel {channel!r} points to no release",
            expected="something like v1.37.1+k3s1",
            found=repr(version) if channel in entries else f"channels {', '.join(sorted(entries))}",
            next_step="ask for an exact version in versions.yaml",
        )
    return version


def k3s_page(path: str, channel: str) -> str:
    """The version in the address of the page that a channel of k3s redirected to. Raises UpstreamError."""
    version = unquote(path.rpartition("/")[2])
    if not is_exact("k3s", version):
        raise UpstreamError(f"k3s's channel {channel!r} redirects to no release", found=path)
    return version


def kubectl_channel(text: str, minor: str) -> str:
    """The version that kubectl's channel of a minor version (`1.37`) holds. Raises UpstreamError."""
    version = text.strip()
    if not re.fullmatch(rf"v{re.escape(minor)}\.[0-9]{{1,9}}", version):
        raise UpstreamError(
            f"kubectl's channel {minor} holds no release of it", expected=f"v{minor}.…", found=version[:80] or "nothing"
        )
    return version


def patches(version: str) -> Iterator[str]:
    """`v1.37.2` → v1.37.2, v1.37.1, v1.37.0: kubernetes counts its patches without a gap."""
    major, minor, patch = number(version)
    return (f"v{major}.{minor}.{older}" for older in range(patch, -1, -1))


def fits(version: str, asked: str) -> bool:
    """Whether an exact version is one that a channel can mean: any for `stable` and `latest`, else of that line."""
    return asked in ("stable", "latest", version) or version.startswith(f"{asked}.")


def checksum(text: str, name: str) -> Digest:
    """A digest out of a checksum file (`<hex>  name`, `<hex> *name`) or, for an empty name, the bare digest it holds.

    Raises UpstreamError when the file does not list the name.
    """
    if not name:
        found = re.fullmatch(r"\s*([0-9a-fA-F]{64})\s*", text)
        if found:
            return Digest.of_hex(found[1])
    for line in text.splitlines():
        parts = line.split()
        if name and len(parts) == 2 and parts[1].removeprefix("*") == name and re.fullmatch(r"[0-9a-f]{64}", parts[0]):
            return Digest.of_hex(parts[0])
    raise UpstreamError(
        f"the checksum file does not list {name or 'a sha256'}",
        found=text[:80].strip() or "an empty file",
        next_step="the release is not complete yet: keep the lock, or try again later",
    )
