"""The cluster's volume: what of it is state, how it is changed as a whole, and who may do it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dind_k3s.plan import Mistake
from dind_k3s.root import at
from dind_k3s.versions import STAMP, write_whole

K3S = "/app/k3s"
# Ours; not there where the user has one (k3s.py). k3s applies manifests in the order of their names. Flannel, so every
# pod's network, waits for rolebindings.yaml, and a manifest whose CRD is not there yet takes a second to fail.
TRAEFIK_CONFIG = f"{K3S}/server/manifests/traefik-dind-k3s.yaml"
ADMIN = f"{K3S}/server/cred/admin.kubeconfig"
KUBELET = f"{K3S}/agent/kubelet.kubeconfig"  # k3s writes it where it runs a kubelet, so servers have one, too
OURS = f"{K3S}/.dind-k3s"
SNAPSHOTS = f"{K3S}/snapshots"
TEMPORARY = "tmp-"
RANGES = ".dind-k3s/ranges.json"  # of pods and services, which a cluster keeps for its life (ranges.py)
ADDRESS = ".dind-k3s/address"  # by which the cluster knows this node (address.py)
DATASTORE = "server/db"
DATABASE = f"{DATASTORE}/state.db"  # sqlite
ETCD = f"{DATASTORE}/etcd"
# What the next start of k3s makes an etcd of (etcd.py): a snapshot of it, or nothing where ETCD is all there.
ETCD_SNAPSHOT = f"{DATASTORE}/etcd.snapshot"
KEPT_BY_K3S = f"{DATASTORE}/snapshots"  # its own of etcd, each half day; in no snapshot of ours

# What makes the cluster, below /app/k3s. The token opens what is encrypted in the datastore; the node's password is
# known to it by a hash (k3s-io/k3s#802). Certificates of the agent are made again from these at each start of k3s.
STATE = (
    DATASTORE,
    "server/tls",
    "server/cred",
    "server/token",
    "server/agent-token",
    "server/node-token",
    ".dind-k3s/node/password",
    ADDRESS,
    RANGES,
)
# What a swap moves: with the state goes the note of who wrote it.
SWAPPED = (*STATE, f".dind-k3s/{STAMP}")


def k3s_folder() -> Path:
    return at(K3S)


def ours() -> Path:
    return at(OURS)


def has_cluster() -> bool:
    return (k3s_folder() / DATASTORE).is_dir()


def remove(path: Path) -> None:
    """A file, a link or a tree; nothing when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def only_one(*, inside: bool) -> Iterator[None]:
    """Keeps a second command out; and, `inside` no running container of ours, a container that has the volume."""
    ours().mkdir(parents=True, exist_ok=True)
    name = "command" if inside else "lock"
    with (ours() / name).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            other = "another command works on it" if inside else "a container has it: stop that one, or exec into it"
            raise Mistake(f"the volume at {K3S} is in use, {other}") from None
        yield


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder for what is being made; guard.py removes those of commands that were killed."""
    ours().mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=ours(), prefix=TEMPORARY))
    try:
        yield folder
    finally:
        remove(folder)


def remove_temporary() -> None:
    for folder in ours().glob(f"{TEMPORARY}*"):
        remove(folder)


class Swap:
    """One state in place of another: done wholly or not at all, even when everything ends in between.

    `.dind-k3s/restore/had` is there from before the first move until the new state has proved itself, and lists what
    was there. As long as it is, `undo` gives the old state back; the next start calls it.
    """

    def __init__(self) -> None:
        self.folder = ours() / "restore"
        self.new, self.old, self.had = (self.folder / name for name in ("new", "old", "had"))

    def prepare(self, state: Path) -> None:
        """`state` is going to be the new one."""
        remove(self.folder)
        self.old.mkdir(parents=True, mode=0o700)
        state.rename(self.new)

    @property
    def is_done(self) -> bool:
        """Whether the new state is in place and has not proved itself yet."""
        return self.had.exists()

    def do(self) -> None:
        """All of it, or nothing when something fails on the way."""
        here = k3s_folder()
        write_whole(self.had, json.dumps([part for part in SWAPPED if os.path.lexists(here / part)]).encode())
        try:
            for part in SWAPPED:
                if os.path.lexists(here / part):
                    _move(here / part, self.old / part)
                if os.path.lexists(self.new / part):
                    _move(self.new / part, here / part)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> bool:
        """The old state again; whether there was anything to undo."""
        if not self.is_done:
            remove(self.folder)
            return False
        here = k3s_folder()
        had = json.loads(self.had.read_text())
        for part in SWAPPED:
            if os.path.lexists(self.old / part):
                remove(here / part)
                _move(self.old / part, here / part)
            elif part not in had:
                remove(here / part)
        self.keep()
        return True

    def keep(self) -> None:
        """What is in place now stays, and so do k3s's own snapshots of etcd."""
        own, here = self.old / KEPT_BY_K3S, k3s_folder() / KEPT_BY_K3S
        if own.is_dir() and here.parent.is_dir() and not here.exists():
            own.rename(here)
        self.had.unlink()
        remove(self.folder)


def _move(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
