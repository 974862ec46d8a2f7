"""The pause image that a real k3s needs for each pod, made of one static binary, since no registry is reachable.

With `docker: true` k3s does not read its airgap folder: an image must be in dockerd, so this one is mounted into
/app/images, from where the container loads it at its start. k3s gets its name as --pause-image, since the default one
changes with k3s's versions (k3s-io/k3s, pkg/cli/cmds/agent.go).
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from pipeline.core import zstd
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.oci.index import descriptor, layout_files
from pipeline.rehearsal import images
from pipeline.smoke.boot import NO_ADDONS

NAME = "dind-k3s.local/pause:1"
K3S_ARGS = f"--pause-image={NAME} {NO_ADDONS}"  # without add-ons, whose images cannot be pulled

# The content of k3s-images.txt of v1.37.1+k3s1 (sha256 377307d4…), named as by `docker save`.
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
    """Return a stub of k3s's archive of system images: the pause image under each of their names; reproducible.

    Its format is k3s's: the output of `ctr images export` of one image for each name, an OCI layout with compressed
    layers, its files sorted by name, compressed with zstd. A label in each image states that it is a stub.
    Source: containerd's core/images/archive/exporter.go; k3s's scripts/package-airgap.
    """
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {member.name: stream.read() for member in tar if (stream := tar.extractfile(member))}
    (entry,) = json.loads(files["manifest.json"])
    (plain,) = (files[name] for name in entry["Layers"])
    written: dict[str, bytes] = {}

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        described = descriptor(media_type, Digest.of(data), len(data))
        written[_path(described)] = data
        return described

    config = json.loads(files[entry["Config"]])
    layer = put(gzip.compress(plain, 1, mtime=0), images.LAYER)
    index, listed = [], []
    for name in SYSTEM_IMAGES:
        labelled = {**config, "config": {**config["config"], "Labels": {"io.github.dind-k3s.stand-in": name}}}
        manifest = images.put_manifest(put, labelled, layer)
        annotations = {
            "io.containerd.image.name": f"docker.io/{name}",
            "org.opencontainers.image.ref.name": name.rpartition(":")[2],
        }
        index.append({**manifest, "annotations": annotations})
        described = json.loads(written[_path(manifest)])["config"]
        listed.append({"Config": _path(described), "RepoTags": [name], "Layers": [_path(layer)]})
    written |= layout_files(*index)
    written["manifest.json"] = json.dumps(listed).encode()
    packed: bytes = zstd.compress(_tar(dict(sorted(written.items()))), 3)
    return packed


def archive(binary: bytes, platform: Platform) -> bytes:
    """Return a docker archive (`docker load`) of an image whose only file is a static busybox, which sleeps.

    Format: moby's image specification v1.2. The same binary gives the same bytes.
    """
    layer = _tar({"busybox": binary})
    config = images.encode(
        {
            "architecture": platform.architecture,
            "os": "linux",
            # Neither kubelet nor cri-dockerd sets a command. busybox reads the applet from an argument only if its file
            # is named busybox.
            "config": {"Entrypoint": ["/busybox", "sleep", "2147483647"]},
            "rootfs": {"type": "layers", "diff_ids": [Digest.of(layer).text]},
        }
    )
    name = f"{Digest.of(config).hex}.json"
    manifest = [{"Config": name, "RepoTags": [NAME], "Layers": ["layer.tar"]}]
    return _tar({name: config, "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()})


def write(busybox: Path, platform: Platform, target: Path) -> None:
    """Write the archive for one platform."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(archive(busybox.read_bytes(), platform))


def _path(described: dict[str, Any]) -> str:
    return f"blobs/{described['digest'].replace(':', '/')}"


def _tar(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    images.write_tar(raw, files.items())
    return raw.getvalue()
