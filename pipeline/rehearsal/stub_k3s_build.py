"""Pack the stub k3s as one executable file: a zipapp, the same bytes for the same version and platform."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from pipeline.core.stub import MARKER, SUFFIX

SOURCE = Path(__file__).parent / "stub_k3s"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time in a zip
_MAIN = "import sys\n\nfrom stub_k3s.__main__ import main\n\nsys.exit(main())\n"


def build(version: str, platform: str) -> bytes:
    """Return the file's bytes; `version` ends in SUFFIX, `platform` is in OCI notation.

    Nothing is compressed, since zlib's output differs between its builds. The zip's comment has the version in plain
    text, so that a check need not run the program.
    """
    if not version.endswith(SUFFIX):
        raise ValueError(f"the version of a stub ends in {SUFFIX}, found: {version}")
    files = {f"stub_k3s/{path.name}": path.read_text(encoding="utf-8") for path in SOURCE.glob("*.py")}
    files["stub_k3s/about.py"] = f"VERSION = {version!r}\nPLATFORM = {platform!r}\n"
    files["__main__.py"] = _MAIN
    packed = io.BytesIO()
    packed.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_STORED) as archive:
        for name, text in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix, on every machine
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text.encode())
        archive.comment = f"{MARKER} {version} {platform}\n".encode()
    return packed.getvalue()
