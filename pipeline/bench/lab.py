"""Private engines for measuring: each begins with nothing in it, and is what every program of a round talks to."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from python_on_whales import DockerClient

from pipeline.bench import processes
from pipeline.bench.fetching import disk
from pipeline.core import machine
from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.engine import daemon, emulation, engine, sandbox
from pipeline.inputs.lock import Lock


@dataclass(frozen=True, kw_only=True)
class Took:
    """One command."""

    seconds: float
    processor: float  # seconds of processor time: its own, and the engine's while it ran
    said: str  # what it wrote


@dataclass(frozen=True, kw_only=True)
class Lab:
    """A running engine."""

    client: DockerClient
    binaries: daemon.Binaries
    folder: Path  # its data; `<folder>/docker.sock`

    @property
    def environment(self) -> dict[str, str]:
        """What makes it the user's own engine for a command."""
        return {
            **os.environ,
            "PATH": f"{self.binaries.bin}:{os.environ.get('PATH', '')}",
            "DOCKER_HOST": f"unix://{self.folder / 'docker.sock'}",
            "DOCKER_CONFIG": str(self.binaries.config),
        }

    @property
    def binfmt(self) -> Path:
        """Where binfmt_misc is mounted: inside, whether or not this machine has it mounted."""
        return Path(f"/proc/{sandbox.first_inside(_top(self.folder))}/root") / emulation.BINFMT.relative_to("/")

    def timed(self, command: Sequence[str], root: Path, more: Mapping[str, str] | None = None) -> Took:
        """Run a command in `root`. Raises EngineError with its last lines when it fails."""
        os.sync()  # what the disk still has to do for others is done before
        environment = {**self.environment, "PYTHONPATH": str(root), **(more or {})}
        before, started = self._processor(), time.monotonic()
        with tempfile.TemporaryFile(dir=self.folder) as output:
            process = subprocess.Popen(
                command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                _, status, used = os.wait4(process.pid, 0)
            except BaseException:
                process.kill()
                process.wait()
                raise
            seconds = time.monotonic() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            said = output.read().decode(errors="replace")
        if process.returncode != 0:
            raise EngineError(
                f"a program of the benchmark failed: {' '.join(command[:4])} …",
                expected="exit code 0",
                found=f"exit code {process.returncode}: " + "\n    ".join(said.strip().splitlines()[-12:]),
            )
        processor = used.ru_utime + used.ru_stime + self._processor() - before
        return Took(seconds=seconds, processor=processor, said=said)

    def _processor(self) -> float:
        """Seconds that the engine and everything it started have used."""
        return sum(processes.used_by(_top(self.folder)).values())


def _top(folder: Path) -> int:
    """The first of the engine's processes, which is a child of ours; 0 when it is gone."""
    for child in processes.children(os.getpid()):
        with suppress(OSError, IndexError):
            if str(folder / "daemon.json") in processes.read(child).line:
                return child
    return 0


@contextmanager
def place(what: str, log: Log) -> Iterator[Path]:
    """A folder on a disk that is removed at the end; `what` begins the sentence when this is not Linux or not root."""
    machine.require_linux_root(what)
    machine.ensure([*sandbox.TOOLS, "dpkg-deb"], log)
    folder = Path(tempfile.mkdtemp(prefix="dind-k3s-bench-", dir=disk()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def file_system(folder: Path) -> str:
    """Its kind and whether it keeps a journal: `ext4`, `ext4 without a journal`.

    Without one, ext4 does not give the inode of a file away again for a minute to five after the file is gone, and
    looks at each of them whenever a file is made (ext4's `recently_deleted`): a build takes half as long again where
    another was removed just before.
    """
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == number:
            kind, source = right.split()[:2]
            options = Path("/proc/fs/ext4") / Path(source).name / "options"
            journal = kind != "ext4" or not options.exists() or "data=" in options.read_text(encoding="utf-8")
            return kind if journal else f"{kind} without a journal"
    return "an unknown file system"


@contextmanager
def started(own: Lock, cache: Path, folder: Path, log: Log) -> Iterator[Lab]:
    """An engine of the lock's own artifacts that has nothing: no image, an empty builder's cache, no network."""
    binaries = engine.unpack(own, cache)
    data = folder / "engine"
    try:
        with daemon.run(binaries, data, log, sandboxed=True, network=False) as client:
            yield Lab(client=client, binaries=binaries, folder=data)
    finally:
        shutil.rmtree(data, ignore_errors=True)
