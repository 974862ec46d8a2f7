"""What the vendors publish and how: paths, channels, listings, checksum files. Text in, values out; no I/O.

Sources: each vendor's own layout as of 2026; k3s: install.sh of k3s-io/k3s; kubectl: kubernetes.io, «Install kubectl»;
buildx and compose: the release workflows of docker/buildx and docker/compose; docker: docker-library/docker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from pipeline.compat import number
from pipeline.errors import UpstreamError
from pipeline.oci import Digest
from pipeline.platforms import Platform

_REPOSITORY = {"buildx": "docker/buildx", "compose": "docker/compose", "k3s": "k3s-io/k3s"}
_K3S = r"v\d+\.\d+\.\d+\+(k3s\d+|standin)"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One file of a vendor and the file that lists its checksum; paths are below the origin's base URL."""

    origin: str
    path: str
    checksums: str | None  # None: the vendor publishes none
    name: str  # as the checksum file calls it; empty: the file holds the bare digest


def published(component: str, version: str, platform: Platform) -> Published:
    """Where a component's file and its checksum are."""
    names = platform.names
    match component:
        case "docker":
            path = f"linux/static/stable/{names.docker}/docker-{version}.tgz"
            return Published(origin="docker", path=path, checksums=None, name="")
        case "k3s":
            folder = f"{_REPOSITORY['k3s']}/releases/download/{quote(version)}"
            file = f"k3s{names.k3s}"
            checksums = f"{folder}/sha256sum-{names.k3s_checksums}.txt"
        case "kubectl":
            path = f"release/{version}/bin/linux/{names.kubectl}/kubectl"
            return Published(origin="kubernetes", path=path, checksums=f"{path}.sha256", name="")
        case "buildx" | "compose":
            folder = f"{_REPOSITORY[component]}/releases/download/v{version}"
            file = (
                f"buildx-v{version}.linux-{names.buildx}"
                if component == "buildx"
                else f"docker-compose-linux-{names.compose}"
            )
            checksums = f"{folder}/checksums.txt"
        case _:
            raise AssertionError(component)
    return Published(origin="github", path=f"{folder}/{file}", checksums=checksums, name=file)


def listing_path(platform: Platform) -> str:
    """The folder of docker's static archives, which the server lists as HTML."""
    return f"linux/static/stable/{platform.names.docker}/"


def refs_path(component: str) -> str:
    """git's list of a repository's tags over HTTP: no API quota (gitprotocol-http(5))."""
    return f"{_REPOSITORY[component]}.git/info/refs?service=git-upload-pack"


CHANNELS_PATH = "v1-release/channels"


def listed_docker(html: str) -> list[str]:
    """The versions in docker's listing, newest first; candidates and other archives are left out."""
    found = set(re.findall(r'href="(?:[^"]*/)?docker-(\d+\.\d+\.\d+)\.tgz"', html))
    return sorted(found, key=number, reverse=True)


def tagged(packets: str) -> list[str]:
    """The release versions among a repository's tags (pkt-lines), newest first; candidates are left out."""
    found = set(re.findall(r" refs/tags/v(\d+\.\d+\.\d+)(?=\s|\^|\0|$)", packets))
    return sorted(found, key=number, reverse=True)


def k3s_channel(document: str, channel: str) -> str:
    """The version that a channel of k3s points to. Raises UpstreamError: channels have been empty and wrong before."""
    try:
        entries = {entry["id"]: entry.get("latest", "") for entry in json.loads(document)["data"]}
    except (ValueError, KeyError, TypeError):
        raise UpstreamError("k3s's channels are not the JSON that they should be", found=document[:80]) from None
    version = entries.get(channel, "")
    if not re.fullmatch(_K3S, version):
        raise UpstreamError(
            f"k3s's channel {channel!r} points to no release",
            expected="something like v1.37.1+k3s1",
            found=repr(version) if channel in entries else f"channels {', '.join(sorted(entries))}",
            next_step="ask for an exact version in versions.yaml",
        )
    return str(version)


def newest(versions: Iterable[str], asked: str, what: str) -> str:
    """The first of `versions` (newest first) that `latest` or a major version like `29` means. Raises UpstreamError."""
    for version in versions:
        if asked in ("latest", version) or version.startswith(f"{asked}."):
            return version
    raise UpstreamError(f"upstream has no {what} {asked}", next_step="ask for another version in versions.yaml")


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
