"""An OCI layout folder as a list of what is in it: one index, its manifests, their blobs.

Source: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import DigestMismatch
from pipeline.core.names import INDEX, MANIFEST, Digest


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of the layout, as the index or a manifest describes it."""

    digest: Digest
    size: int  # bytes
    media_type: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The closure of one index in a layout folder."""

    index: Part
    manifests: tuple[Part, ...]  # in the order of the index, attestations too
    blobs: tuple[Part, ...]  # configs and layers, each once, in the order of the manifests

    def __iter__(self) -> Iterator[Part]:
        yield from (self.index, *self.manifests, *self.blobs)

    def verify(self) -> int:
        """Hash every file; returns the bytes read. Raises DigestMismatch at the first that is not what it is called."""
        for part in self:
            if (found := Digest.of_file(part.path)) != part.digest:
                raise DigestMismatch(
                    "a file of the built image has changed",
                    expected=part.digest.text,
                    found=found.text,
                    where=str(part.path),
                    next_step="nox -s build",
                )
        return sum(part.size for part in self)


def read(folder: Path, index: Digest) -> Layout:
    """List what the index needs; the index and the manifests are hashed, the blobs only measured.

    Raises DigestMismatch when a file is missing, of another size than described, or not what its name says.
    """
    top = folder / "blobs" / "sha256" / index.hex
    if not top.is_file():
        raise _broken("the built image is not there", f"the index {index}", "no such file", top)
    entry = {"digest": index.text, "size": top.stat().st_size, "mediaType": INDEX}
    listed, data = _document(folder, entry)
    if data.get("mediaType") not in (None, INDEX):
        raise _broken("the top of the layout is not an OCI index", INDEX, str(data.get("mediaType")), top)
    manifests: list[Part] = []
    blobs: dict[Digest, Part] = {}
    for child in data["manifests"]:
        if child["mediaType"] != MANIFEST:
            raise _broken("the index holds more than image manifests", MANIFEST, child["mediaType"], top)
        part, manifest = _document(folder, child)
        manifests.append(part)
        for descriptor in (manifest["config"], *manifest["layers"]):
            blob = _part(folder, descriptor)
            blobs[blob.digest] = blob
    return Layout(index=listed, manifests=tuple(manifests), blobs=tuple(blobs.values()))


def _document(folder: Path, descriptor: dict[str, Any]) -> tuple[Part, dict[str, Any]]:
    part = _part(folder, descriptor)
    raw = part.path.read_bytes()
    if (found := Digest.of(raw)) != part.digest:
        raise _broken("a manifest of the built image has changed", part.digest.text, found.text, part.path)
    data: dict[str, Any] = json.loads(raw)
    return part, data


def _part(folder: Path, descriptor: dict[str, Any]) -> Part:
    digest = Digest(descriptor["digest"])
    path = folder / "blobs" / "sha256" / digest.hex
    if not path.is_file():
        raise _broken("the built image is not complete", f"{digest}", "no such file", path)
    if (size := path.stat().st_size) != descriptor["size"]:
        raise _broken("a file of the built image has another size", f"{descriptor['size']} B", f"{size} B", path)
    return Part(digest=digest, size=size, media_type=descriptor["mediaType"], path=path)


def _broken(summary: str, expected: str, found: str, path: Path) -> DigestMismatch:
    return DigestMismatch(summary, expected=expected, found=found, where=str(path), next_step="nox -s build")
