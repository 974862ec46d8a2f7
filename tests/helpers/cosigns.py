"""cosign itself, out of Debian's packages: it must accept what we sign, and refuse what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.core import cache, machine
from pipeline.core.errors import PipelineError
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.inputs import versions
from pipeline.rehearsal import mirror

ROOT = Path(__file__).resolve().parents[2]
_SUITES = ("sid", "trixie")  # they have cosign 3 and 2


@dataclass(frozen=True)
class Cosign:
    """One version, run without any configuration of the user."""

    program: Path
    home: Path

    def run(self, *arguments: str, **more: str) -> tuple[int, str]:
        """Exit code, and its output; `more`: of its environment. It has no credentials."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "DOCKER_CONFIG": str(self.home), **more}
        done = subprocess.run(
            [self.program, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr


def bring(log: Log) -> dict[int, Path]:
    """cosign of each major version in the cache, downloaded now if it is not there; skips where there is no apt."""
    host = Platform.host()
    if host is None or machine.find("apt-get") is None:
        pytest.skip("cosign comes out of Debian's packages, by apt")
    folder = cache.folder() / "rehearsal" / "cosign"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        known = {int(path.parent.name): path for path in folder.glob("[0-9]/cosign")}
        if known.keys() >= {2, 3}:
            return known
        machine.ensure(["dpkg-deb"], log)
        try:
            where = mirror.archives(versions.read(ROOT / "versions.yaml").upstream)
            apt = mirror.Apt(folder / "apt", where, _SUITES, [host])
            apt.update()
            for candidate in apt.candidates("cosign", host):
                major = int(re.sub(r"^\d+:", "", candidate.version).partition(".")[0])
                if major not in known and candidate.libc <= mirror.host_libc():
                    deb = apt.download(candidate, folder)
                    subprocess.run(["dpkg-deb", "-x", str(deb), str(folder / f"tree{major}")], check=True)
                    known[major] = folder / str(major) / "cosign"
                    known[major].parent.mkdir()
                    (folder / f"tree{major}" / "usr/bin/cosign").replace(known[major])
        except PipelineError as error:
            pytest.skip(f"no cosign: {error}")
        return known
