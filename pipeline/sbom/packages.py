"""The packages of an SBOM, independent of its format, and what the lock and components.py state about them.

purl: https://github.com/package-url/purl-spec (types deb, golang, github, oci, generic).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from packageurl import PackageURL

from pipeline.components import PROGRAMS
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.inputs.lock import Artifact

_PROGRAMS = {program.name: program for program in PROGRAMS.values()}


class Kind(StrEnum):
    """The kind of a package."""

    IMAGE = "image"
    BASE = "base image"
    APPLICATION = "application"
    LIBRARY = "library"  # a Go module in a program
    SYSTEM = "system package"
    INNER = "image in an archive"


@dataclass(frozen=True, kw_only=True)
class Package:
    """One thing in the image."""

    key: str  # unique in the inventory, and reproducible
    kind: Kind
    name: str
    version: str | None
    purl: str | None = None
    licence: str | None = None  # SPDX expression; None: not known
    url: str | None = None  # of the download
    sha256: str | None = None  # hexadecimal, of the file at `url`, else of the file in the image
    path: str | None = None  # in the image
    supplier: str | None = None
    source: str | None = None  # Debian's source package and its version
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """One platform's image."""

    platform: Platform
    created: str  # RFC 3339
    namespace: str  # a URL of this image alone
    root: Package
    base: Package
    packages: tuple[Package, ...]  # all, root and base too, sorted by key
    contains: tuple[tuple[str, str], ...]  # keys: container, content
    uses: tuple[tuple[str, str], ...]  # keys: program, library
    texts: Mapping[str, str]  # LicenseRef-… → text of the licence


def of_component(file: Artifact, path: str | None) -> Package:
    """Return the package of a component's locked file; `path`: in the image, None for an archive."""
    package = of_program(f"component/{file.component}", file.component, file.version, file.digest, path)
    if file.component not in _PROGRAMS:  # docker's archive
        supplied = purl("generic", f"docker/{file.component}", file.version, download_url=file.url)
        package = replace(package, purl=supplied, licence="Apache-2.0", supplier="Docker")
    return replace(package, url=file.url, note=f"its digest is believed because it is {file.grade}")


def of_program(key: str, name: str, version: str | None, digest: Digest, path: str | None) -> Package:
    """Return the package of a component's program; `digest`: of its file."""
    known = _PROGRAMS.get(name)
    return Package(
        key=key,
        kind=Kind.APPLICATION,
        name=name,
        version=version,
        purl=_supplier_purl(name, version),
        licence=known.licence if known else None,
        sha256=digest.hex,
        path=path,
        supplier=known.supplier if known else None,
    )


def _supplier_purl(name: str, version: str | None) -> str | None:
    """Return a program's purl as components.py defines it; None if it is not there."""
    known = _PROGRAMS.get(name)
    if known is None or version is None:
        return None
    number = re.match(r"v?(\d+)", version)
    major = int(number[1]) if number else 0
    kind, _, rest = known.purl.format(major=f"/v{major}" if major > 1 else "").partition("/")
    return purl(kind, rest, known.tag + version.removeprefix("v"))


def purl(kind: str, path: str, version: str, **qualifiers: str) -> str:
    """Return a purl; `path`: namespace/name."""
    namespace, _, name = path.rpartition("/")
    present = {key: value for key, value in qualifiers.items() if value}
    return PackageURL(kind, namespace or None, name, version, present or None).to_string()
