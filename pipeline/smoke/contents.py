"""The subject of smoke, one platform of an image, and its content, read from its layers once.

Of each file only what the checks need is kept (mode, ELF header, interpreter, version), so memory is bounded by the
largest file.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from pipeline.core.platforms import Platform
from pipeline.core.records import BuiltPlatform, Image, Variant
from pipeline.inputs.lock import Artifact, Lock
from pipeline.inspect import elf
from pipeline.oci import layers
from pipeline.oci.layers import FileSystem, Unreadable
from pipeline.oci.layout import Layout, Part

_SHEBANG = 256  # bytes; the kernel reads no more of a script's first line


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One platform of an image."""

    image: Image
    platform: Platform
    layout: Layout  # of the image
    lock: Lock

    @property
    def built(self) -> BuiltPlatform:
        """The platform's manifest, config and size."""
        return self.image.platforms[self.platform]

    @property
    def airgap(self) -> Artifact | None:
        """The archive of system images in the variant airgap; None in the image."""
        locked = self.lock.airgap if self.image.variant is Variant.AIRGAP else ()
        return next((file for file in locked if file.platform == self.platform), None)


@dataclass(frozen=True, kw_only=True)
class File:
    """A regular file."""

    header: elf.Header | None
    shebang: str
    sha256: str = ""  # if the digest is wanted, or the file was read as a whole
    is_whole: bool = False  # it was read as a whole, for the fields below
    evidence: str | None = None  # where it contains the expected version
    build: elf.GoBuild | None = None
    text: bytes = b""  # the content of a script or of a file in Wanted.texts


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The files to read as a whole."""

    versions: Mapping[str, str]  # path of a program → the version that it must contain; can be empty
    texts: Collection[str]  # paths of files whose content is wanted
    hashed: tuple[str, ...]  # prefixes of the paths whose digest is wanted

    def look(self, path: str, member: tarfile.TarInfo, content: IO[bytes]) -> File:
        """Read one file, as a whole or its first bytes."""
        version, is_text = self.versions.get(path), path in self.texts
        whole = is_text or version is not None
        to_hash = whole or path.startswith(self.hashed)
        data = content.read(member.size if to_hash else _SHEBANG)
        header, is_script = elf.header(data[: elf.HEAD]), data[:2] == b"#!"
        shebang = data[2:_SHEBANG].split(b"\n", 1)[0] if is_script and header is None else b""
        return File(
            header=header,
            shebang=shebang.decode("utf-8", "replace").strip(),
            sha256=hashlib.sha256(data).hexdigest() if to_hash else "",
            is_whole=whole,
            evidence=elf.version_evidence(data, version) if version else None,
            build=elf.go_build(data) if version is not None else None,
            text=data if is_text or (whole and is_script) else b"",
        )


def read(parts: Sequence[Part], unpacked: Sequence[str], wanted: Wanted) -> FileSystem[File]:
    """Read and hash layers, the lowest first, in one pass. Raises Unreadable.

    `unpacked`: the config's diff_ids.
    """
    if len(unpacked) != len(parts):
        raise Unreadable(f"the manifest has {len(parts)} layers, the config {len(unpacked)}")
    files: FileSystem[File] = FileSystem()
    for part, expected in zip(parts, unpacked, strict=True):
        files.add(layers.read(part.path, part.digest, wanted.look, expected))
    return files
