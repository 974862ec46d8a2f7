"""Two images of one platform, held against one another: in which layer, at which path, they differ, and in what.

Formats: https://github.com/opencontainers/image-spec/blob/main/manifest.md and layer.md of the same folder.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pipeline.core.names import Digest

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two images."""

    manifest: Mapping[str, Any]
    blob: Callable[[Digest], Path]  # a file with that blob's bytes

    @property
    def config(self) -> Mapping[str, Any]:
        """Its image config."""
        data: Mapping[str, Any] = json.loads(self.blob(Digest(self.manifest["config"]["digest"])).read_bytes())
        return data


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a layer says of one path."""

    kind: str  # tar's type flag
    mode: str  # octal
    owner: str  # uid:gid
    time: float  # seconds since 1970
    link: str  # target of a link
    size: int  # bytes
    content: str  # sha256 of a file's bytes, in hex
    extended: str  # extended attributes and other pax records, as JSON


def between(published: Side, rebuilt: Side) -> Iterator[str]:
    """Every difference as a sentence; none when both are the same. Only layers that differ are opened."""
    yield from _plain("the manifest's annotations", published.manifest, rebuilt.manifest, "annotations")
    theirs, ours = published.config, rebuilt.config
    made_by = [step.get("created_by", "") for step in theirs.get("history", ()) if not step.get("empty_layer")]
    for key in sorted((theirs.keys() | ours.keys()) - {"rootfs", "history"}):
        yield from _plain("the config", theirs, ours, key)
    pairs = zip_longest(published.manifest["layers"], rebuilt.manifest["layers"])
    for count, (old, new) in enumerate(pairs, 1):
        name = f"layer {count}" + (f" ({made_by[count - 1][:60].strip()})" if count <= len(made_by) else "")
        if old is None or new is None:
            yield f"{name}: only the {'rebuilt' if old is None else 'published'} image has it"
        elif old["digest"] != new["digest"]:
            yield from _layer(
                name, entries(published.blob(Digest(old["digest"]))), entries(rebuilt.blob(Digest(new["digest"])))
            )


def _plain(where: str, old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> Iterator[str]:
    if old.get(key) != new.get(key):
        yield f"{where}, {key}: published {_short(old.get(key))}, rebuilt {_short(new.get(key))}"


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 200 else f"{text[:197]}…"


def _layer(name: str, old: Mapping[str, Entry], new: Mapping[str, Entry]) -> Iterator[str]:
    same = True
    for path in sorted(old.keys() | new.keys()):
        if path not in old or path not in new:
            yield f"{name}, {path}: only the {'published' if path in old else 'rebuilt'} image has it"
            same = False
        elif old[path] != new[path]:
            parts = [
                f"{field.name} {getattr(old[path], field.name)} → {getattr(new[path], field.name)}"
                for field in fields(Entry)
                if getattr(old[path], field.name) != getattr(new[path], field.name)
            ]
            yield f"{name}, {path}: {', '.join(parts)}"
            same = False
    if same:
        yield f"{name}: the same files in other bytes: another order, or another compressor"


def entries(layer: Path) -> dict[str, Entry]:
    """What is in a layer, by path; of a path that is there twice, the last, as it would be unpacked."""
    found: dict[str, Entry] = {}
    with tarfile.open(layer) as archive:
        for member in archive:
            state = hashlib.sha256()
            if member.isreg() and (stream := archive.extractfile(member)) is not None:
                while chunk := stream.read(_CHUNK):
                    state.update(chunk)
            # What tar's own fields hold already is left out, and said once.
            more = {key: value for key, value in member.pax_headers.items() if key not in ("path", "linkpath", "mtime")}
            found[member.name] = Entry(
                kind=member.type.decode("ascii"),
                mode=f"{member.mode:o}",
                owner=f"{member.uid}:{member.gid}",
                time=member.mtime,
                link=member.linkname,
                size=member.size,
                content=state.hexdigest() if member.isreg() else "",
                extended=json.dumps(more, sort_keys=True),
            )
    return found
