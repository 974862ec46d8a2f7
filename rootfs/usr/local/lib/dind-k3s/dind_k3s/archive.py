"""A snapshot's file: a .tar.gz whose first entry lists all others with size and SHA-256, so that a part is no whole."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from dind_k3s.plan import Mistake
from dind_k3s.volume import K3S, STATE

CONTENTS = "dind-k3s-snapshot.json"
FORMAT = 1
LIMIT = 4 << 20  # of the list of contents

# Archives of earlier images have these two as links, which k3s makes with an absolute target (pkg/server/server.go,
# printTokens), and makes again where they are missing. Today's have no links.
LINKS = ("server/node-token", "server/agent-token")
LINKS_LEAD_TO = ("token", f"{K3S}/server/token")

BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, KeyError, TypeError)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a snapshot says about itself."""

    created: str
    reason: str
    versions: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]]


def write(folder: Path, to: IO[bytes], *, created: str, reason: str, versions: Mapping[str, str]) -> Contents:
    """Pack all files in `folder`, which has no links and which no other process changes."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[name] = {"size": path.stat().st_size, "sha256": digest, "mode": path.stat().st_mode & 0o777}
    contents = Contents(created=created, reason=reason, versions=versions, files=files)
    head = {"format": FORMAT, "created": created, "reason": reason, "versions": dict(versions), "files": files}
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=3, fileobj=to, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        data = json.dumps(head, indent=1).encode()
        entry = tarfile.TarInfo(CONTENTS)
        entry.size, entry.mode = len(data), 0o600
        tar.addfile(entry, io.BytesIO(data))
        for name in files:
            tar.add(folder / name, name)
    return contents


def unpack(source: IO[bytes], name: str, folder: Path) -> Contents:
    """Everything into `folder`, or a Mistake that names what is wrong with the file."""
    try:
        with gzip.GzipFile(fileobj=source, mode="rb") as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
            contents = _contents(tar.next(), tar, name)
            _refuse_without_room(contents, folder)
            while entry := tar.next():
                _place(entry, tar, contents, folder)
            while packed.read(1 << 20):
                pass  # up to the checksum at the end
    except Mistake:
        raise
    except BROKEN as error:
        raise Mistake(
            f"{name} is not a snapshot, or only a part of one ({str(error) or type(error).__name__})"
        ) from None
    missing = [file for file in contents.files if not os.path.lexists(folder / file)]
    if missing:
        raise Mistake(f"{name} is only a part of a snapshot: {', '.join(missing[:3])} is missing")
    return contents


def _contents(first: tarfile.TarInfo | None, tar: tarfile.TarFile, name: str) -> Contents:
    file = tar.extractfile(first) if first and first.name == CONTENTS and first.size <= LIMIT else None
    if file is None:
        raise Mistake(f"{name} is an archive of something else: it does not begin with {CONTENTS}")
    head = json.loads(file.read())
    if head["format"] != FORMAT:
        raise Mistake(f"{name} has format {head['format']}, this image reads {FORMAT}: use the image it came from")
    for path in head["files"]:
        pure = PurePosixPath(path)
        if ".." in pure.parts or not any(pure == PurePosixPath(p) or PurePosixPath(p) in pure.parents for p in STATE):
            raise Mistake(f"{name} holds {path}, which is no part of a cluster's state")
    return Contents(created=head["created"], reason=head["reason"], versions=head["versions"], files=head["files"])


def _refuse_without_room(contents: Contents, folder: Path) -> None:
    need = sum(int(file.get("size", 0)) for file in contents.files.values())
    free = shutil.disk_usage(folder).free
    if need > free:
        raise Mistake(f"there is no room for it: {need >> 20} MiB are needed, {free >> 20} MiB are free")


def _place(entry: tarfile.TarInfo, tar: tarfile.TarFile, contents: Contents, folder: Path) -> None:
    """One entry, if it is what the contents promise."""
    if (promised := contents.files.get(entry.name)) is None:
        raise ValueError(f"{entry.name} is not in its list of contents")
    target = folder / entry.name
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if entry.issym():
        if entry.name not in LINKS or entry.linkname not in LINKS_LEAD_TO:
            raise ValueError(f"{entry.name}: a link to {entry.linkname}")
        target.symlink_to(entry.linkname)
        return
    file = tar.extractfile(entry)
    if file is None:
        raise ValueError(f"{entry.name} is neither a file nor a link")
    digest = hashlib.sha256()
    with target.open("xb") as output:
        while data := file.read(1 << 20):
            digest.update(data)
            output.write(data)
        output.flush()
        os.fsync(output.fileno())
        os.fchmod(output.fileno(), int(promised["mode"]) & 0o777)
    if (output_size := target.stat().st_size) != promised["size"] or digest.hexdigest() != promised["sha256"]:
        raise ValueError(f"{entry.name} is not what it was: {output_size} bytes, SHA-256 {digest.hexdigest()}")
