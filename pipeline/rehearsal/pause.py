"""The pause image that a real k3s wants for each pod, made of one static binary, since no registry is in reach.

With `docker: true` k3s does not read its airgap folder: an image has to be in dockerd, so this one is mounted into
/app/images, from where the container loads it at its start. k3s is told its name, for the one that k3s has by default
changes with its versions (--pause-image; k3s-io/k3s, pkg/cli/cmds/agent.go).
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from pipeline.core import zstd
from pipeline.core.names import MANIFEST, Digest
from pipeline.core.platforms import Platform
from pipeline.oci.index import descriptor, layout_files
from pipeline.smoke.boot import NO_ADDONS

NAME = "dind-k3s.local/pause:1"

# Nothing can be pulled.
K3S_ARGS = f"--pause-image={NAME} {NO_ADDONS}"


# What k3s-images.txt of v1.37.1+k3s1 lists (sha256 377307d4…), named as `docker save` names them.
SYSTEM_IMAGES = (
    "rancher/klipper-helm:v0.13.3-build20260727",
    "rancher/klipper-lb:v0.4.17",
    "rancher/local-path-provisioner:v0.0.37",
    "rancher/mirrored-coredns-coredns:1.14.7",
    "rancher/mirrored-library-busybox:1.37.0",
    "rancher/mirrored-library-traefik:3.7.13",
    "rancher/mirrored-metrics-server:v0.9.0",
    "rancher/mirrored-pause:3.10.2",
)


def system_images(archive: bytes) -> bytes:
    """Return a stub of k3s's archive of system images: the pause image's layer under all of their names; repeatable.

    Its form is that of k3s's: what `ctr images export` writes of one image for each name, an OCI layout with compressed
    layers, its files in the order of their names, packed with zstd. A label in each image says that it is a stub.
    Source: containerd's core/images/archive/exporter.go; k3s's scripts/package-airgap.
    """
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {member.name: _read(tar, member) for member in tar}
    (entry,) = json.loads(files["manifest.json"])
    (plain,) = (files[name] for name in entry["Layers"])
    written: dict[str, bytes] = {}

    def blob(data: bytes, media_type: str) -> dict[str, Any]:
        digest = Digest.of(data)
        written[_blob(digest.text)] = data
        return descriptor(media_type, digest, len(data))

    config = json.loads(files[entry["Config"]])
    layer = blob(gzip.compress(plain, 1, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")
    index, listed = [], []
    for name in SYSTEM_IMAGES:
        labelled = {**config["config"], "Labels": {"io.github.dind-k3s.stand-in": name}}
        document = json.dumps({**config, "config": labelled}, sort_keys=True).encode()
        described = blob(document, "application/vnd.oci.image.config.v1+json")
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": [layer]}
        annotations = {
            "io.containerd.image.name": f"docker.io/{name}",
            "org.opencontainers.image.ref.name": name.rpartition(":")[2],
        }
        index.append({**blob(json.dumps(manifest).encode(), MANIFEST), "annotations": annotations})
        listed.append({"Config": _blob(described["digest"]), "RepoTags": [name], "Layers": [_blob(layer["digest"])]})
    written |= layout_files(*index)
    written["manifest.json"] = json.dumps(listed).encode()
    packed: bytes = zstd.compress(_tar(dict(sorted(written.items()))), 3)
    return packed


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None
    return stream.read()


def archive(binary: bytes, platform: Platform) -> bytes:
    """A docker archive (`docker load`) of an image whose only file is a static busybox, which sleeps; repeatable.

    Format: the image specification v1.2 of moby.
    """
    layer = _tar({"busybox": binary})
    config = json.dumps(
        {
            "architecture": platform.architecture,
            "os": "linux",
            # Neither kubelet nor cri-dockerd gives a command. busybox must bear its own name to take one from a word.
            "config": {"Entrypoint": ["/busybox", "sleep", "2147483647"]},
            "rootfs": {"type": "layers", "diff_ids": [Digest.of(layer).text]},
        },
        sort_keys=True,
    ).encode()
    name = f"{Digest.of(config).hex}.json"
    manifest = [{"Config": name, "RepoTags": [NAME], "Layers": ["layer.tar"]}]
    return _tar({name: config, "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()})


def write(busybox: Path, platform: Platform, target: Path) -> None:
    """Write the archive for one platform."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(archive(busybox.read_bytes(), platform))


def _tar(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as packed:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            packed.addfile(member, io.BytesIO(data))
    return raw.getvalue()
