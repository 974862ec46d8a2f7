"""`nox -s rehearse`: the whole release on one machine that reaches only package registries.

    outside    install missing packages; a lock excludes a second rehearsal
    supplies   in a pid and mount namespace: all downloads of apt and pip
    release    in namespaces without any network: origin, registry, engine and the stages of a release

Both phases are processes in a sandbox (engine/sandbox.py): when this process ends, by any signal, the kernel removes
theirs with every mount, bridge and container, and the next rehearsal continues after the last finished step.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType

from pipeline import smoke, steps
from pipeline.core import machine
from pipeline.core.errors import DigestMismatch, EngineError, VerificationFailed
from pipeline.core.log import Log, seconds
from pipeline.core.names import ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import Image, Tier, Variant, write_bytes, write_text
from pipeline.engine import emulation, engine, engines, sandbox
from pipeline.engine.daemon import CGROUP
from pipeline.http import transport
from pipeline.inputs import versions
from pipeline.inputs.lock import Lock
from pipeline.rehearsal import clamp, images, origin, supplies
from pipeline.rehearsal import registry as rehearsed_registry
from pipeline.rehearsal.real_k3s import Real
from pipeline.rehearsal.registry import Served
from pipeline.signing import signer
from pipeline.smoke.booted import BootOptions
from pipeline.workflow import Run, SmokeSelection

TOOLS = ("mmdebstrap", "docker-registry", "openssl", "dpkg-deb")
_ORIGIN_PORT = 8080  # in the sandbox every port is free
_REGISTRY_PORT = 5000  # and 5001 for its token server
_SECURE_PORT = 5443  # and 5444
_BASE = "library/debian"


def main(run: Run, parsed: argparse.Namespace) -> int:
    """The command `rehearse`; returns the exit code."""
    folder = run.cache / "rehearsal"
    real = Real.of(parsed.k3s, parsed.images)
    if parsed.phase is not None:
        job = supplies.Job(intent=run.intent, lock=run.lock, folder=folder, log=run.log, real=real)
        if parsed.phase == "supplies":
            _provide(job, refresh=parsed.refresh)
        else:
            _release(run, job, emulate=not parsed.no_emulation, again=parsed.again)
        return 0
    machine.require_linux_root("a rehearsal")
    folder.mkdir(parents=True, exist_ok=True)
    with machine.exclusive(folder.with_name("rehearsal.lock"), "another rehearsal is running"):
        if parsed.clean:
            shutil.rmtree(folder)
            run.log.say(f"removed {folder}")
            return 0
        return _outside(run, folder)


def _outside(run: Run, folder: Path) -> int:
    """Run each phase in a child process."""
    log = run.log
    host = Platform.host()
    if host not in run.intent.platforms:
        raise EngineError("the image has no platform of this machine", found=str(host))
    with log.step("missing packages of this machine"):
        others = [platform for platform in run.intent.platforms if platform != host]
        emulators = [emulation.program(platform) for platform in others]
        # Now, since the release phase has no network.
        virtual_engine = [tool for platform in others for tool in engines.tools(platform)]
        machine.ensure([*TOOLS, *sandbox.TOOLS, *emulators, *virtual_engine], log)
    sandbox.sweep_cgroups(CGROUP)
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    (folder / "tmp").mkdir(parents=True)
    command = [sys.executable, "-m", "pipeline", *sys.argv[1:], "--phase"]
    code = _child(sandbox.wrap([*command, "supplies"], network=True), folder / "tmp")
    if code == 0:
        code = _child(sandbox.wrap([*command, "release"], init=folder / "docker-init"), folder / "tmp")
    sandbox.sweep_cgroups(CGROUP)
    if code == 0:
        log.say(f"rehearsed in {seconds(log.elapsed)}; nothing of it is left running")
    return code


def _child(command: list[str], temporary: Path) -> int:
    """Run a phase and return its exit code; forward SIGINT and SIGTERM to it.

    `temporary`: for the temporary files of mmdebstrap and others, which the next run removes after a kill.
    """
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment)

    def forward(number: int, _frame: FrameType | None) -> None:
        sandbox.signal_inside(process.pid, signal.Signals(number))

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        process.kill()
        process.wait()


def _provide(job: supplies.Job, *, refresh: bool) -> None:
    with job.log.step("supplies, from package registries"):
        provided = supplies.provide(job, refresh=refresh)
    # Process 1 of the second phase is docker's static init.
    host = Platform.host()
    assert host is not None
    archive = origin.path_of(provided.root, "docker", provided.versions["docker"], host)
    write_bytes(job.folder / "docker-init", images.read_tar(archive, "docker/docker-init"))
    (job.folder / "docker-init").chmod(0o755)


def _release(run: Run, job: supplies.Job, *, emulate: bool, again: bool) -> None:
    """Run the release without network, with the rehearsal's origin, registries and engine."""
    log, folder = job.log, job.folder
    # Here, since the sandbox mounts binfmt_misc and the machine may not.
    emulation.sweep(log)
    provided = supplies.provide(job)
    with ExitStack() as stack:
        stack.enter_context(origin.serve(provided.root, _ORIGIN_PORT))
        program = machine.find("docker-registry") or ""
        served = [
            stack.enter_context(rehearsed_registry.serve(program, folder / name, port, tls=tls))
            for name, port, tls in (("registry", _REGISTRY_PORT, False), ("registry-tls", _SECURE_PORT, True))
        ]
        plain, secure = served
        log.say(f"origin on 127.0.0.1:{_ORIGIN_PORT}, registries on {plain.host} and {secure.host} (TLS)")
        log.say("they are reachable only inside this rehearsal")
        rehearsed = stack.enter_context(_rehearsed(run, served))
        _prepare(run, rehearsed, provided, served, folder)
        _same_kubectl(run.lock, rehearsed.lock, log)

        def options(chosen: engine.Engine, variant: Variant) -> BootOptions:
            boot = job.real.options(chosen, variant, folder, log)
            return boot if chosen.virtual else clamp.apply(boot, folder, log)

        # One key for all rehearsals of this machine, so that the next one need not sign again.
        key = folder / "signing.key"
        signer.make_key(key)
        release = functools.partial(
            steps.of,
            rehearsed,
            smoke=lambda: rehearsed.smoke(SmokeSelection(emulate=emulate, options=options)),
            scanner=[sys.executable, "-m", "pipeline.rehearsal.scanner"],
            least="high",
            key=key,
        )
        steps.go(release(afresh=again), log, dry_run=False)
        left = [f"{step.name}: {text}" for step in release() for text in step.left()]
        if left:
            raise VerificationFailed("a finished release has steps left", found="\n    ".join(left))
        _pull_and_boot(rehearsed, options)
        write_text(rehearsed.dist / "notes.md", rehearsed.notes(""))
        rehearsed.summary()


