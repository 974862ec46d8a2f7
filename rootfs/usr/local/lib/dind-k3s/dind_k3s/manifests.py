"""/app/manifests: copied to where k3s applies manifests from, and which of them the cluster has.

Copies, because k3s follows links to folders only in its newest versions and because its names are strict: it makes an
Addon object for each file, named by what stands before the file's first dot, in one name space with its own components
(docs.k3s.io/installation/packaged-components). So each copy is `app-NAME.yaml` with a name that Kubernetes takes.
k3s looks every 15 s, and keeps in the Addon the SHA-256 of what it applied (k3s-io/k3s pkg/deploy/controller.go).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from pathlib import Path

from dind_k3s.root import at

SOURCE = "/app/manifests"
TARGET = "/app/k3s/server/manifests/app"
SUFFIXES = (".yaml", ".yml", ".json")


def found() -> tuple[dict[str, Path], list[str]]:
    """Name of the copy → the user's file; and what is left out, and why."""
    files: dict[str, Path] = {}
    messages = []
    folder = at(SOURCE)
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if f"{dot}{suffix.lower()}" not in SUFFIXES or not stem or not (folder / name).is_file():
            continue
        copy = f"app-{re.sub(r'[^a-z0-9]+', '-', stem.lower()).strip('-')}.{suffix.lower()}"
        if f"{name}.skip" in names:
            messages.append(f"{name} is left out, because {name}.skip is there")
        elif any(other.partition(".")[0] == copy.partition(".")[0] for other in files):
            messages.append(f"{name} is left out: its name comes to {copy.partition('.')[0]}, as another one's does")
        else:
            files[copy] = folder / name
    return files, messages


def sync() -> list[str]:
    """Make the copies be as the files are; what changed, in words. Two at the same time do no harm."""
    try:
        return _sync()
    except OSError as error:
        return [f"{error.filename} cannot be handed to k3s: {error.strerror}"]


def _sync() -> list[str]:
    files, messages = found()
    target = at(TARGET)
    if not files and not target.is_dir():
        return messages
    target.mkdir(parents=True, exist_ok=True)
    for old in sorted(target.iterdir()):
        if old.name not in files and not old.name.startswith("."):
            old.unlink(missing_ok=True)
            messages.append(
                f"{old.name} is not in {SOURCE} any more; its objects stay until you delete them with kubectl"
            )
    for name, file in files.items():
        copy = target / name
        try:
            content = file.read_bytes()
        except OSError as error:
            messages.append(f"{file.name} cannot be read: {error.strerror}")
            continue
        if not copy.is_file() or copy.read_bytes() != content:
            new = target / f".{name}.{os.getpid()}"  # k3s passes over files that begin with a dot
            new.write_bytes(content)
            new.rename(copy)
            messages.append(f"{file.name} is handed to k3s")
    return messages


def expected() -> dict[str, str]:
    """Addon → the checksum that it has once k3s applied the file."""
    target = at(TARGET)
    files = sorted(target.glob("app-*")) if target.is_dir() else []
    sums = {}
    for file in files:
        with contextlib.suppress(OSError):  # it goes away just now
            sums[file.name.partition(".")[0]] = hashlib.sha256(file.read_bytes()).hexdigest()
    return sums


def main() -> int:
    for line in sync():
        print(f"manifests: {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
