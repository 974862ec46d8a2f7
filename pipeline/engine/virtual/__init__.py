"""A virtual engine: a docker host of any platform, in a small machine under qemu-system, seen over DOCKER_HOST.

Its kernel is Debian's, its dockerd the locked one, and no port of it is open but one on 127.0.0.1: docs/smoke.md.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core import machine
from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.engine import daemon
from pipeline.engine.virtual import disks, qemu
from pipeline.engine.virtual.disks import Content, System
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


@contextmanager
def run(
    platform: Platform,
    guest: Guest,
    content: Content | None,
    *,
    lock: Lock,
    cache: Path,
    binaries: daemon.Binaries,
    console: Path,
    log: Log,
    keep: bool = False,
) -> Iterator[Machine]:
    """Run a guest of that platform for the length of the block; its dockerd answers when the block begins.

    `content`: what its dockerd has from the start. `binaries`: the lock's docker for this machine, which makes the
    disk. `console`: where the serial console is kept; qemu's command line is kept beside it, as *.command. `keep`:
    leave it running. Raises EngineError, UpstreamError.
    """
    machine.require_linux_root("a virtual engine")
    machine.ensure(tools(platform), log)
    with disks.using(cache):
        system = disks.system(platform, guest, lock, cache, log)
        disk = disks.content(content, platform, binaries, cache, log)
        started = _first_that_works(platform, guest, system, disk, cache / disks.FOLDER, console, log, keep=keep)
    try:
        yield started
        if not keep:
            started.stop()
    finally:
        if keep and started.trouble is None:
            started.leave()
        else:
            started.kill()


def _first_that_works(
    platform: Platform, guest: Guest, system: System, disk: Path, top: Path, console: Path, log: Log, *, keep: bool
) -> Machine:
    """A booted machine. Whether KVM works is known only by booting something; TCG does, and is the last choice.

    Under TCG a second try is made of what stood still before its dockerd was started: it happens, seldom, on a
    busy machine that a processor of the guest misses its timer's interrupt, for which Linux then waits for ever (its
    console says «timer wakeup didn't happen»). What is tried on the guest has not begun by then, so that no fault of it
    can be hidden.
    """

    def boot(accelerator: Accelerator) -> Machine:
        return _boot(platform, guest, accelerator, system, disk, top, console, log, keep=keep)

    *others, last = qemu.accelerators(platform)
    for accelerator in others:
        try:
            return boot(accelerator)
        except EngineError as error:
            log.say(f"{accelerator.name} does not work here, though /dev/kvm is there: {error.found}")
    try:
        return boot(last)
    except qemu.Hung as error:
        log.say(f"once more, from its start: {error.found}")
    return boot(last)


def _boot(
    platform: Platform,
    guest: Guest,
    accelerator: Accelerator,
    system: System,
    disk: Path,
    top: Path,
    console: Path,
    log: Log,
    *,
    keep: bool,
) -> Machine:
    """With that accelerator; a machine that does not come up is taken down. Raises EngineError."""
    cores = qemu.cores(platform, accelerator)
    folder = qemu.Folder.make(top)
    arguments = qemu.command(
        platform, guest, accelerator, system, disk, cores=cores, console=console, folder=folder.path
    )
    console.parent.mkdir(parents=True, exist_ok=True)
    console.with_suffix(".command").write_text(f"{shlex.join(arguments)}\n", encoding="utf-8")
    machine = Machine(platform, accelerator, console, folder, log)
    try:
        with log.step(f"a guest of {platform}, {guest.name}: {guest.about}; {accelerator.name}, {cores} CPUs"):
            machine.start(arguments, keep=keep)
            machine.boot()
            log.say(f"its dockerd answers; calibration: {machine.speed:.1f} times longer than natively")
    except BaseException:
        machine.kill()
        raise
    return machine
