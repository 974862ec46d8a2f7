"""The engines for smoke's tiers: this machine's, the hosts of `--engine`, virtual ones.

A virtual engine is a docker host of any platform in a small machine under qemu-system, reached over DOCKER_HOST. Its
kernel is Debian's, its dockerd the locked one, and its only open port is on 127.0.0.1: docs/smoke.md.
"""

from __future__ import annotations

import shlex
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
from pipeline.core.machine import ensure, find, require_linux_root
from pipeline.core.platforms import Platform
from pipeline.engine import daemon
from pipeline.engine.engine import Engine, describe, platform_of
from pipeline.engine.virtual import disks, qemu
from pipeline.engine.virtual.disks import GUESTS, Content, Guest
from pipeline.engine.virtual.machine import Hung, Machine
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

    def why_not_virtual(self, platform: Platform) -> str | None:
        """Return why this machine can have no virtual engine of that platform; None when it probably can."""
        try:
            require_linux_root("a virtual engine")
        except EngineError as error:
            return f"{error.summary} (found {error.found})"
        if find(qemu.program(platform)) is None and find("apt-get") is None:
            return f"this machine has no {qemu.program(platform)}"
        return None

    @contextmanager
    def virtual(self, platform: Platform, content: Content | None, console: Path) -> Iterator[Engine]:
        """Run a virtual engine of that platform during the block.

        `content`: of its dockerd at the start. `console`: file for the serial console; next to it, as *.command, qemu's
        command line. Raises EngineError, UpstreamError.
        """
        require_linux_root("a virtual engine")
        ensure(tools(platform), self.log)
        binaries = daemon.unpack(self.lock, self.cache)
        with disks.using(self.cache):
            drives = qemu.Drives(
                system=disks.system(platform, self.guest, self.lock, self.cache, self.log),
                content=disks.content(content, platform, binaries, self.cache, self.log),
            )
            machine = self._boot(platform, drives, console)
        try:
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
            else:
                machine.stop()
        finally:
            if self.keep and machine.trouble is None:
                machine.leave()
            else:
                machine.kill()

    def _boot(self, platform: Platform, drives: qemu.Drives, console: Path) -> Machine:
        """Return a booted machine. Raises EngineError.

        The last accelerator is TCG, which works everywhere. It is tried again when the guest hung before its dockerd
        was started: on a busy machine a guest's processor sometimes misses its timer's interrupt, and Linux then waits
        for it for ever (the console has "timer wakeup didn't happen"). What is to be checked has not begun by then, so
        the retry cannot hide a fault of it.
        """
        *others, last = qemu.accelerators(platform)
        for accelerator in others:
            try:
                return self._start(platform, drives, accelerator, console)
            except EngineError as error:
                self.log.say(f"{accelerator.name} does not work here, though /dev/kvm exists: {error.found}")
        try:
            return self._start(platform, drives, last, console)
        except Hung as error:
            self.log.say(f"booting the guest again: {error.found}")
        return self._start(platform, drives, last, console)

    def _start(self, platform: Platform, drives: qemu.Drives, accelerator: qemu.Accelerator, console: Path) -> Machine:
        """Boot with that accelerator; kill a machine that fails. Raises EngineError."""
        guest, folder = self.guest, qemu.Folder.make(self.cache / disks.FOLDER)
        arguments = qemu.command(platform, guest, accelerator, drives, console=console, folder=folder.path)
        machine = Machine(platform, accelerator, console, folder, self.log)
        console.parent.mkdir(parents=True, exist_ok=True)
        console.with_suffix(".command").write_text(f"{shlex.join(arguments)}\n", encoding="utf-8")
        try:
            how = f"{accelerator.name}, {accelerator.cores} CPUs"
            with self.log.step(f"guest {guest.name} for {platform}: {guest.about}; {how}"):
                machine.start(arguments, keep=self.keep)
                machine.boot()
                self.log.say(f"its dockerd answers; calibration: {machine.speed:.1f} times longer than natively")
        except BaseException:
            machine.kill()
            raise
        return machine


def tools(platform: Platform) -> list[str]:
    """Return the programs that a virtual engine needs, keys of machine.PACKAGES."""
    return [qemu.program(platform), *disks.TOOLS, "setpriv", "unshare"]


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
