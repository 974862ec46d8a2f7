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

from .config import Config
from .errors import ApiError, Object
from .process import say
from .resources import RESOURCES
from .store import Store

PERIOD = 3.0
SUFFIXES = (".yaml", ".yml", ".json")


class Deployer:
    """Applies what is new in the folder, every few seconds."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config = config
        self._store = store
        self._seen: dict[Path, int] = {}  # applied, with the mtime of the file

    def run(self) -> None:
        """Never ends."""
        while True:
            self.look()
            time.sleep(PERIOD)

    def look(self) -> None:
        """Apply new and changed files."""
        for file in sorted((self._config.data_dir / "server/manifests").rglob("*")):
            if file.suffix not in SUFFIXES or file.name.startswith("."):
                continue
            with contextlib.suppress(OSError):  # removed, or being written
                if self._seen.get(file) != file.stat().st_mtime_ns and self._deploy(file):
                    self._seen[file] = file.stat().st_mtime_ns

    def _deploy(self, file: Path) -> bool:
        name = file.name.partition(".")[0]
        addon = self._addon(name, file)
        checksum = hashlib.sha256(file.read_bytes()).hexdigest()
        kubeconfig = f"--kubeconfig={self._config.kubeconfig}"
        command = ["kubectl", kubeconfig, "apply", "--validate=false", f"--filename={file}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            problem = " ".join(done.stderr.split()) if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = f"kubectl: {error}"
        if problem:
            say(f"applying {file} failed: {problem}", level="warning")
            message = f'Applying manifest at "{file}" failed: {problem}'
            self._store.record_event(addon, "Warning", "ApplyManifestFailed", message)
            return False
        self._store.record_event(addon, "Normal", "AppliedManifest", f'Applied manifest at "{file}"')
        spec = {"source": str(file), "checksum": checksum}
        self._store.modify("addons", "kube-system", name, lambda old: {**old, "spec": spec})
        say(f"applied {file}")
        return True

    def _addon(self, name: str, file: Path) -> Object:
        addon: Object = {
            "apiVersion": RESOURCES["addons"].api_version,
            "kind": "Addon",
            "metadata": {"name": name, "namespace": "kube-system"},
            "spec": {"source": str(file)},
        }
        with contextlib.suppress(ApiError):  # it exists already
            return self._store.create("addons", addon)
        return self._store.get("addons", "kube-system", name)
