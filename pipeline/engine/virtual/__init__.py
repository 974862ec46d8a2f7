"""A virtual engine: a docker host of any platform, in a small machine under qemu-system, reached over DOCKER_HOST.

Its kernel is Debian's, its dockerd the locked one, and its only open port is on 127.0.0.1: docs/smoke.md.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.core.machine import ensure, find, require_linux_root
from pipeline.core.platforms import Platform
from pipeline.engine import daemon
from pipeline.engine.virtual import disks, qemu
from pipeline.engine.virtual.disks import Content
from pipeline.engine.virtual.guests import Guest
from pipeline.engine.virtual.machine import Hung, Machine
from pipeline.inputs.lock import Lock


def why_not(platform: Platform) -> str | None:
    """Return why this machine can have no virtual engine; None when it probably can."""
    try:
        require_linux_root("a virtual engine")
    except EngineError as error:
        return f"{error.summary} (found {error.found})"
    if find(qemu.program(platform)) is None and find("apt-get") is None:
        return f"this machine has no {qemu.program(platform)}"
    return None


def tools(platform: Platform) -> list[str]:
    """Return the programs that it needs, keys of machine.PACKAGES."""
    return [qemu.program(platform), *disks.TOOLS, "setpriv", "unshare"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A guest to be run."""

    platform: Platform
    guest: Guest
    content: Content | None  # of its dockerd at the start
    lock: Lock
    cache: Path
    binaries: daemon.Binaries  # the lock's docker for this machine, which makes the disk
    console: Path  # file for the serial console; next to it, as *.command, qemu's command line
    log: Log
    keep: bool = False  # leave it running


@contextmanager
def run(request: Request) -> Iterator[Machine]:
    """Run a guest during the block; its dockerd answers when the block begins.

    Raises EngineError, UpstreamError.
    """
    require_linux_root("a virtual engine")
    ensure(tools(request.platform), request.log)
    platform, cache, log = request.platform, request.cache, request.log
    with disks.using(cache):
        drives = qemu.Drives(
            system=disks.system(platform, request.guest, request.lock, cache, log),
            content=disks.content(request.content, platform, request.binaries, cache, log),
        )
        machine = _boot(request, drives)
    try:
        yield machine
        if not request.keep:
            machine.stop()
    finally:
        if request.keep and machine.trouble is None:
            machine.leave()
        else:
            machine.kill()


def _boot(request: Request, drives: qemu.Drives) -> Machine:
    """Return a booted machine. Raises EngineError.

    The last accelerator is TCG, which works everywhere. It is tried again when the guest hung before its dockerd was
    started: on a busy machine a guest's processor sometimes misses its timer's interrupt, and Linux then waits for it
    for ever (the console has "timer wakeup didn't happen"). What is to be checked has not begun by then, so the retry
    cannot hide a fault of it.
    """
    *others, last = qemu.accelerators(request.platform)
    for accelerator in others:
        try:
            return _start(request, drives, accelerator)
        except EngineError as error:
            request.log.say(f"{accelerator.name} does not work here, though /dev/kvm exists: {error.found}")
    try:
        return _start(request, drives, last)
    except Hung as error:
        request.log.say(f"booting the guest again: {error.found}")
    return _start(request, drives, last)


def _start(request: Request, drives: qemu.Drives, accelerator: qemu.Accelerator) -> Machine:
    """Boot with that accelerator; kill a machine that fails. Raises EngineError."""
    platform, guest, console, log = request.platform, request.guest, request.console, request.log
    folder = qemu.Folder.make(request.cache / disks.FOLDER)
    arguments = qemu.command(platform, guest, accelerator, drives, console=console, folder=folder.path)
    machine = Machine(platform, accelerator, console, folder, log)
    console.parent.mkdir(parents=True, exist_ok=True)
    console.with_suffix(".command").write_text(f"{shlex.join(arguments)}\n", encoding="utf-8")
    try:
        how = f"{accelerator.name}, {accelerator.cores} CPUs"
        with log.step(f"guest {guest.name} for {platform}: {guest.about}; {how}"):
            machine.start(arguments, keep=request.keep)
            machine.boot()
            log.say(f"its dockerd answers; calibration: {machine.speed:.1f} times longer than natively")
    except BaseException:
        machine.kill()
        raise
    return machine
