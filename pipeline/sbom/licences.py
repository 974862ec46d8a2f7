"""Debian's copyright files as SPDX licence expressions. No I/O.

Sources: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/ (names, and how they are joined),
https://spdx.github.io/spdx-spec/v2.3/SPDX-license-expressions/.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from debian import copyright as machine_readable

# It tells of small flaws in files that are Debian's, not ours.
logging.getLogger("debian.copyright").setLevel(logging.ERROR)

# Debian's names in lower case → SPDX identifiers, where a name means exactly one licence.
_KNOWN = {
    "0bsd": "0BSD",
    "apache-2": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "artistic": "Artistic-1.0-Perl",
    "artistic-2.0": "Artistic-2.0",
    "beerware": "Beerware",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-2-clause-netbsd": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-3-clause-attribution": "BSD-3-Clause-Attribution",
    "bsd-4-clause": "BSD-4-Clause",
    "bsd-4-clause-uc": "BSD-4-Clause-UC",
    "bsl-1": "BSL-1.0",
    "bsl-1.0": "BSL-1.0",
    "cc-by-3.0": "CC-BY-3.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc0-1.0": "CC0-1.0",
    "curl": "curl",
    "expat": "MIT",
    "fsfap": "FSFAP",
    "fsful": "FSFUL",
    "fsfullr": "FSFULLR",
    "isc": "ISC",
    "latex2e": "Latex2e",
    "mit": "MIT",
    "mit-cmu": "MIT-CMU",
    "mpl-1.1": "MPL-1.1",
    "mpl-2.0": "MPL-2.0",
    "ms-pl": "MS-PL",
    "oldap-2.8": "OLDAP-2.8",
    "openldap-2.8": "OLDAP-2.8",
    "psf": "PSF-2.0",
    "unicode-dfs-2016": "Unicode-DFS-2016",
    "x11": "X11",
    "zlib": "Zlib",
}
_GNU = re.compile(r"(a?l?gpl|gfdl(?:-niv)?)-(\d)(?:\.(\d))?(?:\.0)?(\+|-or-later|-only)?", re.IGNORECASE)
_GFDL = {"gfdl": "GFDL", "gfdl-niv": "GFDL"}


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What a package is under."""

    expression: str  # SPDX; names of its own begin with LicenseRef-
    texts: Mapping[str, str] = field(default_factory=dict)  # LicenseRef-… → its text, or where that is


@lru_cache(maxsize=1024)  # the platforms' files are the same but for a few
def read(package: str, text: str) -> Licence | None:
    """All licences that a copyright file names; None when it is not machine readable, or names none."""
    if not text.lstrip("\ufeff \n").lower().startswith("format:"):
        return None
    try:
        document = machine_readable.Copyright(text.splitlines(keepends=True), strict=False)
        texts: dict[str, str] = {}
        of_files = [_licence(one) for one in document.all_files_paragraphs()]
        named = {one.synopsis for one in of_files if one is not None and one.synopsis}
        for one in (*of_files, *map(_licence, document.all_license_paragraphs())):
            if one is not None and one.text:
                texts[one.synopsis] = one.text
    except (machine_readable.MachineReadableFormatError, ValueError, TypeError, KeyError):
        return None
    own: dict[str, str] = {}

    def leaf(name: str) -> str:
        known = spdx_id(name)
        if known is None:
            known = f"LicenseRef-{_slug(package)}-{_slug(name)}"
            own[known] = texts.get(name) or f"«{name}» in /usr/share/doc/{package}/copyright of the image"
        return known

    parts = sorted({expression for name in named if (expression := _expression(name.strip(), leaf))})
    if not parts:
        return None
    # «And» of what its files are under, each by itself: brackets round whatever has an «or» in it.
    joined = " AND ".join(f"({part})" if " OR " in part and len(parts) > 1 else part for part in parts)
    return Licence(expression=joined, texts=dict(sorted(own.items())))


def _licence(paragraph: object) -> machine_readable.License | None:
    found = getattr(paragraph, "license", None)  # a field that the library makes at run time
    return found if isinstance(found, machine_readable.License) else None


def spdx_id(name: str) -> str | None:
    """The SPDX identifier of one of Debian's names; None when it is not certain which licence it is."""
    lowered = name.strip().lower()
    if lowered in _KNOWN:
        return _KNOWN[lowered]
    if found := _GNU.fullmatch(lowered):
        family, major, minor, rest = found.groups()
        version = f"{major}.{minor or '0'}"
        suffix = "-or-later" if rest in ("+", "-or-later") else "-only"
        if family in _GFDL:
            kind = "-no-invariants" if family == "gfdl-niv" else ""
            return f"GFDL-{version}{kind}{suffix}" if version in ("1.1", "1.2", "1.3") else None
        fitting = {"gpl": ("1.0", "2.0", "3.0"), "lgpl": ("2.0", "2.1", "3.0"), "agpl": ("1.0", "3.0")}
        return f"{family.upper()}-{version}{suffix}" if version in fitting.get(family, ()) else None
    return None


def _expression(name: str, leaf: Callable[[str], str]) -> str:
    """One synopsis; a comma before «and» or «or» binds least, then «or», then «and»."""
    for pattern, joint in (
        (r"\s*,\s*and\s+", " AND "),
        (r"\s*,\s*or\s+", " OR "),
        (r"\s*,\s*", " AND "),
        (r"\s+or\s+", " OR "),
        (r"\s+and\s+", " AND "),
    ):
        parts = [part for part in re.split(pattern, name, flags=re.IGNORECASE) if part]
        if len(parts) > 1:
            inner = dict.fromkeys(_expression(part, leaf) for part in parts)
            if len(inner) == 1:
                return next(iter(inner))
            return joint.join(f"({part})" if joint == " AND " and " OR " in part else part for part in inner)
    return leaf(name) if name else ""


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-") or "other"
