"""Loads k3s's system images, where the image has them (its variant airgap), then /app/images/*.tar, .tar.gz, .tar.zst.

Of the latter what every pod waits for comes first, then it goes by name. Each file once for each volume, as long as it
does not change. One that fails is told and does not stop the others. `supervisorctl start preload` looks again.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from dind_k3s.board import write
from dind_k3s.root import RUN, at, facts

SOURCE = "/app/images"
STATE = f"{RUN}/images.json"
BUILTIN = "/usr/share/dind-k3s/images"
FIRST_LOADED = f"{RUN}/images.first"  # run-k3s waits for it where there are system images
SUFFIXES = (".tar", ".tar.gz", ".tar.zst", ".tgz")
FIRST = ("pause", "coredns")


def files() -> list[Path]:
    """In the order in which they are loaded."""
    folder = at(SOURCE)
    found = [file for file in folder.iterdir() if file.name.endswith(SUFFIXES)] if folder.is_dir() else []

    def rank(file: Path) -> tuple[int, str]:
        return next((number for number, word in enumerate(FIRST) if word in file.name), len(FIRST)), file.name

    return [*builtin(), *sorted(found, key=rank)]


def builtin() -> list[Path]:
    """The image's own archives, which only k3s needs."""
    return sorted(at(BUILTIN).glob("*.tar.zst")) if os.environ.get("DIND_K3S_START_K3S") == "true" else []


def mark(file: Path) -> str:
    """What shows that a file is the one that was loaded: its size and date; of the image's own, its digest."""
    if file.parent == at(BUILTIN):
        sums = (file.parent / "SHA256SUMS").read_text().splitlines()
        return next((line for line in sums if line.endswith(f"  {file.name}")), f"{file}")
    about = file.stat()
    return f"{file} {about.st_size} {int(about.st_mtime)}"


class Progress:
    """The state of each file, for the watcher."""

    def __init__(self) -> None:
        self._images: dict[str, dict[str, object]] = {}

    def set(self, name: str, state: str, **more: object) -> None:
        self._images[name] = {"state": state, **more}

    def write(self) -> None:
        write(at(STATE), json.dumps({"images": self._images}) + "\n")
        with contextlib.suppress(OSError):  # the watcher is not there; it will read the file when it comes
            pipe = os.open(at(f"{RUN}/wake"), os.O_WRONLY | os.O_NONBLOCK)
            os.write(pipe, b"\n")
            os.close(pipe)


def load(file: Path) -> str:
    """Why it could not be loaded; empty when it was."""
    if file.parent == at(BUILTIN):
        # What fails here is told below, where the whole archive is loaded.
        subprocess.run([sys.executable, "-I", "-S", "/usr/local/lib/dind-k3s", "first-images", str(file)], check=False)
        at(FIRST_LOADED).touch()
    done = subprocess.run(
        ["docker", "image", "load", "--quiet", "--input", str(file)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        print(done.stdout.strip(), flush=True)
        return ""
    return " ".join(done.stderr.split())[-300:] or f"docker image load ended with {done.returncode}"


def main() -> int:
    try:
        return load_all()
    except OSError as error:
        print(f"images cannot be loaded: {error.filename}: {error.strerror}", flush=True)
        return 1
    finally:
        with contextlib.suppress(OSError):
            at(FIRST_LOADED).touch()


def load_all() -> int:
    progress = Progress()
    marks: dict[Path, str] = {}
    loaded = at(f"{facts().get('data', '/var/lib/docker')}/.dind-k3s/loaded")
    known = set(loaded.read_text().splitlines()) if loaded.is_file() else set()
    for file in files():
        marks[file] = mark(file)
        progress.set(file.name, "known" if marks[file] in known else "waiting")
    if not marks:
        return 0
    progress.write()
    while not at(f"{RUN}/ready/docker").exists():
        time.sleep(0.1)
    for file, own in marks.items():
        if own in known:
            continue
        progress.set(file.name, "loading")
        progress.write()
        began = time.monotonic()
        problem = load(file)
        seconds = round(time.monotonic() - began, 1)
        if problem:
            print(f"{file.name} could not be loaded: {problem}", flush=True)
            progress.set(file.name, "failed", text=problem)
        else:
            with loaded.open("a") as stream:
                stream.write(f"{own}\n")
            progress.set(file.name, "loaded", seconds=seconds)
        progress.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
