"""Load k3s's system images, where the image has them (its variant airgap), then the archives in /app/images.

Of the latter what every pod waits for comes first, then it goes by name. Each file is loaded once for each volume, and
again when it changed or when dockerd lacks an image of it (docker system prune). A file that cannot be loaded is logged
and does not stop the others. `supervisorctl start preload` looks again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from dind_k3s import system_images
from dind_k3s.board import write
from dind_k3s.docker_api import Docker
from dind_k3s.root import RUN, at, facts

SOURCE = "/app/images"
STATE = f"{RUN}/images.json"
BUILTIN = "/usr/share/dind-k3s/images"
FIRST_LOADED = f"{RUN}/images.first"  # run-k3s waits for it where there are system images
ARCHIVE = re.compile(r".+\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz|tzst)", re.IGNORECASE)  # what `docker load` unpacks


def files() -> list[Path]:
    """Return all archives in the order in which they are loaded."""
    return [*builtin(), *sorted(filter(is_archive, given()), key=lambda file: (system_images.rank(file.name), file))]


def given() -> list[Path]:
    """Return what is in /app/images and the folders below it, except for hidden files."""
    found = []
    for folder, folders, names in os.walk(at(SOURCE)):
        folders[:] = [one for one in folders if not one.startswith(".")]
        found += [Path(folder, one) for one in names if not one.startswith(".")]
    return found


def others() -> list[str]:
    """Return the names of what is no archive."""
    return sorted(name_of(file) for file in given() if not is_archive(file))


def is_archive(file: Path) -> bool:
    return ARCHIVE.fullmatch(file.name) is not None


def name_of(file: Path) -> str:
    """Return the name by which logs and state.json know it."""
    return file.name if file.parent == at(BUILTIN) else str(file.relative_to(at(SOURCE)))


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


class Loaded:
    """What was loaded into this volume: a line for each file, its mark and the names of its images, tabs in between."""

    def __init__(self) -> None:
        self._file = at(f"{facts().get('data', '/var/lib/docker')}/.dind-k3s/loaded")
        lines = self._file.read_text().splitlines() if self._file.is_file() else []
        self._names = {own: names for own, *names in (line.split("\t") for line in lines)}

    def has(self, own: str, there: set[str]) -> bool:
        """Return whether a file with this mark was loaded and all of its images are still `there`.

        Earlier releases wrote no names of images; such a file is loaded again.
        """
        names = self._names.get(own, [])
        return bool(names) and there.issuperset(names)

    def add(self, own: str, names: list[str]) -> None:
        """Write down that it was loaded."""
        with self._file.open("a") as stream:
            stream.write("\t".join([own, *names]) + "\n")


def images_there() -> set[str]:
    """Names and ids of the images that dockerd has. Raises OSError."""
    status, body = Docker().ask("GET", "/images/json")
    listed = json.loads(body) if status == 200 else []
    return {name for image in listed for name in [image["Id"], *(image["RepoTags"] or [])]}


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


def load(file: Path) -> tuple[list[str], str]:
    """The names or ids of the images that were loaded; and why the file could not be loaded, empty when it was."""
    if file.parent == at(BUILTIN):
        scratch = at(f"{facts().get('data', '/var/lib/docker')}/.dind-k3s/unpacked")
        done = system_images.load(file, scratch, at(FIRST_LOADED).touch)
    else:
        command = ["docker", "image", "load", "--quiet", "--input", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout, end="", flush=True)
    if done.returncode == 0:
        names = re.findall(r"^Loaded image(?: ID)?: (\S+)", done.stdout, re.MULTILINE)
        return names, "" if names else "there is no image in it"
    return [], " ".join(done.stderr.split())[-300:] or f"docker image load ended with {done.returncode}"


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
    if unknown := others():
        only = ".tar, .tar.gz, .tar.bz2, .tar.xz and .tar.zst"
        print(f"not loaded, since only {only} are: {', '.join(unknown)}", flush=True)
    marks = {file: mark(file) for file in files()}
    if not marks:
        return 0
    for file in marks:
        progress.set(name_of(file), "waiting")
    progress.write()
    while not at(f"{RUN}/ready/docker").exists():
        time.sleep(0.1)
    loaded, there = Loaded(), images_there()
    missing = {file: own for file, own in marks.items() if not loaded.has(own, there)}
    for file in marks.keys() - missing.keys():
        progress.set(name_of(file), "known")
    progress.write()
    for file, own in missing.items():
        progress.set(name_of(file), "loading")
        progress.write()
        began = time.monotonic()
        names, problem = load(file)
        seconds = round(time.monotonic() - began, 1)
        if problem:
            print(f"{name_of(file)} could not be loaded: {problem}", flush=True)
            progress.set(name_of(file), "failed", text=problem)
        else:
            loaded.add(own, names)
            progress.set(name_of(file), "loaded", seconds=seconds)
        progress.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
