"""A virtual engine: a docker host of any platform, in a small machine under qemu-system, seen over DOCKER_HOST.

Its kernel is Debian's, its dockerd the locked one, and no port of it is open but one on 127.0.0.1: docs/smoke.md.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.core import machine
from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.engine import daemon
from pipeline.engine.virtual import disks, qemu
from pipeline.engine.virtual.disks import Content
from pipeline.engine.virtual.guests import Guest
from pipeline.engine.virtual.qemu import Accelerator, Machine
from pipeline.inputs.lock import Lock


def why_not(platform: Platform) -> str | None:
    """Why this machine can have no virtual engine; None when it can, as far as one knows before trying."""
    try:
        machine.require_linux_root("a virtual engine")
    except EngineError as error:
        return f"{error.summary} (found {error.found})"
    if machine.find(qemu.program(platform)) is None and machine.find("apt-get") is None:
        return f"this machine has no {qemu.program(platform)}"
    return None


def tools(platform: Platform) -> list[str]:
    """The programs that it takes, keys of machine.PACKAGES."""
    return [qemu.program(platform), *disks.TOOLS, "setpriv", "unshare"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A guest to be run."""

    platform: Platform
    guest: Guest
    content: Content | None  # what its dockerd has from the start
    lock: Lock
    cache: Path
    binaries: daemon.Binaries  # the lock's docker for this machine, which makes the disk
    console: Path  # keeps the serial console; next to it, as *.command, qemu's command line
    log: Log
    keep: bool = False  # leave it running


@contextmanager
def run(request: Request) -> Iterator[Machine]:
    """Run a guest for the length of the block; its dockerd answers when the block begins.

    Raises EngineError, UpstreamError.
    """
    machine.require_linux_root("a virtual engine")
    machine.ensure(tools(request.platform), request.log)
    with disks.using(request.cache):
        started = boot(request, _drives(request))
    try:
        yield started
        if not request.keep:
            started.stop()
    finally:
        if request.keep and started.trouble is None:
            started.leave()
        else:
            started.kill()


def _drives(request: Request) -> qemu.Drives:
    platform, cache, log = request.platform, request.cache, request.log
    return qemu.Drives(
        system=disks.system(platform, request.guest, request.lock, cache, log),
        content=disks.content(request.content, platform, request.binaries, cache, log),
    )


def boot(request: Request, drives: qemu.Drives, start: Start | None = None) -> Machine:
    """Return a booted machine. Raises EngineError.

    Whether KVM works is known only by booting something; TCG does, and is the last choice. TCG gets a second try when
    the guest hung before its dockerd was started: it happens, seldom, on a busy machine that a processor of the guest
    misses its timer's interrupt, for which Linux then waits for ever (its console says "timer wakeup didn't happen").
    What is tried on the guest has not begun by then, so no fault of it can be hidden.
    """
    start = start or _start
    log = request.log
    *others, last = qemu.accelerators(request.platform)
    for accelerator in others:
        try:
            return start(request, drives, accelerator)
        except EngineError as error:
            log.say(f"{accelerator.name} does not work here, though /dev/kvm is there: {error.found}")
    try:
        return start(request, drives, last)
    except qemu.Hung as error:
        log.say(f"once more, from its start: {error.found}")
    return start(request, drives, last)


def _start(request: Request, drives: qemu.Drives, accelerator: Accelerator) -> Machine:
    """Boot with that accelerator; a machine that does not come up is taken down. Raises EngineError."""
    platform, guest, console, log = request.platform, request.guest, request.console, request.log
    folder = qemu.Folder.make(request.cache / disks.FOLDER)
    arguments = qemu.command(platform, guest, accelerator, drives, console=console, folder=folder.path)
    machine = Machine(platform, accelerator, console, folder, log)
    console.parent.mkdir(parents=True, exist_ok=True)
    console.with_suffix(".command").write_text(f"{shlex.join(arguments)}\n", encoding="utf-8")
    try:
        how = f"{accelerator.name}, {accelerator.cores} CPUs"
        with log.step(f"a guest of {platform}, {guest.name}: {guest.about}; {how}"):
            machine.start(arguments, keep=request.keep)
            machine.boot()
            log.say(f"its dockerd answers; calibration: {machine.speed:.1f} times longer than natively")
    except BaseException:
        machine.kill()
        raise
    return machine


Start = Callable[[Request, qemu.Drives, Accelerator], Machine]
