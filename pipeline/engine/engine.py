"""Which docker engine of this machine does the work: the user's own if it can, else one beside it, else a private one.

the user's    answers, has buildx, and either a builder named in BUILDX_BUILDER or the containerd image store
+ a builder   the user's engine without that store: a docker-container builder is made, and removed afterwards
private       Linux and root: dockerd from the lock's own artifacts, see pipeline/engine/daemon.py

For smoke there are more, of other platforms: see pipeline/engine/engines.py.
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

from pipeline.core import cache as cached
from pipeline.core import machine
from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.engine import daemon, sandbox
from pipeline.inputs.lock import Lock

# docker's own words for the architectures (`docker info`, uname -m).
_ARCHITECTURES = {"x86_64": Platform.AMD64, "amd64": Platform.AMD64, "aarch64": Platform.ARM64, "arm64": Platform.ARM64}


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine: it can build all platforms (but for a virtual one), and runs one of them natively."""

    docker: DockerClient
    builder: str | None  # buildx builder; None: the engine's own
    description: str
    platform: Platform | None  # that it runs natively; None when it is none of ours
    host: str | None = None  # DOCKER_HOST of an engine that outlives us; None when it does not
    virtual: bool = False
    patience: float = 1.0  # how many times slower it is than the machine whose deadlines the checks have
    story: str = ""  # how a virtual one came up: its stages, each with its time
    trouble: Callable[[], str | None] = lambda: None  # what is wrong with the machine that it runs on


@contextmanager
def choose(lock: Lock, cache: Path, log: Log) -> Iterator[Engine]:
    """The best engine that this machine has, for the length of the block; logs which one and why.

    `cache`: what `fetch` filled; a private engine is started from it. Raises EngineError with every way out.
    """
    own, reason = _users_own()
    if own is None:
        log.say(f"no engine of your own ({reason}): starting a private one from the lock's artifacts")
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
    log.say(f"engine: {engine.description}, with a docker-container builder: its image store is classic")
    try:
        made = own.buildx.create(driver="docker-container", bootstrap=True)
    except DockerException as error:
        raise EngineError(
            "your engine has no containerd image store, and a builder could not be started beside it",
            found=str(error.stderr or error).strip().splitlines()[-1],
            next_step='set {"features": {"containerd-snapshotter": true}} in /etc/docker/daemon.json, '
            "or name a builder in BUILDX_BUILDER",
        ) from None
    with made:
        yield replace(engine, builder=made.name)


@contextmanager
def private(lock: Lock, cache: Path, log: Log, *, sandboxed: bool) -> Iterator[Engine]:
    """A private engine; `sandboxed` False when the caller is in namespaces of its own already."""
    machine.require_linux_root("a private docker engine")
    machine.ensure([*sandbox.TOOLS, *(["slirp4netns"] if sandboxed else [])], log)
    folder = cache / "engine"
    binaries = unpack(lock, cache)
    with daemon.run(binaries, folder, log, sandboxed=sandboxed, network=sandboxed) as client:
        description = f"private engine, {describe(client)}"
        log.say(f"engine: {description}, data in {folder}")
        yield Engine(docker=client, builder="default", description=description, platform=Platform.host())


def unpack(lock: Lock, cache: Path) -> daemon.Binaries:
    """The lock's docker and buildx for this machine, unpacked below `cache`/engine. Raises EngineError."""
    host = Platform.host()
    files = {file.component: file for file in lock.artifacts if file.platform == host}
    if host is None or not {"docker", "buildx"} <= files.keys():
        raise EngineError("the lock has no docker engine for this machine", found=str(host or "an unknown platform"))
    docker, buildx = files["docker"], files["buildx"]
    return daemon.unpack(
        docker=cached.require(cache, docker.digest),
        digest=docker.digest,
        buildx=cached.require(cache, buildx.digest),
        folder=cache / "engine",
    )


def _users_own() -> tuple[DockerClient | None, str]:
    """The user's engine if it answers and has buildx; else None and why not."""
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
    """What the engine runs natively; None when it is none of ours."""
    return _ARCHITECTURES.get(client.system.info().architecture or "")


def has_containerd_store(client: DockerClient) -> bool:
    """Whether it keeps whole indexes; its status is untyped: [["driver-type", "io.containerd.snapshotter.v1"], …]."""
    status = client.system.info().driver_status or []
    return any("io.containerd.snapshotter" in str(value) for row in status for value in row)


def describe(client: DockerClient) -> str:
    """Its version and system, in words."""
    info = client.system.info()
    return f"docker {info.server_version} on {info.operating_system or info.os_type}"
