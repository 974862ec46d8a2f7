"""Converts Debian's copyright files to SPDX licence expressions. No I/O.

Sources: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/ (names and operators),
https://spdx.github.io/spdx-spec/v2.3/SPDX-license-expressions/.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from debian import copyright as machine_readable

# It warns of minor flaws in Debian's files.
logging.getLogger("debian.copyright").setLevel(logging.ERROR)

# SPDX identifiers that Debian uses with the same meaning, in any letter case.
_SAME = (
    *("0BSD", "Apache-2.0", "Artistic-2.0", "Beerware", "BSD-2-Clause", "BSD-3-Clause", "BSD-3-Clause-Attribution"),
    *("BSD-4-Clause", "BSD-4-Clause-UC", "BSL-1.0", "CC-BY-3.0", "CC-BY-SA-4.0", "CC0-1.0", "curl", "FSFAP", "FSFUL"),
    *("FSFULLR", "ISC", "Latex2e", "MIT", "MIT-CMU", "MPL-1.1", "MPL-2.0", "MS-PL", "OLDAP-2.8", "Unicode-DFS-2016"),
    *("X11", "Zlib"),
)
# Debian's names in lower case → SPDX identifiers, for names of exactly one licence.
_KNOWN = {name.lower(): name for name in _SAME} | {
    "apache-2": "Apache-2.0",
    "artistic": "Artistic-1.0-Perl",
    "bsd-2-clause-netbsd": "BSD-2-Clause",
    "bsl-1": "BSL-1.0",
    "expat": "MIT",
    "openldap-2.8": "OLDAP-2.8",
    "psf": "PSF-2.0",
}
_GNU = re.compile(r"(a?l?gpl|gfdl(?:-niv)?)-(\d)(?:\.(\d))?(?:\.0)?(\+|-or-later|-only)?", re.IGNORECASE)
_VERSIONS = {
    "gpl": ("1.0", "2.0", "3.0"),
    "lgpl": ("2.0", "2.1", "3.0"),
    "agpl": ("1.0", "3.0"),
    "gfdl": ("1.1", "1.2", "1.3"),
    "gfdl-niv": ("1.1", "1.2", "1.3"),
}


@dataclass(frozen=True, kw_only=True)
class Licence:
    """The licences of a package."""

    expression: str  # SPDX; other licences are LicenseRef-…
    texts: Mapping[str, str] = field(default_factory=dict)  # LicenseRef-… → its text, or the place of the text


@lru_cache(maxsize=1024)  # most files are the same on all platforms
def read(package: str, text: str) -> Licence | None:
    """Return all licences of a copyright file; None if it is not machine readable, or names none."""
    if not text.lstrip("\ufeff \n").lower().startswith("format:"):
        return None
    try:
        document = machine_readable.Copyright(text.splitlines(keepends=True), strict=False)
        texts: dict[str, str] = {}
        of_files = [_licence(paragraph) for paragraph in document.all_files_paragraphs()]
        named = {licence.synopsis for licence in of_files if licence is not None and licence.synopsis}
        for licence in (*of_files, *map(_licence, document.all_license_paragraphs())):
            if licence is not None and licence.text:
                texts[licence.synopsis] = licence.text
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
    # Joined by AND, with brackets around expressions that contain OR.
    joined = " AND ".join(f"({part})" if " OR " in part and len(parts) > 1 else part for part in parts)
    return Licence(expression=joined, texts=dict(sorted(own.items())))


def _licence(paragraph: object) -> machine_readable.License | None:
    licence = getattr(paragraph, "license", None)  # the library creates this attribute at run time
    return licence if isinstance(licence, machine_readable.License) else None


def spdx_id(name: str) -> str | None:
    """Return the SPDX identifier of one of Debian's names; None if the name is ambiguous or unknown."""
    lowered = name.strip().lower()
    if lowered in _KNOWN:
        return _KNOWN[lowered]
    match = _GNU.fullmatch(lowered)
    if match is None:
        return None
    family, major, minor, rest = match.groups()
    version = f"{major}.{minor or '0'}"
    suffix = "-or-later" if rest in ("+", "-or-later") else "-only"
    if version not in _VERSIONS.get(family, ()):
        return None
    if family.startswith("gfdl"):
        return f"GFDL-{version}{'-no-invariants' if family == 'gfdl-niv' else ''}{suffix}"
    return f"{family.upper()}-{version}{suffix}"


def _expression(name: str, leaf: Callable[[str], str]) -> str:
    """Convert a synopsis; a comma before "and" or "or" has the lowest precedence, then "or", then "and"."""
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
