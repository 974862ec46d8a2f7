"""An archive of docker images, packed with zstd: its names and platforms, read without an engine.

Source of the format: moby's image/spec and image/tarexport (`docker save`): manifest.json lists configs and names.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from typing import Any

from pipeline.core import zstd

_LARGEST = 1 << 20  # bytes of a document; layers are larger


@dataclass(frozen=True, kw_only=True)
class DockerArchive:
    """The images that an archive lists."""

    names: tuple[str, ...]  # repository:tag, in the order of the archive
    platforms: frozenset[str]  # os/architecture, as the images' configs have it


def read(archive: bytes) -> DockerArchive:
    """Read manifest.json and the configs. Raises ValueError for anything but such an archive."""
    try:
        with zstd.open(io.BytesIO(archive)) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
            # manifest.json names the configs, but can come last.
            documents = {
                member.name: stream.read()
                for member in tar
                if member.size < _LARGEST and (stream := tar.extractfile(member)) is not None
            }
        images: list[dict[str, Any]] = json.loads(documents["manifest.json"])
        configs = [json.loads(documents.get(image["Config"], b"{}")) for image in images]
        return DockerArchive(
            names=tuple(name for image in images for name in image["RepoTags"] or ()),
            platforms=frozenset(f"{config.get('os')}/{config.get('architecture')}" for config in configs),
        )
    except (zstd.ZstdError, tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
