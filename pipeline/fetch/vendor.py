"""Stage `vendor`: a folder that is a mirror of everything the lock names, for sites without internet.

    <folder>/<origin>/<path>   every file below its vendor's own path, for each key of versions.ORIGINS that is needed
    <folder>/base/             the base image as an OCI layout
    <folder>/mirrors.yaml      what versions.yaml needs in order to use it
    <folder>/README

A plain static file server, or a `file://` URL, makes it usable; no registry is needed. Files are hard links into the
cache where the file system allows. What an older lock left stays, so one folder can serve several releases.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import yaml

from pipeline.core import cache as cached
from pipeline.core.errors import IntentError, LockStale
from pipeline.core.log import Log, size
from pipeline.core.names import Digest
from pipeline.core.records import write_text
from pipeline.fetch import base
from pipeline.inputs.lock import RENEW, Lock
from pipeline.inputs.versions import ORIGINS, Intent

FRAGMENT = "mirrors.yaml"

_README = """\
A mirror of what dind-k3s is built from; every file is checked against versions.lock.yaml, so it need not be trusted.
Serve it (python3 -m http.server will do) or mount it, and append mirrors.yaml with its address to versions.yaml.
Then `nox -s fetch` and `nox -s build` reach no other host: docs/offline.md.
"""


@dataclass(frozen=True, kw_only=True)
class Vendored:
    """What a run did."""

    added: int  # files
    bytes: int  # of those
    kept: int  # files that were there and right


def run(intent: Intent, lock: Lock, folder: Path, cache: Path, log: Log, *, url: str | None) -> Vendored:
    """Bring the folder up to date out of the cache; `url`: where it will be served (None: as a file:// URL).

    Raises UpstreamError when the cache lacks a file (nox -s fetch), DigestMismatch when the cache has changed,
    IntentError when the folder cannot be one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise IntentError(f"{folder} is a file", expected="a folder, or a name for a new one") from None
    wanted = {_place(folder, file.origin, file.path): file.digest for file in lock.all_files}
    for digest in base.digests(lock.base.digest, intent.platforms, cache):
        wanted[folder / "base" / "blobs" / "sha256" / digest.hex] = digest
    added = [(target, digest) for target, digest in wanted.items() if not _is_there(target, digest, cache)]
    for target, digest in added:
        _put(cached.require(cache, digest), target)
    base.write_layout(lock.base.digest, intent.platforms, cache, folder / "base")
    origins = [origin for origin in ORIGINS if any(file.origin == origin for file in lock.all_files)]
    write_text(folder / FRAGMENT, fragment(origins, url or folder.resolve().as_uri()))
    write_text(folder / "README", _README)
    done = Vendored(
        added=len(added),
        bytes=sum(target.stat().st_size for target, _ in added),
        kept=len(wanted) - len(added),
    )
    log.say(f"{folder}: {done.added} files added, {size(done.bytes)}; {done.kept} were there and right")
    log.say(f"to use it, append {folder / FRAGMENT} to versions.yaml: docs/offline.md")
    return done


def fragment(origins: list[str], url: str) -> str:
    """The key `mirrors` for versions.yaml."""
    mirrors = {origin: [f"{url.rstrip('/')}/{origin}"] for origin in (*origins, "base")}
    return yaml.safe_dump({"mirrors": mirrors}, sort_keys=False, width=1000)


def _place(folder: Path, origin: str, path: str) -> Path:
    """The file that a server gives for that path: it decodes what it is asked for. Raises LockStale."""
    plain = PurePosixPath(unquote(path))
    if plain.is_absolute() or ".." in plain.parts:
        raise LockStale("the lock names a path that leads out of its origin", found=path, next_step=RENEW)
    return folder / origin / plain


def _is_there(target: Path, digest: Digest, cache: Path) -> bool:
    """Whether the folder has the file; one that is a link into the cache was hashed with it."""
    if not target.is_file():
        return False
    source = cached.path_of(cache, digest)
    return (source.exists() and target.samefile(source)) or Digest.of_file(target) == digest


def _put(source: Path, target: Path) -> None:
    """A hard link, else a copy, in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    cached.link(source, partial)
    partial.replace(target)
    partial.unlink(missing_ok=True)  # rename(2) leaves it when both names are the same file already
