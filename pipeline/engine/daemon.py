"""A private docker engine made of the lock's artifacts, separate from everything on this machine.

Socket, data root, cgroup parent and (unless it is inside one already) sandbox are its own: pipeline/engine/sandbox.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException

from pipeline.core import cache as cached
from pipeline.core import machine
from pipeline.core.errors import EngineError
from pipeline.core.log import Log, seconds
from pipeline.core.machine import find
from pipeline.core.platforms import Platform
from pipeline.engine import sandbox
from pipeline.inputs.lock import Lock

CGROUP = "dind-k3s"
_BUILD_CACHE = "12GB"  # one build of both platforms and the variant takes 5 GB
_START = 60.0  # seconds until dockerd must answer; it takes 2-3 on two cores
_STOP = 25.0  # seconds for a clean stop, before the sandbox is killed


@dataclass(frozen=True, kw_only=True)
class Binaries:
    """An unpacked docker archive and a folder with the client's plugins."""

    bin: Path
    config: Path

    def client(self, host: str) -> DockerClient:
        """Return a client for a docker host; it runs this docker program."""
        return DockerClient(host=host, config=self.config, client_call=[str(self.bin / "docker")])


def unpack(lock: Lock, cache: Path) -> Binaries:
    """Unpack the lock's docker and buildx for this machine below `cache`/engine. Raises EngineError.

    Docker's archive is unpacked once for each digest.
    """
    host = Platform.host()
    files = {file.component: file for file in lock.artifacts if file.platform == host}
    if host is None or not {"docker", "buildx"} <= files.keys():
        raise EngineError("the lock has no docker engine for this machine", found=str(host or "an unknown platform"))
    docker, buildx = (cached.require(cache, files[name].digest) for name in ("docker", "buildx"))
    folder = cache / "engine"
    target = folder / f"docker-{files['docker'].digest.hex[:16]}"
    if not target.exists():
        partial = folder / f".docker-{os.getpid()}"
        partial.mkdir(parents=True)
        with tarfile.open(docker) as archive:
            archive.extractall(partial, filter="data")
        (partial / "docker").rename(target)
        partial.rmdir()
    plugin = folder / "config/cli-plugins/docker-buildx"
    plugin.parent.mkdir(parents=True, exist_ok=True)
    plugin.unlink(missing_ok=True)
    plugin.write_bytes(buildx.read_bytes())
    plugin.chmod(0o755)
    return Binaries(bin=target, config=folder / "config")


@contextmanager
def run(binaries: Binaries, folder: Path, log: Log, *, sandboxed: bool, network: bool) -> Iterator[DockerClient]:
    """Run dockerd during the block and yield a client for it.

    `folder`: for socket, data root and log; kept between runs, with the build cache. `sandboxed`: make namespaces;
    False when this process is inside some already. `network`: connect the sandbox through slirp4netns. Raises
    EngineError with dockerd's last lines when it does not answer.
    """
    machine.require_short(folder, 88, "the engine's socket")
    with machine.exclusive(folder / "lock", "another run uses the private engine"):
        sandbox.sweep_cgroups(CGROUP)
        socket = folder / "docker.sock"
        for stale in (socket, folder / "dockerd.pid"):
            stale.unlink(missing_ok=True)
        started = time.monotonic()
        process = _start(binaries, folder, socket, sandboxed=sandboxed, network=network)
        try:
            client = binaries.client(f"unix://{socket}")
            _wait(client, process, folder)
            log.say(f"dockerd answered after {seconds(time.monotonic() - started)}")
            _drop_leftovers(client)
            yield client
        finally:
            _stop(process, sandboxed=sandboxed)
            sandbox.sweep_cgroups(CGROUP)


def _start(
    binaries: Binaries, folder: Path, socket: Path, *, sandboxed: bool, network: bool
) -> subprocess.Popen[bytes]:
    config = folder / "daemon.json"
    settings = {
        "hosts": [f"unix://{socket}"],
        "data-root": str(folder / "data"),
        "pidfile": str(folder / "dockerd.pid"),
        "cgroup-parent": f"/{CGROUP}",
        # Only the containerd image store keeps an index with several platforms.
        "features": {"containerd-snapshotter": True},
        # BuildKit's default is a tenth of the disk (docs.docker.com/build/cache/garbage-collection); two builds are
        # enough for a user's cache folder.
        "builder": {"gc": {"enabled": True, "defaultKeepStorage": _BUILD_CACHE}},
    }
    config.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    command = [str(binaries.bin / "dockerd"), "--config-file", str(config)]
    resolv = folder / "resolv.conf"
    resolv.write_text("nameserver 10.0.2.3\n", encoding="ascii")  # slirp4netns's forwarder
    if sandboxed:
        command = sandbox.wrap(command, init=binaries.bin / "docker-init", resolv_conf=resolv if network else None)
    sbin = Path(find("iptables") or "/usr/sbin/iptables").parent
    environment = {
        **os.environ,
        "PATH": f"{binaries.bin}:{os.environ.get('PATH', '')}:{sbin}",
        # Not the user's docker configuration.
        "DOCKER_CONFIG": str(binaries.config),
    }
    with (folder / "dockerd.log").open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C must not reach dockerd: _stop ends it cleanly
        )
    if sandboxed and network:
        _connect(process, folder)
    return process


def _connect(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Connect the sandbox's network namespace by slirp4netns, which ends with the namespace's first process."""
    program = find("slirp4netns")
    if program is None:
        return
    deadline = time.monotonic() + 5
    child = 0
    while not child and time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, ValueError, IndexError):
            child = sandbox.first_inside(process.pid)
    if not child:
        return
    with (folder / "slirp4netns.log").open("wb") as output:
        subprocess.Popen(
            machine.tied([program, "--configure", "--mtu=65520", str(child), "tap0"]),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(client: DockerClient, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _START
    while True:
        with suppress(DockerException):
            if client.system.info().server_version:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            log = folder / "dockerd.log"
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
            raise EngineError(
                "the private docker engine did not start",
                expected=f"an answer within {_START:.0f} s",
                found="\n    ".join(tail) or "no output",
                where=str(log),
                next_step="the last lines show what dockerd lacks; `nox -s rehearse` installs what it needs",
            )


def _drop_leftovers(client: DockerClient) -> None:
    """Remove what a killed run left: every container and volume of the data root is ours."""
    for container in client.container.list(all=True):
        container.remove(force=True, volumes=True)
    for volume in client.volume.list():
        with suppress(DockerException):
            volume.remove()


def _stop(process: subprocess.Popen[bytes], *, sandboxed: bool) -> None:
    """Stop dockerd cleanly, so that its data root is consistent; else kill it; the sandbox dies with it."""
    if process.poll() is not None:
        return
    if sandboxed:
        sandbox.signal_inside(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    machine.stop(process, _STOP)
