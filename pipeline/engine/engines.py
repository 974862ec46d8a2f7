"""The engines that smoke runs its tiers on: this machine's, hosts of other platforms that were named, virtual ones."""

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
    """The engines that smoke runs its tiers on, each started when it is first asked for."""

    lock: Lock
    cache: Path
    log: Log
    start: Callable[[], Engine]  # the engine of this machine; the same one whenever it is called
    others: tuple[str, ...] = ()  # docker hosts, for the platforms that they run natively
    guest: Guest = GUESTS["default"]
    always_virtual: bool = False  # boot natively nowhere
    keep: bool = False  # leave virtual engines running

    def native(self, platform: Platform) -> Engine | None:
        """An engine that runs the platform natively; None when there is none. Raises EngineError."""
        if platform in self._named:
            return self._named[platform]
        return self.start() if platform == Platform.host() else None

    @cached_property
    def _named(self) -> Mapping[Platform, Engine]:
        engines: dict[Platform, Engine] = {}
        for host in self.others:
            engine = named(host)
            if engine.platform is None:
                raise EngineError(f"the engine {host} runs no platform of the image")
            engines[engine.platform] = engine
        return engines

    def local(self) -> Engine:
        """The engine of this machine, on which foreign binaries run if the kernel has a handler for them."""
        host = Platform.host()
        engine = self.native(host) if host else None
        if engine is None:
            raise EngineError("this machine is of no platform of the image")
        return engine

    def why_not_virtual(self, platform: Platform) -> str | None:
        """Why this machine can have no virtual engine of that platform; None when it can."""
        return virtual.why_not(platform)

    @contextmanager
    def virtual(self, platform: Platform, content: Content, console: Path) -> Iterator[Engine]:
        """A virtual engine of that platform, with that content. Raises EngineError."""
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
        with virtual.run(request) as guest:
            host = f"tcp://127.0.0.1:{guest.port}"
            release = ".".join(map(str, qemu.version(platform)))
            description = f"virtual engine: qemu {release} {guest.accelerator.name}, {guest.speed:.0f}× slower"
            yield Engine(
                docker=binaries.client(host),
                builder=None,
                description=description + ("" if self.guest.name == "default" else f", guest {self.guest.name}"),
                platform=platform,
                host=host,
                virtual=True,
                patience=max(1.0, guest.speed),
                story=guest.story,
                trouble=lambda: guest.trouble,
            )
            if self.keep:
                self.log.say(f"the guest goes on: DOCKER_HOST={host}; its console: {console}; end it: kill {guest.pid}")


def guest(name: str) -> Guest:
    """The guest of that name. Raises IntentError."""
    if name not in GUESTS:
        raise IntentError(f"there is no guest {name!r}", expected=", ".join(GUESTS), found=name)
    return GUESTS[name]


def named(host: str) -> Engine:
    """The docker host of that URL (ssh://, tcp://, unix://). Raises EngineError when it does not answer."""
    try:
        client = DockerClient(host=host)
        description = f"{host}, {describe(client)}"
        return Engine(docker=client, builder=None, description=description, platform=platform_of(client), host=host)
    except (ClientNotFoundError, DockerException) as error:
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        raise EngineError(
            "the engine that --engine names does not answer",
            found=lines[-1] if lines else "no answer",
            where=host,
            next_step=f"try it by hand: docker --host {host} info",
        ) from None