def _rehearsed(run: Run, served: Sequence[Served]) -> Run:
    """Return the run of the release: below dist/rehearsal, with the rehearsal's servers instead of upstream."""
    dist = run.dist / "rehearsal"
    credentials = {registry.host: registry.credentials for registry in served}
    (authority,) = (registry.authority for registry in served if registry.authority)
    return replace(
        run,
        intent_path=dist / "versions.yaml",
        lock_path=dist / "versions.lock.yaml",
        dist=dist,
        client=transport.make_client(verify=ssl.create_default_context(cafile=str(authority))),
        credentials=credentials.get,
        start=functools.partial(engine.private, sandboxed=False),
        rehearsed=True,
    )


def _prepare(run: Run, rehearsed: Run, provided: supplies.Supplies, served: Sequence[Served], folder: Path) -> None:
    """Push the base image, and write the rehearsal's versions.yaml and lock."""
    # `resolve` refuses other bytes under the same version. Here a new stub or a rebuilt package is expected, so the
    # rehearsal's own lock is made again.
    mark = rehearsed.dist / "supplies"
    if not mark.exists() or mark.read_text(encoding="utf-8") != provided.mark:
        rehearsed.lock_path.unlink(missing_ok=True)
        write_text(mark, provided.mark)
    tag = run.intent.base.rpartition(":")[2]
    base = ImageName(registry=served[0].host, repository=_BASE)
    with run.log.step("the base image, into the registry"):
        images.push_base(rehearsed.registry(base), tag, provided.bases, folder / "base-image", run.log)
    intent = replace(
        run.intent,
        names=tuple(ImageName(registry=registry.host, repository="dind-k3s") for registry in served),
        components=provided.versions,
        upstream=origin.upstream(_ORIGIN_PORT),
        mirrors={},
        witnesses={},
        policy={},  # the one origin has no signatures, so no grade can be required
        base=f"{base}:{tag}",
    )
    versions.write(rehearsed.intent_path, intent)
    rehearsed.resolve(check=False)


def _pull_and_boot(rehearsed: Run, options: smoke.Options) -> None:
    """Pull what was published as an anonymous client, and boot it."""
    host = Platform.host()
    assert host is not None
    dist = rehearsed.dist / "pulled"
    pulled = replace(rehearsed, dist=dist, start=lambda *_: nullcontext(rehearsed.engine))
    # By digest: `latest` may be a newer k3s of an earlier rehearsal.
    pulled.pull(f"{rehearsed.intent.names[-1]}@{Image.read(rehearsed.dist).digest}", dist)
    pulled.smoke(SmokeSelection(platforms=[host], tiers=[Tier.BOOT], options=options))
    shutil.rmtree(dist)


def _same_kubectl(real: Lock, rehearsed: Lock, log: Log) -> None:
    """Raise DigestMismatch if files of both locks differ. kubectl is the one that a package registry has."""
    locked = {(file.component, file.version, file.platform): file.digest for file in real.artifacts}
    for file in rehearsed.artifacts:
        digest = locked.get((file.component, file.version, file.platform))
        if digest is None:
            continue
        if digest != file.digest:
            raise DigestMismatch(
                f"{file.component} {file.version} for {file.platform} is not the file that versions.lock.yaml names",
                expected=digest.text,
                found=file.digest.text,
                where=file.url,
                next_step="the package registry's copy is not the vendor's: do not use it",
            )
        log.say(f"{file.component} {file.version} {file.platform}: the same bytes as in versions.lock.yaml")
