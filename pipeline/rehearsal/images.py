"""Images of one layer and archives, made without an engine; the same content gives the same bytes."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from pipeline.core.log import Log
from pipeline.core.names import INDEX, MANIFEST, Digest
from pipeline.core.platforms import Platform
from pipeline.oci.index import descriptor
from pipeline.oci.registry import Registry

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"


def push_base(registry: Registry, tag: str, roots: Mapping[Platform, Path], folder: Path, log: Log) -> Digest:
    """Push root tars as a multi-platform image, and tag it. `folder`: for its OCI layout."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        """Store a blob; return its descriptor."""
        digest = Digest.of(data)
        if not (blobs / digest.hex).exists():
            (blobs / digest.hex).write_bytes(data)
        return descriptor(media_type, digest, len(data))

    manifests = []
    for platform, root in sorted(roots.items()):
        data = root.read_bytes()
        config = {
            "architecture": platform.architecture,
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {"Cmd": ["bash"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [Digest.of(data).text]},
            "history": [{"created_by": "mmdebstrap", "created": "2026-01-01T00:00:00Z"}],
        }
        layer = put(gzip.compress(data, compresslevel=3, mtime=0), _LAYER)
        described = put(encode(config), _CONFIG)
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": [layer]}
        image = {"os": "linux", "architecture": platform.architecture}
        manifests.append({**put(encode(manifest), MANIFEST), "platform": image})
    index = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
    put(index, INDEX)
    digest = Digest.of(index)
    pushed = registry.push_layout(folder, digest, log)
    known = registry.manifest(tag)
    if known is None or known.digest != digest:
        registry.tag(tag, index, INDEX)
    log.say(f"{registry.name}:{tag} is {digest}" + ("" if pushed else ", as before"))
    return digest


def encode(document: Mapping[str, object]) -> bytes:
    """Return canonical JSON."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def write_tar(target: IO[bytes] | gzip.GzipFile, files: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar archive of executable files of root, without times."""
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))


def read_tar(archive: Path, name: str) -> bytes:
    """Return a file of a tar archive."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile(name)
        assert member is not None
        return member.read()
