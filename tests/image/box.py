"""A container of the image under test, as a user handles it: start, ask, break, start again."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException

from pipeline.core import machine
from pipeline.rehearsal import clamp


@dataclass(frozen=True, kw_only=True)
class Image:
    """The image under test in an engine."""

    name: str
    engine: DockerClient
    folder: Path  # for files that are copied into containers
    patience: float = 1.0  # how many times slower than natively the engine is


@dataclass(kw_only=True)
class Box:
    """One privileged container with two named volumes of its own, unless `volumes` says otherwise.

    `options` are further keyword arguments of python-on-whales' `create` (networks, mounts, tmpfs, hostname …).
    """

    image: Image
    environment: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()
    volumes: Sequence[tuple[str | Path, str]] | None = None
    files: Mapping[str, str] = field(default_factory=dict)  # path in the container → text, copied before it starts
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = field(default_factory=lambda: f"box-{uuid.uuid4().hex[:8]}")

    @property
    def docker(self) -> DockerClient:
        """The outer engine."""
        return self.image.engine

    @property
    def own_volumes(self) -> dict[str, str]:
        """Name → path of the volumes that go with the box."""
        return {f"{self.name}-docker": "/var/lib/docker", f"{self.name}-k3s": "/app/k3s"}

    def create(self) -> None:
        """A container that is not started yet."""
        environment = dict(self.environment)
        settings: dict[str, Any] = {"privileged": True, "hostname": self.name, **self.options}
        self.docker.create(
            self.image.name,
            [*self.command],
            name=self.name,
            volumes=list(self.own_volumes.items()) if self.volumes is None else [*self.volumes],
            envs=environment | clamped(environment),
            **settings,
        )
        bare = (
            machine.has_capability(machine.CAP_SYS_RESOURCE) or "read_only" in settings
        )  # docker copies nothing there
        with_runtime = {} if bare else {clamp.INSIDE: clamp.RUNTIME}
        for path, text in {**with_runtime, **self.files}.items():
            file = self.image.folder / f"{uuid.uuid4().hex}"
            file.write_text(text)
            file.chmod(0o755)
            self.docker.copy(file, (self.name, path))
            file.unlink()

    def start(self) -> None:
        """Create it if it is not there, and start it."""
        if not self.docker.container.exists(self.name):
            self.create()
        self.docker.start(self.name)

    def recreate(self) -> None:
        """A new container on the same volumes, after the old one was removed as it stood."""
        self.docker.remove(self.name, force=True)
        self.start()

    def do(self, *command: str, **options: Any) -> str:
        """Run a command inside; what it wrote, without the white space around it. AssertionError when it fails."""
        try:
            return str(self.docker.execute(self.name, [*command], **options)).strip()
        except DockerException as error:
            raise AssertionError(f"{' '.join(command)}: {error.return_code}: {error.stdout} {error.stderr}") from None

    def shell(self, text: str) -> str:
        """Run shell text inside."""
        return self.do("bash", "-euo", "pipefail", "-c", text)

    def fails(self, *command: str) -> str:
        """Run a command that must fail; all that it wrote. AssertionError when it does not."""
        try:
            written = self.docker.execute(self.name, [*command])
        except DockerException as error:
            return f"{error.stdout or ''}{error.stderr or ''}".strip()
        raise AssertionError(f"{' '.join(command)} should have failed; it wrote {written}")

    def ready(self, what: str = "k8s", limit: float = 90) -> None:
        """`wait-ready`; its time and the container's log go into the AssertionError."""
        try:
            self.do("wait-ready", "--for", what, "--timeout", f"{limit * self.image.patience:.0f}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def up(self, what: str = "k8s", limit: float = 90) -> Box:
        """Start and wait until it is ready."""
        self.start()
        self.ready(what, limit)
        return self

    def kubectl(self, *arguments: str) -> str:
        """What kubectl prints."""
        return self.do("kubectl", *arguments)

    def log(self) -> str:
        """`docker logs`."""
        return str(self.docker.logs(self.name))

    def state(self) -> dict[str, object]:
        """Status, exit code and health, as docker tells them."""
        state = self.docker.container.inspect(self.name).state
        return {
            "running": state.running,
            "exit_code": state.exit_code,
            "health": state.health.status if state.health else None,
        }

    def until(self, what: str, ask: Callable[[], object], limit: float = 60) -> object:
        """Ask until the answer is true; an AssertionError counts as not yet. AssertionError at the deadline."""
        limit *= self.image.patience
        deadline = time.monotonic() + limit
        last = ""
        while time.monotonic() < deadline:
            try:
                if answer := ask():
                    return answer
            except AssertionError as error:
                last = f": {error}"
            time.sleep(0.1)
        raise AssertionError(f"{what}: not within {limit:g} s{last}\n{self.log()}")

    def ends(self, limit: float = 60) -> tuple[int, str]:
        """Wait until it has ended by itself; exit code and log."""
        self.until("the container to end", lambda: not self.state()["running"], limit)
        code = self.state()["exit_code"]
        assert isinstance(code, int)
        return code, self.log()

    def errors(self) -> list[str]:
        """The sentences of the image's own programs that begin with «error:», each once."""
        found = (re.match(r"\[?dind-k3s\]?.*?error: (.*)", line) for line in self.log().splitlines())
        return [*dict.fromkeys(match[1] for match in found if match)]

    def pid(self, program: str) -> int:
        """The process that supervisor runs under this name, as a pid inside."""
        return int(self.do("supervisorctl", "pid", program))

    def build(self, tag: str, word: str = "hello") -> None:
        """`docker build` inside, of a small image made of the container's own files: no network, no registry."""
        self.do("bash", "-c", CONTEXT, "build", word)
        self.do("docker", "build", "-t", tag, "/tmp/probe")

    def remove(self) -> None:
        """The container, its anonymous volumes and its own."""
        if self.docker.container.exists(self.name):
            self.docker.remove(self.name, force=True, volumes=True)
        for volume in self.own_volumes:
            if self.docker.volume.exists(volume):
                self.docker.volume.remove(volume)


CONTEXT = r"""
set -e
rm -rf /tmp/probe && mkdir -p /tmp/probe/root/tmp && cd /tmp/probe
programs="/bin/sh /bin/cat /bin/sleep /bin/ls /usr/bin/socat /usr/bin/getent"
for file in $programs $(ldd $programs | grep -o '/[^ )]*' | grep -v ':$' | sort -u); do
  mkdir -p "root${file%/*}" && cp -L "$file" "root$file"
done
for file in /lib/*-linux-gnu/libnss_dns.so.2 /lib/*-linux-gnu/libresolv.so.2; do
  if [[ -e $file ]]; then mkdir -p "root${file%/*}" && cp -L "$file" "root$file"; fi
done
echo "$1" >root/word
printf 'FROM scratch\nCOPY root/ /\nCMD ["/bin/cat", "/word"]\n' >Dockerfile
"""


def clamped(environment: Mapping[str, str]) -> dict[str, str]:
    """What the environment needs where root may not lower oom_score_adj (pipeline/rehearsal/clamp.py)."""
    if machine.has_capability(machine.CAP_SYS_RESOURCE):
        return {}
    return {"DOCKER_ARGS": f"{environment.get('DOCKER_ARGS', '')} {clamp.ARGUMENTS}".strip()}


@contextmanager
def box(image: Image, **settings: Any) -> Iterator[Box]:
    """A box that is removed at the end; `settings` are its fields."""
    made = Box(image=image, **settings)
    try:
        yield made
    finally:
        made.remove()
