"""k3s's archive of its system images, read without an engine: which images it has, and that they are the platform's.

Source of the format: moby's image/spec and image/tarexport (`docker save`): manifest.json lists configs and names.
"""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

from pipeline.core import zstd
from pipeline.core.platforms import Platform

FOLDER = "usr/share/dind-k3s/images"  # where run-preload looks (rootfs/)
NEEDED = ("pause", "coredns")  # what every pod and every cluster waits for


def read(archive: bytes, platform: Platform) -> list[str]:
    """The names of all images in it. Raises AssertionError when it is not the archive that a cluster can live on."""
    try:
        with zstd.open(io.BytesIO(archive)) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
            # A config is small JSON; its name is only known from manifest.json, which may come last.
            small = {member.name: _content(tar, member) for member in tar if member.isfile() and member.size < 1 << 20}
        listed: list[dict[str, Any]] = json.loads(small["manifest.json"])
        configs = [json.loads(small[entry["Config"]]) for entry in listed]
        names = [name for entry in listed for name in entry["RepoTags"] or ()]
        foreign = {f"{one['os']}/{one['architecture']}" for one in configs} - {platform.value}
    except (zstd.ZstdError, tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise AssertionError(f"it is no archive of docker images: {type(error).__name__}: {error}") from None
    if foreign:
        raise AssertionError(f"it has images for {', '.join(sorted(foreign))}")
    missing = [what for what in NEEDED if not any(what in name for name in names)]
    if missing:
        raise AssertionError(f"it has no image called {missing[0]}, only {', '.join(names) or 'none'}")
    return names


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None
    return stream.read()
