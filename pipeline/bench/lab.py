"""Shared by benchmarks: the image that is measured, timed commands, private engines that are empty at first."""

from __future__ import annotations

import os
import resource
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from python_on_whales import DockerClient

from pipeline.bench import processes
from pipeline.core import machine, records
from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.engine import daemon, emulation, sandbox
from pipeline.inputs.lock import Lock
from pipeline.workflow import Run

_POLL = 0.02  # seconds between two readings of a program's memory


def of_image(run: Run) -> tuple[Run, records.Image]:
    """Return the image in dist/, and the run with its inputs, which a rehearsal keeps there, too.

    Raises IntentError without an image.
    """
    image = records.Image.read(run.dist)
    if image.rehearsed:
        run = replace(run, intent_path=run.dist / "versions.yaml", lock_path=run.dist / "versions.lock.yaml")
    return run, image


def described(run: Run, image: records.Image, *components: str) -> dict[str, Any]:
    """Return a report's entries about the image, with the versions of these components."""
    return {
        "rehearsed": image.rehearsed,
        "image": image.annotations.get("org.opencontainers.image.version", ""),
        "versions": {name: run.lock.versions[name] for name in components},
    }


@contextmanager
def temporary() -> Iterator[Path]:
    """Yield a folder that is removed at the end. In /var/tmp, since /tmp may be in memory and the cache is not."""
    with tempfile.TemporaryDirectory(prefix="dind-k3s-bench-", dir=os.environ.get("TMPDIR") or "/var/tmp") as name:
        yield Path(name)


@dataclass(frozen=True, kw_only=True)
class Took:
    """Resources that one command took."""

    seconds: float
    processor: float  # seconds of processor time, user and system, on all cores
    memory: int  # bytes, the maximum of the process itself; 0 if it ended before the first reading


def timed(command: Sequence[str], root: Path, environment: Mapping[str, str] = os.environ) -> Took:
    """Run a command in `root`. Raises EngineError with its last lines when it fails."""
    variables = {**environment, "PYTHONPATH": str(root)}
    with tempfile.TemporaryFile() as output:
        used, started, memory = _processor(), time.monotonic(), 0
        with subprocess.Popen(
            command, cwd=root, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process:
            with os.fdopen(os.pidfd_open(process.pid)) as ended:
                # The kernel's ru_maxrss would include the memory of this process at the fork.
                while not select.select([ended], [], [], _POLL)[0]:
                    memory = max(memory, processes.most_memory(process.pid))
            seconds = time.monotonic() - started
        if process.returncode != 0:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise EngineError(
                f"a program of the benchmark failed: {' '.join(command[:4])} …",
                expected="exit code 0",
                found=f"exit code {process.returncode}: " + "\n    ".join(lines[-12:]),
            )
    return Took(seconds=seconds, processor=_processor() - used, memory=memory)


def _processor() -> float:
    """Return the seconds of processor time of our ended children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True, kw_only=True)
class Lab:
    """A running private engine."""

    client: DockerClient
    binaries: daemon.Binaries
    folder: Path  # its data; `<folder>/docker.sock`

    def timed(self, command: Sequence[str], root: Path, more: Mapping[str, str] | None = None) -> Took:
        """Run a command in `root` with this engine as the user's, and `more` variables."""
        os.sync()  # pending writes of others are not measured
        environment = {
            **os.environ,
            "PATH": f"{self.binaries.bin}:{os.environ.get('PATH', '')}",
            "DOCKER_HOST": f"unix://{self.folder / 'docker.sock'}",
            "DOCKER_CONFIG": str(self.binaries.config),
            **(more or {}),
        }
        return timed(command, root, environment)

    @property
    def binfmt(self) -> Path:
        """Where binfmt_misc is mounted in the sandbox; this machine need not have it mounted."""
        for child in processes.children(os.getpid()):
            with suppress(OSError, IndexError):
                if str(self.folder / "daemon.json") in processes.read(child).line:
                    return Path(f"/proc/{sandbox.first_inside(child)}/root") / emulation.BINFMT.relative_to("/")
        raise EngineError("the private engine is gone", where=str(self.folder))


@contextmanager
def workspace(purpose: str, log: Log) -> Iterator[Path]:
    """Yield a folder for engines. Raises EngineError, which `purpose` begins, unless this process is root on Linux."""
    machine.require_linux_root(purpose)
    machine.ensure([*sandbox.TOOLS, "dpkg-deb"], log)
    with temporary() as folder:
        yield folder


@contextmanager
def started(own: Lock, cache: Path, folder: Path, log: Log) -> Iterator[Lab]:
    """Run an engine of the lock's artifacts without images, build cache and network."""
    binaries = daemon.unpack(own, cache)
    data = folder / "engine"
    try:
        with daemon.run(binaries, data, log, sandboxed=True, network=False) as client:
            yield Lab(client=client, binaries=binaries, folder=data)
    finally:
        shutil.rmtree(data, ignore_errors=True)
