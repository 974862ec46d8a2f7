"""An OCI layout folder: one index, its manifests, their blobs.

Source: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.core.errors import DigestMismatch
from pipeline.core.names import INDEX, MANIFEST, Digest
from pipeline.oci.index import Document, descriptor, layout_files


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a layout, as the index or a manifest describes it."""

    digest: Digest
    size: int  # bytes
    media_type: str
    path: Path

    @property
    def descriptor(self) -> dict[str, Any]:
        """Its entry in an index or a manifest."""
        return descriptor(self.media_type, self.digest, self.size)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The closure of one index in a layout folder."""

    index: Part
    manifests: tuple[Part, ...]  # in the order of the index, attestations too
    blobs: tuple[Part, ...]  # configs and layers, each once, in the order of the manifests

    def __iter__(self) -> Iterator[Part]:
        yield from (self.index, *self.manifests, *self.blobs)

    @cached_property
    def _parts(self) -> dict[Digest, Part]:
        return {part.digest: part for part in self}

    def part(self, digest: Digest) -> Part:
        """Return the file with that digest."""
        return self._parts[digest]

    def document(self, digest: Digest) -> Document:
        """Return the index, a manifest or a config as JSON."""
        document: Document = json.loads(self.part(digest).path.read_bytes())
        return document

    def config(self, manifest: Digest) -> Document:
        """Return the config of a manifest."""
        return self.document(Digest(self.document(manifest)["config"]["digest"]))

    def layers(self, manifest: Digest) -> list[Part]:
        """Return the layers of a manifest, the lowest first; one can be there twice."""
        return [self.part(Digest(layer["digest"])) for layer in self.document(manifest)["layers"]]

    def verify(self) -> int:
        """Hash every file; return the bytes read. Raises DigestMismatch for the first with another digest."""
        for part in self:
            if (actual := Digest.of_file(part.path)) != part.digest:
                raise _broken("a file of the built image has changed", part.digest.text, actual.text, part.path)
        return sum(part.size for part in self)


def write_top(folder: Path, *descriptors: Document) -> None:
    """Write oci-layout and index.json of these manifests or indexes."""
    for name, data in layout_files(*descriptors).items():
        (folder / name).write_bytes(data)


def read(folder: Path, index: Digest) -> Layout:
    """List the files of an index; index and manifests are hashed, of blobs only the size is checked.

    Raises DigestMismatch if a file is missing, or has another size or digest than described.
    """
    top = folder / "blobs" / "sha256" / index.hex
    if not top.is_file():
        raise _broken("the built image is not there", f"the index {index}", "no such file", top)
    listed, data = _document(folder, descriptor(INDEX, index, top.stat().st_size))
    if data.get("mediaType") not in (None, INDEX):
        raise _broken("the top of the layout is not an OCI index", INDEX, str(data.get("mediaType")), top)
    manifests: list[Part] = []
    blobs: dict[Digest, Part] = {}
    for child in data["manifests"]:
        if child["mediaType"] != MANIFEST:
            raise _broken("the index holds more than image manifests", MANIFEST, child["mediaType"], top)
        part, manifest = _document(folder, child)
        manifests.append(part)
        for entry in (manifest["config"], *manifest["layers"]):
            blob = _part(folder, entry)
            blobs[blob.digest] = blob
    return Layout(index=listed, manifests=tuple(manifests), blobs=tuple(blobs.values()))


def _document(folder: Path, entry: Document) -> tuple[Part, Document]:
    part = _part(folder, entry)
    raw = part.path.read_bytes()
    if (actual := Digest.of(raw)) != part.digest:
        raise _broken("a manifest of the built image has changed", part.digest.text, actual.text, part.path)
    data: Document = json.loads(raw)
    return part, data


def _part(folder: Path, entry: Document) -> Part:
    digest = Digest(entry["digest"])
    path = folder / "blobs" / "sha256" / digest.hex
    if not path.is_file():
        raise _broken("the built image is not complete", f"{digest}", "no such file", path)
    if (size := path.stat().st_size) != entry["size"]:
        raise _broken("a file of the built image has another size", f"{entry['size']} B", f"{size} B", path)
    return Part(digest=digest, size=size, media_type=entry["mediaType"], path=path)


def _broken(summary: str, expected: str, actual: str, path: Path) -> DigestMismatch:
    return DigestMismatch(summary, expected=expected, found=actual, where=str(path), next_step="nox -s build")
