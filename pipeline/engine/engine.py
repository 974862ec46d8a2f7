"""The choice of this machine's docker engine: the user's, the user's with a separate builder, or a private one.

the user's      answers, has buildx, and either a builder named in BUILDX_BUILDER or the containerd image store
with a builder  the user's engine without that store: a docker-container builder is created, and removed afterwards
private         Linux and root: dockerd of the lock's artifacts, see pipeline/engine/daemon.py

Engines of other platforms, for smoke: pipeline/engine/engines.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from python_on_whales import DockerClient
from python_on_whales.client_config import ClientNotFoundError
from python_on_whales.exceptions import DockerException

from pipeline.core import machine
from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.engine import daemon, sandbox
from pipeline.inputs.lock import Lock


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine. It runs one platform natively, and can build all of them unless it is virtual."""

    docker: DockerClient
    builder: str | None  # buildx builder; None: the engine's default
    description: str
    platform: Platform | None  # that it runs natively; None when the image has no such platform
    host: str | None = None  # DOCKER_HOST of an engine that outlives this process
    virtual: bool = False
    patience: float = 1.0  # factor for the deadlines of checks: how many times slower it is than a native engine
    story: str = ""  # of a virtual one: the stages of its start, each with its time
    trouble: Callable[[], str | None] = lambda: None  # why the machine that it runs on failed


@contextmanager
def choose(lock: Lock, cache: Path, log: Log) -> Iterator[Engine]:
    """Yield the best engine that this machine has, and log which one and why.

    `cache`: filled by `fetch`; a private engine is made of it. Raises EngineError with the possible next steps.
    """
    own, reason = _users_engine()
    if own is None:
        log.say(f"your engine cannot be used ({reason}): starting a private one of the lock's artifacts")
        with private(lock, cache, log, sandboxed=True) as started:
            yield started
        return
    named = os.environ.get("BUILDX_BUILDER")
    engine = Engine(
        docker=own,
        builder=named or "default",
        description=f"your engine, {describe(own)}",
        platform=platform_of(own),
        host=os.environ.get("DOCKER_HOST", ""),
    )
    if named or has_containerd_store(own):
        log.say(f"engine: {engine.description}" + (f", builder {named}" if named else ""))
        yield engine
        return
    log.say(f"engine: {engine.description}, with a docker-container builder: it has no containerd image store")
    try:
        made = own.buildx.create(driver="docker-container", bootstrap=True)
    except DockerException as error:
        raise EngineError(
            "cannot create a builder, which your engine without containerd image store needs",
            found=str(error.stderr or error).strip().splitlines()[-1],
            next_step='set {"features": {"containerd-snapshotter": true}} in /etc/docker/daemon.json, '
            "or name a builder in BUILDX_BUILDER",
        ) from None
    with made:
        yield replace(engine, builder=made.name)


@contextmanager
def private(lock: Lock, cache: Path, log: Log, *, sandboxed: bool) -> Iterator[Engine]:
    """Run a private engine. `sandboxed`: False when this process is inside namespaces already."""
    machine.require_linux_root("a private docker engine")
    machine.ensure([*sandbox.TOOLS, *(["slirp4netns"] if sandboxed else [])], log)
    folder = cache / "engine"
    binaries = daemon.unpack(lock, cache)
    with daemon.run(binaries, folder, log, sandboxed=sandboxed, network=sandboxed) as client:
        description = f"private engine, {describe(client)}"
        log.say(f"engine: {description}, data in {folder}")
        yield Engine(docker=client, builder="default", description=description, platform=Platform.host())


def _users_engine() -> tuple[DockerClient | None, str]:
    """Return the user's engine if it answers and has buildx; else None and why not."""
    try:
        client = DockerClient()
        info = client.system.info()
        if not info.server_version:
            return None, "docker is installed, but its daemon does not answer"
        client.buildx.version()
    except ClientNotFoundError:
        return None, "no docker command"
    except DockerException as error:
        lines = str(error.stderr or "").strip().splitlines()
        return None, lines[-1] if lines else "docker does not answer"
    return client, ""


def platform_of(client: DockerClient) -> Platform | None:
    """Return what the engine runs natively; None when the image has no such platform."""
    return Platform.of_machine(client.system.info().architecture or "")


def has_containerd_store(client: DockerClient) -> bool:
    """Whether it can keep whole indexes."""
    # Untyped: [["driver-type", "io.containerd.snapshotter.v1"], …].
    status = client.system.info().driver_status or []
    return any("io.containerd.snapshotter" in str(value) for row in status for value in row)


def describe(client: DockerClient) -> str:
    """Return its version and operating system."""
    info = client.system.info()
    return f"docker {info.server_version} on {info.operating_system or info.os_type}"
