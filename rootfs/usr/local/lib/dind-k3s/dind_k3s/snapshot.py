"""snapshot [FILE|-]: the cluster's state in one file, while k3s runs.

In it: the datastore (sqlite, or k3s's own etcd), token, certificates, the node's password, and the versions it comes
from. Not in it: images, contents of volumes, config.yaml. Without FILE it goes to /app/k3s/snapshots; with - to stdout.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from dind_k3s import archive, etcd, programs, versions, volume
from dind_k3s.archive import Contents
from dind_k3s.plan import Mistake, refuse
from dind_k3s.root import at

USAGE = "usage: snapshot [FILE|-]"
KEPT = 3  # of those that are made by themselves


def copy_state(folder: Path, *, live: bool) -> None:
    """The cluster's state as of one moment; `live`: while k3s runs."""
    here = volume.k3s_folder()
    copy_datastore(here, folder, live=live)
    for part in volume.STATE:
        source, target = here / part, folder / part
        if part == volume.DATASTORE or not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Links are followed: node-token and agent-token lead to an absolute path, a user's certificates to anywhere.
        if source.is_dir():
            shutil.copytree(source, target, ignore_dangling_symlinks=True)
        else:
            shutil.copy2(source, target)


def copy_datastore(here: Path, folder: Path, *, live: bool) -> None:
    """etcd where there is one, as k3s itself decides (pkg/cluster/managed.go), else sqlite."""
    (folder / volume.DATASTORE).mkdir(parents=True, mode=0o700)
    pending = here / volume.ETCD_SNAPSHOT
    if pending.exists():  # restored, and not started yet
        shutil.copy2(pending, folder / volume.ETCD_SNAPSHOT)
    if (here / volume.ETCD / "member/wal").is_dir():
        if live:
            etcd.Etcd().save(folder / volume.ETCD_SNAPSHOT)
        else:  # with the log, which the database may lag behind; *.tmp is room for more of it
            shutil.copytree(here / volume.ETCD, folder / volume.ETCD, ignore=shutil.ignore_patterns("*.tmp"))
    elif (here / volume.DATABASE).exists():
        copy_database(here / volume.DATABASE, folder / volume.DATABASE)
    elif live:
        raise Mistake(f"there is neither etcd nor {here / volume.DATABASE} yet: wait-ready waits for the cluster")


def copy_database(source: Path, target: Path) -> None:
    """By sqlite's own means: what was committed is in it, what is being written is not."""
    try:
        with (
            contextlib.closing(sqlite3.connect(source, timeout=30)) as live,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            live.backup(copy)
    except sqlite3.Error as error:
        raise Mistake(f"{source} cannot be copied: {error}") from None
    check_database(target, str(source))
    target.chmod(0o600)


def check_database(path: Path, name: str) -> None:
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        raise Mistake(f"{name} is damaged: {found}")


def write(to: IO[bytes], *, reason: str, of: Mapping[str, str], live: bool) -> Contents:
    """A snapshot of what is in the volume now. `of`: the versions that wrote it."""
    with volume.temporary() as folder:
        copy_state(folder, live=live)
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return archive.write(folder, to, created=created, reason=reason, versions=of)


def write_file(path: Path, *, reason: str, of: Mapping[str, str], live: bool) -> Contents:
    """Whole or not at all; for the owner alone, since there are keys in it."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            contents = write(file, reason=reason, of=of, live=live)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise Mistake(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return contents


def default_name(what: str) -> Path:
    folder = at(volume.SNAPSHOTS)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / f"{what}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz"


def keep_before(what: str, of: Mapping[str, str], *, live: bool = False) -> Path:
    """A snapshot by itself, before something that cannot be undone; the last three of each kind stay."""
    path = default_name(f"before-{what}")
    write_file(path, reason=f"before {what}", of=of, live=live)
    for old in sorted(path.parent.glob(f"before-{what}-*.tar.gz"))[:-KEPT]:
        old.unlink()
    return path


def keep_before_loss(what: str) -> str:
    """The same where the old cluster has to go anyway, also when it cannot be read any more. Returns what to log."""
    if not volume.has_cluster():
        return "there was no cluster"
    try:
        return f"the cluster that was here: {keep_before(what, versions.read_stamp(volume.ours()))}"
    except Mistake as mistake:
        return f"warning: the cluster that was here is not kept as a snapshot: {mistake}"


def main() -> int:
    arguments = sys.argv[1:]
    if len(arguments) > 1 or any(word.startswith("-") and word != "-" for word in arguments):
        help_wanted = arguments in (["--help"], ["-h"])
        print((__doc__ or "") if help_wanted else USAGE, file=sys.stdout if help_wanted else sys.stderr)
        return 0 if help_wanted else 2
    try:
        programs.refuse_external_datastore()
        if not volume.has_cluster():
            raise Mistake(f"there is no cluster in {volume.K3S} yet")
        live = programs.running()
        of = versions.read_stamp(volume.ours()) or {"k3s": versions.installed("k3s")}
        with volume.only_one(inside=live):
            if arguments == ["-"]:
                if sys.stdout.isatty():
                    raise Mistake("a snapshot is no text for a terminal: snapshot - > FILE")
                write(sys.stdout.buffer, reason="snapshot", of=of, live=live)
                return 0
            path = Path(arguments[0]) if arguments else default_name("cluster")
            contents = write_file(path, reason="snapshot", of=of, live=live)
    except Mistake as mistake:
        return refuse(mistake)
    except OSError as error:
        print(f"dind-k3s: error: {error.filename or 'the snapshot'}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"{path} ({path.stat().st_size >> 10} KiB, {len(contents.files)} files, k3s {of.get('k3s', 'unknown')})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
