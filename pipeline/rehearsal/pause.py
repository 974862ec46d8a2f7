"""The pause image that a real k3s wants for each pod, made of one static binary, since no registry is in reach.

With `docker: true` k3s does not read its airgap folder: an image has to be in dockerd, so this one is mounted into
/app/images, from where the container loads it at its start. k3s is told its name, for the one that k3s has by default
changes with its versions (--pause-image; k3s-io/k3s, pkg/cli/cmds/agent.go).
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from pipeline import zstd
from pipeline.oci import Digest
from pipeline.platforms import Platform

NAME = "dind-k3s.local/pause:1"

# Nothing can be pulled, so the add-ons, which are images, are left out.
K3S_ARGS = (
    f"--pause-image={NAME} --disable=coredns --disable=traefik --disable=servicelb --disable=metrics-server "
    "--disable=local-storage --disable-helm-controller"
)


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
    """A stand-in for k3s's archive of its system images: the pause image's bytes under all of their names; repeatable.

    It is one image for each name, as in k3s's, and a label in each says that it is a stand-in.
    """
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {member.name: _read(tar, member) for member in tar}
    (entry,) = json.loads(files.pop("manifest.json"))
    config = json.loads(files.pop(entry["Config"]))
    manifest = []
    for name in SYSTEM_IMAGES:
        labels = {"io.github.dind-k3s.stand-in": name}
        document = json.dumps({**config, "config": {**config["config"], "Labels": labels}}, sort_keys=True).encode()
        file = f"{Digest.of(document).hex}.json"
        files[file] = document
        manifest.append({"Config": file, "RepoTags": [name], "Layers": entry["Layers"]})
    packed: bytes = zstd.compress(_tar({**files, "manifest.json": json.dumps(manifest).encode()}), 3)
    return packed


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
