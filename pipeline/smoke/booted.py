"""The container that tier `boot` starts, as its checks use it: commands inside, polling, its log."""

from __future__ import annotations

import re
import shlex
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from python_on_whales.exceptions import DockerException

from pipeline.core.log import Log, seconds
from pipeline.engine.engine import Engine
from pipeline.smoke import commands
from pipeline.smoke.load import Loaded

_ERROR = re.compile(r"\[?dind-k3s\]?.{0,40}\berror: ")
_K3S_ENDED = re.compile(r"\[dind-k3s\] k3s: ended by itself \((.*)\)(?:, is started again|: )")  # rootfs/: keeper.py
_STOP_BUDGET = 10.0  # seconds that `docker stop` waits before it kills


@dataclass(frozen=True, kw_only=True)
class BootOptions:
    """What this machine needs in addition to the image."""

    extra_files: tuple[tuple[Path, str], ...] = ()  # local file → path in the container, copied before it starts
    extra_environment: Mapping[str, str] = field(default_factory=dict)
    networks: tuple[str, ...] = ()  # of the engine; none: its default
    patience: float = 1.0  # every deadline is multiplied by it and by the engine's own
    keep: bool = False  # leave the container running, with its volumes


class Booted:
    """One booted container and its two volumes."""

    def __init__(self, engine: Engine, image: Loaded, options: BootOptions, log: Log, logs: Path) -> None:
        self.engine = engine
        self.client = engine.docker
        self.image = image
        self.log = log
        self.logs = logs
        self.name = f"smoke-{uuid.uuid4().hex[:8]}"
        self.is_stub = False  # set by the check of the control plane
        self.budget = _STOP_BUDGET * engine.patience  # seconds for a stop
        self._options = options
        self._trouble = engine.trouble
        self._patience = engine.patience * options.patience
        self._volumes = {f"{self.name}-docker": "/var/lib/docker", f"{self.name}-k3s": "/app/k3s"}

    def start(self) -> None:
        """Start a new container on the same volumes."""
        self.client.create(
            self.image.name,
            name=self.name,
            hostname=self.name,
            platform=self.image.platform.value,
            privileged=True,
            networks=[*self._options.networks],
            volumes=[*self._volumes.items()],
            envs=dict(self._options.extra_environment),
            labels={commands.LABEL: "boot"},
        )
        # Copied, not mounted: the engine may be on another machine.
        for local, path in self._options.extra_files:
            self.client.copy(local, (self.name, path))
        self.client.start(self.name)

    def do(self, *command: str, limit: float = 60) -> str:
        """Run a command inside and return its output. Raises AssertionError with the last lines on failure."""
        try:
            return commands.execute(self.client, self.name, command, limit=limit * self._patience, log=self.log)
        except commands.Failed as failed:
            name = " ".join(command)[:80]
            self._require_running(name)
            if errors := self._errors():  # the container is about to end
                raise AssertionError(f"{name}: {errors}") from None
            raise failed from None

    def _require_running(self, context: str) -> None:
        """Raise AssertionError with the container's last errors if it has ended."""
        if self._trouble() is None and not self.client.container.inspect(self.name).state.running:
            raise AssertionError(f"{context}: the container has ended: {self._errors() or self.last_lines()}")

    def _errors(self) -> str:
        """Return the error messages of the image's own programs (rootfs/: say.sh, keeper.py), without duplicates."""
        if self._trouble() is not None:
            return ""
        lines = str(self.client.logs(self.name, tail=400)).splitlines()
        messages = dict.fromkeys(line.partition("error:")[2].strip() for line in lines if _ERROR.match(line))
        return " / ".join(messages)

    def until(self, event: str, poll: Callable[[], str | None], limit: float) -> str:
        """Poll until there is a result, and return it; log the event. Raises AssertionError after `limit` seconds."""
        allowed, last = limit * self._patience, ""
        deadline = time.monotonic() + allowed
        with self.log.waiting(event):
            while True:
                try:
                    if (result := poll()) is not None:
                        return result
                except AssertionError as error:
                    last = f": {error}"
                assert time.monotonic() < deadline, f"{event}: not within {seconds(allowed)}{last}"
                assert self._trouble() is None, f"{event}: the engine is gone"
                self._require_running(event)
                time.sleep(0.2)

    def ready(self, service: str, limit: float) -> str:
        """Run `wait-ready` inside until it succeeds, in slices, since the container can end meanwhile."""
        # An exec takes long on a slow engine, so it gets longer slices.
        span = f"{min(4 * self._patience, 60):.0f}"

        def poll() -> str | None:
            return self.do("wait-ready", "--for", service, "--timeout", span, limit=90) and f"{service} is ready"

        return self.until(f"{service} to be ready", poll, limit)

    def wait_ready(self, *resources: str) -> None:
        """Run `kubectl wait` until the resources are Ready."""
        limit = f"--timeout={90 * self._patience:.0f}s"
        self.do("kubectl", "wait", "--for=condition=Ready", *resources, limit, limit=100)

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl and return its output, stripped."""
        return self.do("kubectl", *arguments).strip()

    def restart(self) -> None:
        """Run `docker restart`."""
        with self.log.waiting("docker restart"):
            self.client.restart(self.name, time=int(self.budget))

    def stop(self) -> tuple[float, int | None]:
        """Run `docker stop`; return its time in seconds and the exit code."""
        started = time.monotonic()
        with self.log.waiting("docker stop"):
            self.client.stop(self.name, time=int(self.budget))
        return time.monotonic() - started, self.client.container.inspect(self.name).state.exit_code

    def ends_of_k3s(self) -> list[str]:
        """Return the reason of each unrequested exit of k3s, in all containers so far."""
        kept = self.logs.read_text(encoding="utf-8") if self.logs.exists() else ""
        return _K3S_ENDED.findall(kept + str(self.client.logs(self.name)))

    def last_lines(self, count: int = 12) -> str:
        """Return the end of `docker logs` in one line."""
        return " / ".join(" ".join(line.split()) for line in str(self.client.logs(self.name, tail=count)).splitlines())

    def examine(self) -> None:
        """Log the container's last lines and the report of its doctor, after a failure."""
        try:
            self.log.say(f"the container's last lines: {self.last_lines(20)}")
            if self.client.container.inspect(self.name).state.running:
                report = self.do("sh", "-c", "doctor || true", limit=30)
                self.keep(f"--- doctor\n{report}\n")
                problems = [line for line in report.splitlines() if line.startswith(("fail", "warn"))]
                self.log.say(f"doctor: {' / '.join(problems) or 'all is well'}")
        except (DockerException, AssertionError, ValueError) as error:
            self.log.warn(f"the container cannot be examined: {str(error).splitlines()[0]}")

    def keep(self, text: str) -> None:
        """Append to the log file."""
        self.logs.parent.mkdir(parents=True, exist_ok=True)
        with self.logs.open("a", encoding="utf-8") as stream:
            stream.write(text)

    def remove(self) -> None:
        """Remove the container; keep its log and its volumes."""
        try:
            self.keep(str(self.client.logs(self.name, timestamps=True)) + "\n")
        except (DockerException, ValueError) as error:
            self.log.warn(f"the container's log cannot be read: {error}")
        self.client.remove(self.name, force=True)

    def clean_up(self, *, failed: bool) -> None:
        """Remove the container and its volumes, unless the engine is gone."""
        if self._trouble() is not None:
            return
        if self.client.container.exists(self.name):
            if failed:
                self.examine()
            if self._options.keep and self.engine.host is not None:
                self.client.start(self.name)
                docker = shlex.join(map(str, self.client.client_config.docker_cmd))
                self.log.say(f"the container is still running: {docker} exec -it {self.name} bash")
                self.log.say(
                    f"remove it: {docker} rm --force {self.name}; {docker} volume rm {' '.join(self._volumes)}"
                )
                return
            if self._options.keep:
                self.log.warn("--keep: the container is removed, because the private engine ends with this command")
                self.log.warn("--keep --virtual boots in a virtual machine that stays; so does an engine of your own")
            self.remove()
        for volume in self._volumes:
            if self.client.volume.exists(volume):
                self.client.volume.remove(volume)
