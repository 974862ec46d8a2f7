"""dind-k3s verify: whether the programs in here are those that were built into the image.

Reports what a volume, a bind mount, a broken layer or a hand has changed; not what somebody did who
changed the manifest, too. It looks at each file that the manifest names and, for extra ones, at their folders below
/usr/local.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dind_k3s import clients
from dind_k3s.manifest import MANIFEST, components, digest
from dind_k3s.root import at

USAGE = """usage: dind-k3s verify
Exits with 0 when every program is as it was built, 1 when one is changed, missing, or extra, 2 when it is called
wrongly."""


def differences(files: dict[str, str]) -> Iterator[str]:
    """A line for each file that is not what the manifest says."""
    for name, expected in sorted(files.items()):
        try:
            found = digest(at(name))
        except FileNotFoundError:
            yield f"missing   {name}"
        except OSError as error:
            yield f"unread    {name}: {error.strerror}"
        else:
            if found != expected:
                yield f"changed   {name}: its sha256 is {found}, the manifest says {expected}"


def extra_files(files: dict[str, str]) -> Iterator[str]:
    """A line for each file beside the known ones."""
    for folder in sorted({str(Path(name).parent) for name in files if name.startswith("/usr/local/")}):
        try:
            beside = sorted(path.name for path in at(folder).iterdir() if not path.is_dir() and not is_client(path))
        except OSError:
            continue  # what was in it is reported as missing
        yield from (f"extra     {folder}/{name}" for name in beside if f"{folder}/{name}" not in files)


def is_client(path: Path) -> bool:
    """Return whether it is one of the links that clients.py made."""
    return path.is_symlink() and path.readlink() == at(clients.SCRIPT)


def described(entry: dict[str, Any]) -> str:
    """A component in words."""
    inside = ", ".join(f"{name} {version}" for name, version in (entry.get("embedded") or {}).items())
    return f"{entry.get('component')} {entry.get('version')}" + (f" ({inside})" if inside else "")


def main() -> int:
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    if sys.argv[1:]:
        print(USAGE, file=sys.stderr)
        return 2
    known: dict[str, str] = {}
    messages: list[str] = []
    for entry in components():
        files = entry.get("files")
        files = files if isinstance(files, dict) else {}
        wrong = [*differences(files)]
        state = f"{len(wrong)} of {len(files)} files differ" if wrong else f"{len(files)} files as built"
        print(f"{described(entry)}: {state if files else 'the manifest names no files'}")
        messages += wrong if files else [f"unknown   {MANIFEST} names no files of {entry.get('component')}"]
        known |= files
    messages += extra_files(known)
    if not known:
        messages = [f"unknown   {MANIFEST} is missing, or names no files"]
    for line in messages:
        print(line, file=sys.stderr)
    return int(bool(messages))


if __name__ == "__main__":
    sys.exit(main())
