"""The deploy controller: applies <data-dir>/server/manifests, and keeps an Addon for each file with what was applied.

Like k3s's (pkg/deploy/controller.go): names from what stands before a file's first dot, the SHA-256 in the Addon only
once everything was applied, events on the Addon, files of disabled components removed, `.skip`, retries for ever. It
looks more often than k3s's 15 s. kubectl does the applying, so nothing is pruned, and there must be one.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import threading
from pathlib import Path

from . import events, log
from .config import Config
from .resources import RESOURCES
from .status import ApiError, Object
from .store import Store

PERIOD = 3.0
SUFFIXES = (".yaml", ".yml", ".json")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


class Deployer:
    """Looks at the folder again and again."""

    def __init__(self, config: Config, store: Store) -> None:
        self._folder = config.data_dir / "server/manifests"
        self._kubeconfig = config.kubeconfig
        self._disabled = config.disabled
        self._store = store
        self._seen: dict[Path, int] = {}  # applied, with the time of the file

    def run(self) -> None:
        """For ever."""
        pause = threading.Event()
        while True:
            self.look()
            pause.wait(PERIOD)

    def look(self) -> None:
        """Apply what is new."""
        files = sorted(file for file in self._folder.rglob("*") if file.is_file()) if self._folder.is_dir() else []
        skipped = {file.name.removesuffix(".skip") for file in files if file.name.endswith(".skip")}
        for file in files:
            if not file.name.endswith(SUFFIXES) or file.name.startswith(".") or file.name in skipped:
                continue
            if file.stem in self._disabled:
                log.say(f"{file} belongs to what is disabled, and is removed")
                file.unlink()
                continue
            with contextlib.suppress(OSError):  # gone, or being written
                if self._seen.get(file) != file.stat().st_mtime_ns and self._deploy(file):
                    self._seen[file] = file.stat().st_mtime_ns

    def _deploy(self, file: Path) -> bool:
        name = file.name.partition(".")[0]
        if not _NAME.fullmatch(name):
            log.warn(f'failed to process {file}: Addon.k3s.cattle.io "{name}" is invalid')
            return False
        addon = self._addon(name, file)
        checksum = hashlib.sha256(file.read_bytes()).hexdigest()
        if addon["spec"].get("checksum") == checksum and file in self._seen:
            return True
        command = ["kubectl", f"--kubeconfig={self._kubeconfig}", "apply", "--validate=false", f"--filename={file}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            problem = " ".join(done.stderr.split()) if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = f"kubectl: {error}"
        if problem:
            log.warn(f"applying {file} failed: {problem}")
            message = f'Applying manifest at "{file}" failed: {problem}'
            events.record(self._store, addon, "Warning", "ApplyManifestFailed", message)
            return False
        events.record(self._store, addon, "Normal", "AppliedManifest", f'Applied manifest at "{file}"')
        self._store.modify(
            "addons", "kube-system", name, lambda old: {**old, "spec": {"source": str(file), "checksum": checksum}}
        )
        log.say(f"applied {file}")
        return True

    def _addon(self, name: str, file: Path) -> Object:
        resource = RESOURCES["addons"]
        addon: Object = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, "namespace": "kube-system"},
            "spec": {"source": str(file)},
        }
        with contextlib.suppress(ApiError):  # it is there already
            return self._store.create("addons", addon)
        return self._store.get("addons", "kube-system", name)
