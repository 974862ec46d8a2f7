"""The deploy controller: applies <data-dir>/server/manifests, and keeps an Addon for each file with what was applied.

Like k3s's (pkg/deploy/controller.go): names from what is before a file's first dot, the SHA-256 in the Addon only once
everything was applied, events on the Addon, `.skip`, retries for ever. k3s looks every 15 s. kubectl does the applying,
so nothing is pruned.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import time
from pathlib import Path

from . import events, log
from .config import Config
from .resources import RESOURCES
from .status import ApiError, Object
from .store import Store

PERIOD = 3.0
SUFFIXES = (".yaml", ".yml", ".json")


class Deployer:
    """Looks at the folder again and again."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config = config
        self._store = store
        self._seen: dict[Path, int] = {}  # applied, with the time of the file

    def run(self) -> None:
        """Never ends."""
        while True:
            self.look()
            time.sleep(PERIOD)

    def look(self) -> None:
        """Apply what is new."""
        files = sorted(file for file in (self._config.data_dir / "server/manifests").rglob("*") if file.is_file())
        skipped = {file.name.removesuffix(".skip") for file in files if file.name.endswith(".skip")}
        for file in files:
            if not file.name.endswith(SUFFIXES) or file.name.startswith(".") or file.name in skipped:
                continue
            with contextlib.suppress(OSError):  # gone, or being written
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
            log.say(f"applying {file} failed: {problem}", level="warning")
            message = f'Applying manifest at "{file}" failed: {problem}'
            events.record(self._store, addon, "Warning", "ApplyManifestFailed", message)
            return False
        events.record(self._store, addon, "Normal", "AppliedManifest", f'Applied manifest at "{file}"')
        spec = {"source": str(file), "checksum": checksum}
        self._store.modify("addons", "kube-system", name, lambda old: {**old, "spec": spec})
        log.say(f"applied {file}")
        return True

    def _addon(self, name: str, file: Path) -> Object:
        addon: Object = {
            "apiVersion": RESOURCES["addons"].api_version,
            "kind": "Addon",
            "metadata": {"name": name, "namespace": "kube-system"},
            "spec": {"source": str(file)},
        }
        with contextlib.suppress(ApiError):  # it is there already
            return self._store.create("addons", addon)
        return self._store.get("addons", "kube-system", name)
