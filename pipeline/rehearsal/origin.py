"""The rehearsal's origin: every vendor's host as a folder, served over HTTP on loopback.

    <root>/download.docker.com/linux/static/stable/x86_64/docker-<v>.tgz   the server lists the folder
    <root>/github.com/docker/buildx/releases/download/v<v>/…, checksums.txt, docker/buildx.git/info/refs
    <root>/github.com/moby/moby.git/info/refs                                 docker's tags
    <root>/github.com/docker/compose/…                                        the same
    <root>/github.com/k3s-io/k3s/releases/download/<v>/k3s, k3s-airgap-images-<arch>.tar.zst, sha256sum-<arch>.txt
    <root>/update.k3s.io/v1-release/channels
    <root>/dl.k8s.io/release/<v>/bin/linux/<arch>/kubectl, kubectl.sha256, release/stable-1.<n>.txt
    <root>/deb.debian.org/debian/dists/… and pool/…                           Debian's own signed indexes

The names, the layout and the checksum files are the vendors' (facts with sources: pipeline/resolve/upstream.py).
"""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pipeline.core.errors import EngineError
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import write_json, write_text
from pipeline.resolve.upstream import AIRGAP

# A key of versions.ORIGINS → its folder below the root.
HOSTS = {
    "docker": "download.docker.com",
    "github": "github.com",
    "k3s-channels": "update.k3s.io",
    "kubernetes": "dl.k8s.io",
    "debian": "deb.debian.org/debian",
    "debian-security": "deb.debian.org/debian-security",
}


def upstream(port: int) -> dict[str, str]:
    """The base URLs to put into an intent in the vendors' place."""
    return {key: f"http://127.0.0.1:{port}/{folder}" for key, folder in HOSTS.items()}


@contextmanager
def serve(root: Path, port: int) -> Iterator[None]:
    """Serve the folder on 127.0.0.1 for the length of the block. Raises EngineError when the port is taken."""
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(root)))
    except OSError as error:
        raise EngineError(
            f"the origin cannot listen on 127.0.0.1:{port}",
            found=str(error),
            next_step=f"stop what listens there: ss -ltnp 'sport = {port}'",
        ) from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the client's own progress shows what is fetched."""


def publish_docker(root: Path, version: str, archives: Mapping[Platform, bytes]) -> None:
    """Docker's static archives; docker publishes no checksums for them."""
    for platform, data in archives.items():
        folder = root / HOSTS["docker"] / "linux/static/stable" / platform.names.docker
        _write(folder / f"docker-{version}.tgz", data)
    _tag(root, "moby/moby", f"docker-v{version}")


def publish_plugin(root: Path, name: str, version: str, files: Mapping[Platform, bytes]) -> None:
    """A release of docker/buildx or docker/compose with its checksums.txt, and the tag in the repository's refs."""
    folder = root / HOSTS["github"] / f"docker/{name}/releases/download/v{version}"
    lines = []
    for platform, data in sorted(files.items()):
        file = (
            f"buildx-v{version}.linux-{platform.names.buildx}"
            if name == "buildx"
            else f"docker-compose-linux-{platform.names.compose}"
        )
        _write(folder / file, data)
        lines.append(f"{Digest.of(data).hex} *{file}\n")
    write_text(folder / "checksums.txt", "".join(lines))
    _tag(root, f"docker/{name}", f"v{version}")


def publish_k3s(
    root: Path, version: str, files: Mapping[Platform, bytes], images: Mapping[Platform, bytes] | None = None
) -> None:
    """A release of k3s with its checksum files, and the channels that point to it; `images`: its system images."""
    folder = root / HOSTS["github"] / "k3s-io/k3s/releases/download" / version
    for platform, data in files.items():
        names = platform.names
        parts = {f"k3s{names.k3s}": data}
        if images:
            parts[f"{AIRGAP}-{names.k3s_checksums}.tar.zst"] = images[platform]
        for file, content in parts.items():
            _write(folder / file, content)
        lines = [f"{Digest.of(content).hex}  {file}\n" for file, content in parts.items()]
        write_text(folder / f"sha256sum-{names.k3s_checksums}.txt", "".join(lines))
    _tag(root, "k3s-io/k3s", version)
    minor = ".".join(version.split(".")[:2])
    channels = [
        {"id": name, "type": "channel", "name": name, "latest": version} for name in ("stable", "latest", minor)
    ]
    document = {"type": "collection", "resourceType": "channels", "data": channels}
    write_json(root / HOSTS["k3s-channels"] / "v1-release/channels", document)


def publish_kubectl(root: Path, version: str, files: Mapping[Platform, bytes]) -> None:
    """A release of kubectl with its checksum files, and its minor's channel."""
    release = root / HOSTS["kubernetes"] / "release"
    for platform, data in files.items():
        folder = release / version / "bin/linux" / platform.names.kubectl
        _write(folder / "kubectl", data)
        write_text(folder / "kubectl.sha256", Digest.of(data).hex)
    minor = ".".join(version.removeprefix("v").split(".")[:2])
    for channel in ("stable", f"stable-{minor}"):
        write_text(release / f"{channel}.txt", version)


def _tag(root: Path, repository: str, tag: str) -> None:
    """Add a tag to a repository's refs, as git's smart HTTP lists them (gitprotocol-http(5))."""
    path = root / HOSTS["github"] / f"{repository}.git/info/refs"
    before = re.findall(r"refs/tags/(\S+)\n", path.read_text(encoding="utf-8")) if path.exists() else []
    lines = "".join(_packet(f"{'0' * 39}1 refs/tags/{name}\n") for name in sorted({*before, tag}))
    write_text(path, f"{_packet('# service=git-upload-pack' + chr(10))}0000{lines}0000")


def _packet(line: str) -> str:
    """One pkt-line of git's protocol: four hex digits of length, then the line (gitprotocol-common(5))."""
    return f"{len(line) + 4:04x}{line}"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)
