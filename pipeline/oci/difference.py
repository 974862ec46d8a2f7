"""Compares two images of one platform: layers, paths and fields that differ.

Formats: https://github.com/opencontainers/image-spec/blob/main/manifest.md and layer.md of the same folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path

from pipeline.core.names import Digest
from pipeline.oci import layers
from pipeline.oci.index import Document


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two images."""

    manifest: Document
    blob: Callable[[Digest], Path]  # a file with that blob's bytes

    @property
    def config(self) -> Document:
        """Its image config."""
        data: Document = json.loads(self.blob(Digest(self.manifest["config"]["digest"])).read_bytes())
        return data

    def entries(self, layer: Document) -> dict[str, Entry]:
        """Return a layer's entries by path; of a duplicate path the last, as when it is unpacked."""
        digest = Digest(layer["digest"])
        entries: dict[str, Entry] = {}
        for member, content in layers.members(self.blob(digest), digest):
            # Only pax records that repeat none of tar's own fields.
            more = {key: value for key, value in member.pax_headers.items() if key not in ("path", "linkpath", "mtime")}
            entries[member.name] = Entry(
                kind=member.type.decode("ascii"),
                mode=f"{member.mode:o}",
                owner=f"{member.uid}:{member.gid}",
                time=member.mtime,
                link=member.linkname,
                size=member.size,
                content=Digest.of_stream(content).hex if content else "",
                extended=json.dumps(more, sort_keys=True),
            )
        return entries


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One path of a layer."""

    kind: str  # tar's type flag
    mode: str  # octal
    owner: str  # uid:gid
    time: float  # seconds since 1970
    link: str  # target of a link
    size: int  # bytes
    content: str  # sha256 of a file's bytes, in hex
    extended: str  # extended attributes and other pax records, as JSON


def between(published: Side, rebuilt: Side) -> Iterator[str]:
    """Yield every difference as a line. Reads only layers that differ."""
    yield from _plain("the manifest's annotations", published.manifest, rebuilt.manifest, "annotations")
    before, after = published.config, rebuilt.config
    commands = [step.get("created_by", "") for step in before.get("history", ()) if not step.get("empty_layer")]
    for key in sorted((before.keys() | after.keys()) - {"rootfs", "history"}):
        yield from _plain("the config", before, after, key)
    pairs = zip_longest(published.manifest["layers"], rebuilt.manifest["layers"])
    for count, (old, new) in enumerate(pairs, 1):
        name = f"layer {count}" + (f" ({commands[count - 1][:60].strip()})" if count <= len(commands) else "")
        if old is None or new is None:
            yield f"{name}: only the {'rebuilt' if old is None else 'published'} image has it"
        elif old["digest"] != new["digest"]:
            yield from _layer(name, published.entries(old), rebuilt.entries(new))


def _plain(where: str, old: Document, new: Document, key: str) -> Iterator[str]:
    if old.get(key) != new.get(key):
        yield f"{where}, {key}: published {_short(old.get(key))}, rebuilt {_short(new.get(key))}"


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 200 else f"{text[:197]}…"


def _layer(name: str, old: Mapping[str, Entry], new: Mapping[str, Entry]) -> Iterator[str]:
    if old == new:
        yield f"{name}: the same files in other bytes: another order, or another compressor"
    for path in sorted(old.keys() | new.keys()):
        if path not in old or path not in new:
            yield f"{name}, {path}: only the {'published' if path in old else 'rebuilt'} image has it"
            continue
        values = [
            (field.name, getattr(old[path], field.name), getattr(new[path], field.name)) for field in fields(Entry)
        ]
        if parts := [f"{field} {before} → {after}" for field, before, after in values if before != after]:
            yield f"{name}, {path}: {', '.join(parts)}"
