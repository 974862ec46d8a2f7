"""k3s's archive of its system images, loaded image by image: what every pod needs first.

k3s makes it with `ctr images export`: an OCI layout with compressed layers and docker's manifest.json, at the end, in
one tar that is packed with zstd (k3s-io/k3s, scripts/package-airgap). dockerd would take the first image only after it
has unpacked the whole, while the first pod waits. So it is unpacked here, once, and each image is handed over alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

# In this order; then all others. helm installs Traefik.
FIRST = ("pause", "coredns", "helm", "traefik")
NEEDED = 2  # of these, how many a pod waits for


def rank(name: str) -> int:
    """Where an image or archive of this name comes in the order."""
    return next((number for number, word in enumerate(FIRST) if word in name), len(FIRST))


def load(archive: Path, scratch: Path, on_first: Callable[[], None]) -> subprocess.CompletedProcess[str]:
    """Load all images and print each; the outcome as `docker image load` has it.

    `scratch`: a folder for the unpacked files, removed at the end. `on_first` is called once the images that every pod
    needs are there.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        return _load(archive, scratch, on_first)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return subprocess.CompletedProcess([], 1, "", f"{archive.name} is not an archive of images: {error}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _load(archive: Path, scratch: Path, on_first: Callable[[], None]) -> subprocess.CompletedProcess[str]:
    unpack = ["tar", "--extract", "--zstd", "--no-same-owner", "--directory", str(scratch), "--file", str(archive)]
    done = subprocess.run(unpack, capture_output=True, text=True, check=False)
    output = []
    if done.returncode == 0:
        entries = json.loads((scratch / "manifest.json").read_bytes())
        for entry in sorted(entries, key=lambda entry: rank(_name(entry))):
            if rank(_name(entry)) >= NEEDED:
                on_first()
            done = _load_one(entry, scratch)
            if done.returncode != 0:
                break
            print(done.stdout, end="", flush=True)
            output.append(done.stdout)
    return subprocess.CompletedProcess(done.args, done.returncode, "".join(output), done.stderr)


def _name(entry: dict[str, Any]) -> str:
    return str((entry["RepoTags"] or [""])[0]).rpartition("/")[2]


def _load_one(entry: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """One entry of manifest.json: the image's config, names and layers."""
    command = ["docker", "image", "load", "--quiet"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as docker:
        assert docker.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # docker has ended, and says why
            _pack(entry, folder, docker.stdin)
        stdout, stderr = docker.communicate()
    return subprocess.CompletedProcess(command, docker.returncode, stdout.decode(), stderr.decode(errors="replace"))


def _pack(entry: dict[str, Any], folder: Path, target: IO[bytes]) -> None:
    """An archive of one image, as `docker image load` takes it."""
    manifest = json.dumps([entry]).encode()
    head = tarfile.TarInfo("manifest.json")
    head.size = len(manifest)
    with tarfile.open(fileobj=target, mode="w|", bufsize=1 << 20, format=tarfile.GNU_FORMAT) as packed:
        packed.addfile(head, io.BytesIO(manifest))
        for name in dict.fromkeys([entry["Config"], *entry["Layers"]]):
            packed.add(folder / name, name)
