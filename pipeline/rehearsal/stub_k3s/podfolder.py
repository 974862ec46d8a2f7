"""A pod's folder and the tmpfs that the kubelet mounts in it: for tokens, and for an emptyDir in memory."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .failure import Failure
from .status import Object


def of(kubelet_dir: Path, uid: str) -> Path:
    """The folder of the pod."""
    return kubelet_dir / "pods" / uid


def volume(kubelet_dir: Path, pod: Object, kind: str, name: str) -> Path:
    """The folder of one of its volumes."""
    return of(kubelet_dir, str(pod["metadata"]["uid"])) / f"volumes/kubernetes.io~{kind}" / name


def mount_memory(folder: Path) -> None:
    """Mount a tmpfs there, unless one is. Failure when that is not possible."""
    if folder.is_mount():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"cannot mount a tmpfs at {folder}: {done.stderr.strip()}")


def remove(folder: Path) -> None:
    """Unmount what is in it, then remove it."""
    for path in (folder / "volumes").glob("*/*"):
        if path.is_mount():
            subprocess.run(["umount", str(path)], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)
