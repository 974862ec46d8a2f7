"""Versions: of what is in the image, of what filled a volume, and which moves between them are refused.

Each volume holds `.dind-k3s/versions` with KEY=VALUE lines, written right before the daemons start for the first time.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dind_k3s.manifest import MANIFEST, components
from dind_k3s.plan import Mistake

ALLOW = "DIND_K3S_ALLOW_VERSION"
STAMP = "versions"  # in our own folder of each volume


@dataclass(frozen=True, order=True)
class Version:
    """A version as docker and k3s write it; the order is theirs: v1.37.1-rc1+k3s1 < v1.37.1+k3s1 < v1.37.1+k3s2."""

    major: int
    minor: int
    patch: int
    final: bool
    candidate: tuple[int, ...]
    build: int

    @classmethod
    def parse(cls, text: str) -> Version | None:
        found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?(-[0-9A-Za-z.-]+)?(?:\+k3s(\d+))?", text)
        if found is None:
            return None
        major, minor, patch, candidate, build = found.groups()
        numbers = tuple(int(number) for number in re.findall(r"\d+", candidate or ""))
        return cls(int(major), int(minor), int(patch or 0), not candidate, numbers, int(build or 0))


def installed(component: str) -> str:
    """What the image's manifest says, else the program itself."""
    found = next((str(entry.get("version")) for entry in components() if entry.get("component") == component), "")
    if not found:
        program = {"docker": "dockerd"}.get(component, component)
        with contextlib.suppress(OSError):
            output = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
            found = next(iter(re.findall(r"v?\d+\.\d+\S*", output)), "")
    if Version.parse(found) is None:
        raise Mistake(f"the version of {component} is not known: neither {MANIFEST} nor the program itself states it")
    return found


def read_stamp(folder: Path) -> dict[str, str]:
    """Component → version that last wrote this volume; a file that a crash left empty says nothing."""
    try:
        lines = (folder / STAMP).read_text().splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return {}
    return {key: value for key, is_pair, value in (line.partition("=") for line in lines) if is_pair}


def write_stamp(folder: Path, versions: Mapping[str, str]) -> None:
    """Whole or not at all, and on the disk before anything newer than it is."""
    text = "".join(f"{key}={value}\n" for key, value in sorted(versions.items()))
    write_whole(folder / STAMP, text.encode())


def write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def refusal(component: str, was: str, now: str) -> str:
    """Why a volume that `was` wrote is not for `now`; empty when it is."""
    before, after = Version.parse(was), Version.parse(now)
    if before is None or after is None:
        return ""
    if after < before:
        return f"{component} {now} is older than {was}, which wrote this volume, and may not read what that one wrote"
    if component == "k3s" and (after.major, after.minor) > (before.major, before.minor + 1):
        return f"k3s {now} skips a minor version: {was} wrote this volume, and Kubernetes is upgraded one by one"
    return ""


def allowed(env: Mapping[str, str]) -> set[str]:
    """The versions that are wanted whatever wrote the volume. By name, so that a forgotten variable ends by itself."""
    return set(re.split(r"[\s,]+", env.get(ALLOW, "")))
