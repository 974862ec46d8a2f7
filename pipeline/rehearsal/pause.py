"""The pause image that a real k3s needs for each pod, made of one static binary, since no registry is reachable.

With `docker: true` k3s does not read its airgap folder: an image must be in dockerd, so this one is mounted into
/app/images, from where the container loads it at its start. k3s gets its name as --pause-image, since the default one
changes with k3s's versions (k3s-io/k3s, pkg/cli/cmds/agent.go).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping

from pipeline.core import zstd
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
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

    k3s's also is an OCI layout, which nobody reads: the image and its checks go by docker's manifest.json, which is the
    last file in both. A label in each image states that it is a stub.
    """
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {member.name: stream.read() for member in tar if (stream := tar.extractfile(member))}
    (entry,) = json.loads(files.pop("manifest.json"))
    config = json.loads(files.pop(entry["Config"]))
    entries = []
    for name in SYSTEM_IMAGES:
        labels = {"io.github.dind-k3s.stand-in": name}
        path = _add(files, {**config, "config": {**config["config"], "Labels": labels}})
        entries.append({**entry, "Config": path, "RepoTags": [name]})
    packed: bytes = zstd.compress(_tar({**files, "manifest.json": json.dumps(entries).encode()}), 3)
    return packed


def archive(binary: bytes, platform: Platform) -> bytes:
    """Return a docker archive (`docker load`) of an image whose only file is a static busybox, which sleeps.

    Format: moby's image specification v1.2. The same binary gives the same bytes.
    """
    layer = _tar({"busybox": binary})
    files: dict[str, bytes] = {}
    config = {
        "architecture": platform.architecture,
        "os": "linux",
        # Neither kubelet nor cri-dockerd sets a command. busybox reads the applet from an argument only if its file is
        # named busybox.
        "config": {"Entrypoint": ["/busybox", "sleep", "2147483647"]},
        "rootfs": {"type": "layers", "diff_ids": [Digest.of(layer).text]},
    }
    manifest = [{"Config": _add(files, config), "RepoTags": [NAME], "Layers": ["layer.tar"]}]
    return _tar({**files, "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()})


def _add(files: dict[str, bytes], config: Mapping[str, object]) -> str:
    """Add an image's config to the files of an archive; return its name there."""
    encoded = images.encode(config)
    name = f"{Digest.of(encoded).hex}.json"
    files[name] = encoded
    return name


def _tar(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    images.write_tar(raw, files.items())
    return raw.getvalue()
