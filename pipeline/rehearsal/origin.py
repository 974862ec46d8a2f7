"""The rehearsal's origin: a folder for each vendor's host, served over HTTP on loopback.

    <root>/download.docker.com/linux/static/stable/x86_64/docker-<v>.tgz   with a listing of the folder
    <root>/github.com/docker/buildx/releases/download/v<v>/…, checksums.txt, docker/buildx.git/info/refs
    <root>/github.com/moby/moby.git/info/refs                                 docker's tags
    <root>/github.com/docker/compose/…                                        the same
    <root>/github.com/k3s-io/k3s/releases/download/<v>/k3s, k3s-airgap-images-<arch>.tar.zst, sha256sum-<arch>.txt
    <root>/update.k3s.io/v1-release/channels
    <root>/dl.k8s.io/release/<v>/bin/linux/<arch>/kubectl, kubectl.sha256, release/stable-1.<n>.txt
    <root>/deb.debian.org/debian/dists/… and pool/…                           Debian's own signed indexes

The names, the layout and the checksum files are the vendors' (pipeline/components.py, with sources).
"""

from __future__ import annotations

import http.server
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from pipeline.components import owner, published
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import write_bytes, write_json, write_text
from pipeline.inputs.versions import UPSTREAM
from pipeline.rehearsal import loopback

# A key of versions.ORIGINS → its folder below the root.
HOSTS = {key: url.removeprefix("https://") for key, url in UPSTREAM.items()}


def upstream(port: int) -> dict[str, str]:
    """Return base URLs for an intent, instead of the vendors'."""
    return {key: f"http://127.0.0.1:{port}/{folder}" for key, folder in HOSTS.items()}


def serve(root: Path, port: int) -> AbstractContextManager[None]:
    """Serve the folder on 127.0.0.1 for the length of the block. Raises EngineError if the port is in use."""
    return loopback.serve("the origin", port, partial(_Handler, directory=str(root)))


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, since the client shows its progress."""


def publish(root: Path, part: str, version: str, files: Mapping[Platform, bytes]) -> None:
    """Write a release of a component, or of k3s's system images: files, checksum files, tag, channels."""
    for platform, data in files.items():
        where = published(part, version, platform)
        write_bytes(path_of(root, part, version, platform), data)
        if where.checksums is None:
            continue
        checksums = root / HOSTS[where.origin] / unquote(where.checksums)
        if not where.name:
            write_text(checksums, Digest.of(data).hex)
            continue
        before = checksums.read_text(encoding="utf-8").splitlines() if checksums.exists() else []
        others = [line for line in before if line.split()[-1] != where.name]
        write_text(checksums, "".join(f"{line}\n" for line in [*others, f"{Digest.of(data).hex}  {where.name}"]))
    released = owner(part)
    _tag(root, released.repository, released.release_tag(version))
    _point_channels(root, part, version)


def path_of(root: Path, part: str, version: str, platform: Platform) -> Path:
    """Return the path of a component's file."""
    where = published(part, version, platform)
    return root / HOSTS[where.origin] / unquote(where.path)


def _point_channels(root: Path, component: str, version: str) -> None:
    """Write the channels of k3s or kubectl, with this version."""
    minor = ".".join(version.split(".")[:2])
    if component == "k3s":
        names = ("stable", "latest", minor)
        channels = [{"id": name, "type": "channel", "name": name, "latest": version} for name in names]
        document = {"type": "collection", "resourceType": "channels", "data": channels}
        write_json(root / HOSTS["k3s-channels"] / "v1-release/channels", document)
    elif component == "kubectl":
        for channel in ("stable", f"stable-{minor.removeprefix('v')}"):
            write_text(root / HOSTS["kubernetes"] / f"release/{channel}.txt", version)


def _tag(root: Path, repository: str, tag: str) -> None:
    """Add a tag to a repository's refs, as git's smart HTTP lists them (gitprotocol-http(5))."""
    path = root / HOSTS["github"] / f"{repository}.git/info/refs"
    before = re.findall(r"refs/tags/(\S+)\n", path.read_text(encoding="utf-8")) if path.exists() else []
    lines = "".join(_packet(f"{'0' * 39}1 refs/tags/{name}\n") for name in sorted({*before, tag}))
    write_text(path, f"{_packet('# service=git-upload-pack' + chr(10))}0000{lines}0000")


def _packet(line: str) -> str:
    """Return a pkt-line of git's protocol: four hex digits of its length, then the line (gitprotocol-common(5))."""
    return f"{len(line) + 4:04x}{line}"
