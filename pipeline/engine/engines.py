"""The engines for smoke's tiers: this machine's, the hosts of `--engine`, virtual ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from python_on_whales import DockerClient
from python_on_whales.client_config import ClientNotFoundError
from python_on_whales.exceptions import DockerException

from pipeline.core.errors import EngineError, IntentError
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.engine import virtual
from pipeline.engine.engine import Engine, describe, platform_of, unpack
from pipeline.engine.virtual import qemu
from pipeline.engine.virtual.disks import Content
from pipeline.engine.virtual.guests import GUESTS, Guest
from pipeline.inputs.lock import Lock


@dataclass(kw_only=True)
class Engines:
    """The engines for smoke's tiers, each started when it is first needed."""

    lock: Lock
    cache: Path
    log: Log
    start: Callable[[], Engine]  # returns the engine of this machine, always the same one
    others: tuple[str, ...] = ()  # docker hosts, for the platforms that they run natively
    guest: Guest = GUESTS["default"]
    always_virtual: bool = False  # boot natively nowhere
    keep: bool = False  # leave virtual engines running

    def native(self, platform: Platform) -> Engine | None:
        """Return an engine that runs the platform natively; None when there is none. Raises EngineError."""
        if platform in self._named:
            return self._named[platform]
        return self.start() if platform == Platform.host() else None

    @cached_property
    def _named(self) -> Mapping[Platform, Engine]:
        engines: dict[Platform, Engine] = {}
        for host in self.others:
            engine = named(host)
            if engine.platform is None:
                raise EngineError(f"the image has no platform that the engine {host} runs natively")
            engines[engine.platform] = engine
        return engines

    def local(self) -> Engine:
        """Return the engine of this machine, which runs other architectures by binfmt handlers. Raises EngineError."""
        host = Platform.host()
        engine = self.native(host) if host else None
        if engine is None:
            raise EngineError("the image has no platform that this machine runs natively")
        return engine

    def why_not_virtual(self, platform: Platform) -> str | None:
        """Return why this machine can have no virtual engine of that platform; None when it probably can."""
        return virtual.why_not(platform)

    @contextmanager
    def virtual(self, platform: Platform, content: Content | None, console: Path) -> Iterator[Engine]:
        """Run a virtual engine of that platform, with that content. Raises EngineError."""
        binaries = unpack(self.lock, self.cache)
        request = virtual.Request(
            platform=platform,
            guest=self.guest,
            content=content,
            lock=self.lock,
            cache=self.cache,
            binaries=binaries,
            console=console,
            log=self.log,
            keep=self.keep,
        )
        with virtual.run(request) as machine:
            host = f"tcp://127.0.0.1:{machine.port}"
            release = ".".join(map(str, qemu.version(platform)))
            description = f"virtual engine: qemu {release} {machine.accelerator.name}, {machine.speed:.0f}× slower"
            yield Engine(
                docker=binaries.client(host),
                builder=None,
                description=description + ("" if self.guest.name == "default" else f", guest {self.guest.name}"),
                platform=platform,
                host=host,
                virtual=True,
                patience=max(1.0, machine.speed),
                story=machine.story,
                trouble=lambda: machine.trouble,
            )
            if self.keep:
                end = f"to end it: kill {machine.pid}"
                self.log.say(f"the guest is still running: DOCKER_HOST={host}; its console: {console}; {end}")


def guest(name: str) -> Guest:
    """Return the guest of that name. Raises IntentError."""
    if name not in GUESTS:
        raise IntentError(f"unknown guest {name!r}", expected=", ".join(GUESTS), found=name)
    return GUESTS[name]


def named(host: str) -> Engine:
    """Return the docker host of that URL (ssh://, tcp://, unix://). Raises EngineError when it does not answer."""
    try:
        client = DockerClient(host=host)
        description = f"{host}, {describe(client)}"
        return Engine(docker=client, builder=None, description=description, platform=platform_of(client), host=host)
    except (ClientNotFoundError, DockerException) as error:
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        raise EngineError(
            "the engine of --engine does not answer",
            found=lines[-1] if lines else "no answer",
            where=host,
            next_step=f"try it by hand: docker --host {host} info",
        ) from None
