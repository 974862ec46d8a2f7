"""Paths and parsers of upstream's channels, listings, tags and checksum files; no I/O.

Digests of release assets: GitHub's REST API, "Get a release by tag name".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

from pipeline.components import COMPONENTS, DOCKER, RELEASE, is_exact
from pipeline.core.errors import UpstreamError
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.inputs.compat import number


def assets_path(component: str, version: str) -> str:
    """Return the path of a release in GitHub's API, which has a quota."""
    return f"repos/{COMPONENTS[component].repository}/releases/tags/{quote(COMPONENTS[component].release_tag(version))}"


def assets(document: str) -> Mapping[str, Digest]:
    """Return the digests that GitHub computed at the upload of a release's files. Raises UpstreamError.

    Files from before June 2025 have none. GitHub computes it again for a replaced file, so it is not the vendor's.
    """
    try:
        digests = {str(asset["name"]): asset.get("digest") for asset in json.loads(document)["assets"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UpstreamError("GitHub's API does not describe the release", found=document[:80]) from None
    return {
        name: Digest(text)
        for name, text in digests.items()
        if isinstance(text, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", text)
    }


def listing_path(platform: Platform) -> str:
    """Return the path of docker's static archives, which the server lists as HTML."""
    return f"{DOCKER.file.folder}/".format(arch=DOCKER.file.architectures[platform])


def refs_path(component: str) -> str:
    """Return the path of a repository's tags in git's HTTP protocol (gitprotocol-http(5)), which has no quota."""
    return f"{COMPONENTS[component].repository}.git/info/refs?service=git-upload-pack"


CHANNELS_PATH = "v1-release/channels"


def listed_docker(html: str) -> list[str]:
    """Return the released versions in docker's listing, newest first."""
    return ordered(set(re.findall(rf'href="(?:[^"]*/)?docker-({RELEASE})\.tgz"', html)))


def tagged(packets: str, component: str) -> list[str]:
    """Return the released versions among a repository's tags (pkt-lines), newest first."""
    return ordered(set(re.findall(rf" refs/tags/{COMPONENTS[component].tagged}(?=\s|\^|\0|$)", packets)))


def ordered(versions: Iterable[str]) -> list[str]:
    """Newest first, as numbers: 29.10.0 before 29.7.2."""
    return sorted(versions, key=_age, reverse=True)


def _age(version: str) -> tuple[int, ...]:
    """Orders versions: 29.10.0 after 29.7.2, v1.37.1+k3s2 after v1.37.1+k3s1."""
    revision = re.search(r"\+k3s([0-9]+)$", version)
    return (*number(version), int(revision[1]) if revision else 0)


def older(version: str, than: str) -> bool:
    """Return whether a version is older than another one of the same component."""
    return _age(version) < _age(than)


def k3s_channel(document: str, channel: str) -> str:
    """Return the version of a channel of k3s. Raises UpstreamError: channels were empty and wrong before."""
    try:
        entries = {str(entry["id"]): entry.get("latest", "") for entry in json.loads(document)["data"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UpstreamError("k3s's channels are not valid JSON", found=document[:80]) from None
    version = entries.get(channel, "")
    if not isinstance(version, str) or not is_exact("k3s", version):
        raise UpstreamError(
            f"k3s's channel {channel!r} points to no release",
            expected="something like v1.37.1+k3s1",
            found=repr(version) if channel in entries else f"channels {', '.join(sorted(entries))}",
            next_step="choose an exact version in versions.yaml",
        )
    return version


def kubectl_channel(text: str, minor: str) -> str:
    """Return the version of kubectl's channel of a minor version (`1.37`). Raises UpstreamError."""
    version = text.strip()
    if not re.fullmatch(rf"v{re.escape(minor)}\.[0-9]{{1,9}}", version):
        raise UpstreamError(
            f"kubectl's channel {minor} has no release", expected=f"v{minor}.…", found=version[:80] or "nothing"
        )
    return version


def patches(version: str) -> Iterator[str]:
    """Yield a version and its older patches (`v1.37.2` → v1.37.2, v1.37.1, v1.37.0), which have no gaps."""
    major, minor, patch = number(version)
    return (f"v{major}.{minor}.{older}" for older in range(patch, -1, -1))


def fits(version: str, channel: str) -> bool:
    """Return whether a version can belong to a channel: any to `stable` and `latest`, else one of that line."""
    return channel in ("stable", "latest", version) or version.startswith(f"{channel}.")


def checksum(text: str, name: str) -> Digest:
    """Return a digest from a checksum file: lines `<hex>  name` or `<hex> *name`; an empty name: only `<hex>`.

    Raises UpstreamError if the file does not list the name.
    """
    pattern = rf"([0-9a-f]{{64}})\s+\*?{re.escape(name)}" if name else r"([0-9a-fA-F]{64})"
    for line in text.splitlines() if name else [text]:
        if match := re.fullmatch(pattern, line.strip()):
            return Digest.of_hex(match[1])
    raise UpstreamError(
        f"the checksum file does not list {name or 'a sha256'}",
        found=text[:80].strip() or "an empty file",
        next_step="the release is incomplete: keep the lock, or try again later",
    )
