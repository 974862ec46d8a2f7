"""The deploy controller: applies <data-dir>/server/manifests, with an Addon for each file.

Like k3s's (pkg/deploy/controller.go): an Addon has a file's name up to its first dot, and the SHA-256 of the file once
all of it was applied; events on the Addon, endless retries; k3s looks every 15 s. kubectl applies: nothing is pruned.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import time
from pathlib import Path
from typing import NoReturn

from .config import Config
from .errors import ApiError
from .process import say
from .resources import RESOURCES
from .store import Store

PERIOD = 3.0
SUFFIXES = (".yaml", ".yml", ".json")


def run(config: Config, store: Store) -> NoReturn:
    """Apply new and changed files, every few seconds."""
    while True:
        for file in sorted((config.data_dir / "server/manifests").rglob("*")):
            if file.suffix in SUFFIXES and not file.name.startswith("."):
                with contextlib.suppress(OSError, ApiError):  # a folder, or the file or its Addon was removed just now
                    _deploy(file, store, config.kubeconfig)
        time.sleep(PERIOD)


def _deploy(file: Path, store: Store, kubeconfig: Path) -> None:
    """Apply a file unless its Addon has its checksum."""
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    kind, name = RESOURCES["addons"], file.name.partition(".")[0]
    metadata = {"name": name, "namespace": "kube-system"}
    with contextlib.suppress(ApiError):  # it exists already
        new = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}
        store.create("addons", {**new, "spec": {"source": str(file)}})
    addon = store.get("addons", "kube-system", name)
    if addon["spec"].get("checksum") == checksum:
        return
    command = ["kubectl", f"--kubeconfig={kubeconfig}", "apply", "--validate=false", f"--filename={file}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        problem = " ".join(done.stderr.split())
        say(f"applying {file} failed: {problem}", level="warning")
        message = f'Applying manifest at "{file}" failed: {problem}'
        store.record_event(addon, "Warning", "ApplyManifestFailed", message)
        return
    store.record_event(addon, "Normal", "AppliedManifest", f'Applied manifest at "{file}"')
    spec = {"source": str(file), "checksum": checksum}
    store.modify("addons", "kube-system", name, lambda old: {**old, "spec": spec})
    say(f"applied {file}")
