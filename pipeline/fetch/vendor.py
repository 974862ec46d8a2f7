"""Stage `vendor`: makes a folder that is a mirror of every file of the lock, for sites without internet.

    <folder>/<origin>/<path>   every file at its vendor's path, for each needed key of versions.ORIGINS
    <folder>/base/             the base image as an OCI layout
    <folder>/mirrors.yaml      the key `mirrors` for versions.yaml
    <folder>/README

A static file server or a `file://` URL makes it usable; no registry is needed. Files are hard links into the cache if
the file system allows. Files of older locks stay, so one folder can serve several releases.
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
Serve it (for example python3 -m http.server) or mount it, and append mirrors.yaml with its address to versions.yaml.
Then `nox -s fetch` and `nox -s build` reach no other host: docs/offline.md.
"""


@dataclass(frozen=True, kw_only=True)
class Vendored:
    """The result of a run."""

    added: int  # files
    bytes: int  # of the added files
    kept: int  # files that were there


def run(intent: Intent, lock: Lock, folder: Path, cache: Path, log: Log, *, url: str | None) -> Vendored:
    """Update the folder from the cache; `url`: its future address (None: a file:// URL).

    Raises UpstreamError if the cache lacks a file (nox -s fetch), DigestMismatch if the cache has changed, IntentError
    if the folder is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise IntentError(f"{folder} is a file", expected="a folder, or a path for a new one") from None
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
    log.say(f"{folder}: {done.added} files added, {size(done.bytes)}; {done.kept} were there")
    log.say(f"to use it, append {folder / FRAGMENT} to versions.yaml: docs/offline.md")
    return done


def fragment(origins: list[str], url: str) -> str:
    """Return the key `mirrors` for versions.yaml."""
    mirrors = {origin: [f"{url.rstrip('/')}/{origin}"] for origin in (*origins, "base")}
    return yaml.safe_dump({"mirrors": mirrors}, sort_keys=False, width=1000)


def _place(folder: Path, origin: str, path: str) -> Path:
    """Return the file that a server sends for that path, decoded as servers do. Raises LockStale."""
    plain = PurePosixPath(unquote(path))
    if plain.is_absolute() or ".." in plain.parts:
        raise LockStale("the lock has a path outside of its origin", found=path, next_step=RENEW)
    return folder / origin / plain


def _is_there(target: Path, digest: Digest, cache: Path) -> bool:
    """Return whether the folder has the file; a link into the cache was hashed there."""
    if not target.is_file():
        return False
    source = cached.path_of(cache, digest)
    return (source.exists() and target.samefile(source)) or Digest.of_file(target) == digest


def _put(source: Path, target: Path) -> None:
    """Hard-link a file atomically, or copy it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    cached.link(source, partial)
    partial.replace(target)
    partial.unlink(missing_ok=True)  # rename(2) leaves it if both names are the same file
