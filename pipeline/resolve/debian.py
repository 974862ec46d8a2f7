"""Debian packages, chosen by apt for any architecture, without executing anything of it.

apt runs on this machine with a separate state: the base image's dpkg status and keyrings, the archives of
versions.yaml, and the target's architecture. It prints what it would install or download; the digests are from the
package indexes, whose signature it verified (apt-secure(8)).
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from pipeline.core.errors import EngineError, IntentError, UpstreamError
from pipeline.core.machine import find
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.http.transport import NEXT_STEP
from pipeline.inputs.evidence import Evidence, Grade
from pipeline.inputs.lock import BUSYBOX, KERNEL, Artifact
from pipeline.inputs.versions import Intent
from pipeline.oci import layers
from pipeline.oci.layers import FileSystem
from pipeline.resolve import apt

_STATUS = "var/lib/dpkg/status"
_KEYRINGS = "usr/share/keyrings/"
_SIGNED = "listed in the archive's package index, under its signed Release file"

# Its kernel (6.1) is Debian's last one with the memory and cpuset controllers of cgroup v1. The suite had its last
# point release, so the file is not removed, unlike kernels in bookworm-security.
CGROUP_V1_SUITE = "bookworm"


@dataclass(frozen=True, kw_only=True)
class BaseSystem:
    """What apt needs of a base image: its installed packages and keyrings."""

    status: bytes  # var/lib/dpkg/status
    keyrings: Mapping[str, bytes]  # file name → content of usr/share/keyrings/


def read_layers(paths: Iterable[Path]) -> BaseSystem:
    """Read the base system from an image's layers (tar or tar.gz, named by their digests), lowest first.

    Raises UpstreamError.
    """
    system: FileSystem[bytes] = FileSystem()

    def look(path: str, _member: tarfile.TarInfo, content: IO[bytes]) -> bytes:
        is_keyring = path.startswith(_KEYRINGS) and path.endswith((".gpg", ".pgp"))
        return content.read() if path == _STATUS or is_keyring else b""

    try:
        for path in paths:
            system.add(layers.read(path, Digest.of_hex(path.name), look))
    except layers.Unreadable as error:
        raise UpstreamError(
            "a layer of the base image cannot be read",
            expected="tar, plain or compressed with gzip",
            found=str(error),
            next_step="choose another base image in versions.yaml",
        ) from None
    status = system.content(_STATUS)
    keyrings = {path.removeprefix(_KEYRINGS): data for path, data in system.contents if data and path != _STATUS}
    if not status or not keyrings:
        raise UpstreamError(
            "the base image is not a Debian system",
            expected=f"{_STATUS} and keyrings in {_KEYRINGS}",
            next_step="choose a Debian image as base in versions.yaml",
        )
    return BaseSystem(status=status, keyrings=keyrings)


@dataclass(frozen=True, kw_only=True)
class Solver:
    """apt for one platform of a base image. Methods raise UpstreamError, and EngineError without apt."""

    intent: Intent
    platform: Platform
    base: BaseSystem
    folder: Path  # apt's state, kept to download only changes the next time
    upstream: Mapping[str, str]  # base URLs of the archives, also `file:`

    def packages(self) -> tuple[Artifact, ...]:
        """Return what apt adds to the base for `intent.packages`, sorted by name.

        Raises IntentError for an unknown package.
        """
        command = ("apt-get", "install", "--no-install-recommends", "--yes", "-qq", "--print-uris")
        configuration = self._update(self.intent.suites, self.folder)
        chosen = self._chosen(configuration, command, self.intent.packages)
        if not chosen and self.intent.packages:
            raise _too_few(self.intent.packages, chosen)
        return tuple(sorted(chosen, key=lambda package: package.component))

    def guest(self) -> tuple[Artifact, ...]:
        """Return the packages of smoke's virtual machines, sorted by name: a static busybox and two cloud kernels.

        One kernel is the newest of the intent's suites, one is from CGROUP_V1_SUITE. Without dependencies
        (initramfs-tools, kmod): smoke only extracts files.
        """
        newest = self._update(self.intent.suites, self.folder)
        # With a separate state: apt would choose the kernel of a newer suite.
        older = self._update({"debian": (CGROUP_V1_SUITE,)}, self.folder / CGROUP_V1_SUITE)
        chosen: dict[str, Artifact] = {}
        for configuration, names in ((older, ()), (newest, (BUSYBOX,))):
            wanted = (_kernel(configuration, self.platform), *names)
            files = self._chosen(configuration, ("apt-get", "download", "-qq", "--print-uris"), wanted)
            if len(files) != len(wanted):
                raise _too_few(wanted, files)
            chosen |= {package.component: package for package in files}
        return tuple(chosen[name] for name in sorted(chosen))

    def configure(self, suites: Mapping[str, tuple[str, ...]], folder: Path) -> Path:
        """Write apt's state for these suites of each archive; return the path of its configuration."""
        keys = folder / "keyrings"
        keys.mkdir(parents=True, exist_ok=True)
        for name, data in self.base.keyrings.items():
            (keys / name).write_bytes(data)
        debians = sorted(name for name in self.base.keyrings if name.startswith("debian-archive-keyring"))
        signed = ",".join(str(keys / name) for name in debians or sorted(self.base.keyrings))
        sources = ((self.upstream[archive], suite, signed) for archive, names in suites.items() for suite in names)
        return apt.configure(folder, sources, [self.platform], self.base.status)

    def _update(self, suites: Mapping[str, tuple[str, ...]], folder: Path) -> Path:
        """Download the package indexes; return the path of apt's configuration."""
        if find("apt-get") is None:
            raise EngineError(
                "apt is missing, which chooses the Debian packages",
                expected="apt-get, as on Debian and Ubuntu",
                next_step="run it in a container: docker run -it -v $PWD:/src -w /src debian:trixie",
            )
        configuration = self.configure(suites, folder.resolve())
        _apt(configuration, "apt-get", "update", "-qq", "--error-on=any")
        return configuration

    def _chosen(self, configuration: Path, command: Sequence[str], names: Sequence[str]) -> list[Artifact]:
        """Return the packages that apt prints with --print-uris."""
        chosen = []
        for line in _apt(configuration, *command, *names).splitlines():
            match = re.fullmatch(r"'([^']+)' \S+ (\d+) (\S+)", line.strip())
            if match is None:
                continue
            origin, path = _split(match[1], self.upstream)
            if not re.fullmatch("SHA256:[0-9a-f]{64}", match[3]):
                raise UpstreamError(f"apt reports no SHA256 for {path}", found=match[3], next_step=NEXT_STEP)
            # `pool/main/i/iptables/iptables_1.8.11-2_amd64.deb`; an epoch is not in file names
            name, version, _ = unquote(path.rsplit("/", 1)[1]).split("_")
            chosen.append(
                Artifact(
                    component=name,
                    version=version,
                    platform=self.platform,
                    origin=origin,
                    path=path,
                    url=f"{self.intent.upstream[origin]}/{path}",
                    digest=Digest.of_hex(match[3].removeprefix("SHA256:")),
                    size=int(match[2]),
                    evidence=(Evidence(grade=Grade.SIGNED, source=_SIGNED),),
                )
            )
        return chosen


def _too_few(names: Sequence[str], chosen: Sequence[Artifact]) -> UpstreamError:
    return UpstreamError(
        "apt does not report the URL of a package",
        expected=", ".join(names),
        found=", ".join(package.component for package in chosen) or "none",
        next_step=NEXT_STEP,
    )


def index(folder: Path) -> str:
    """Return the package indexes of the last `resolve`, a stanza per package (deb822(5)).

    `folder`: apt's state of a Solver. Raises IntentError if there is none.
    """
    configuration = folder / "apt.conf"
    if not configuration.exists():
        raise IntentError(
            "Debian's package index is not in the cache",
            expected="apt's state of `resolve`",
            where=str(folder),
            next_step="nox -s resolve, or nox -s rehearse on a machine without internet",
        )
    return _apt(configuration.resolve(), "apt-cache", "dumpavail")


def suites(intent: Intent) -> Mapping[str, tuple[str, ...]]:
    """Return all suites of a Solver, by archive."""
    return {**intent.suites, "debian": tuple(dict.fromkeys((*intent.suites["debian"], CGROUP_V1_SUITE)))}


def _kernel(configuration: Path, platform: Platform) -> str:
    """Return the package of the newest cloud kernel, as apt takes it: `name=version`."""
    metapackage = f"{KERNEL}cloud-{platform.names.debian}"
    stanza = _apt(configuration, "apt-cache", "show", "--no-all-versions", metapackage)
    match = re.search(rf"^Depends: (?:.*, )?({KERNEL}\S+) \(= (\S+)\)", stanza, re.MULTILINE)
    if match is None:
        raise UpstreamError(
            f"{metapackage} does not depend on a kernel",
            expected=f"Depends: {KERNEL}… (= …)",
            found="; ".join(re.findall("^Depends: .*", stanza, re.MULTILINE)) or "no Depends",
            where=str(configuration.with_name("sources.list")),
        )
    return f"{match[1]}={match[2]}"


def _split(uri: str, upstream: Mapping[str, str]) -> tuple[str, str]:
    """Split a package's URI into the archive's key and the path below it."""
    for origin, base in sorted(upstream.items(), key=lambda item: -len(item[1])):
        # apt writes file:///path as file:/path
        prefix = base.replace("file:///", "file:/", 1) + "/"
        if uri.startswith(prefix):
            return origin, uri.removeprefix(prefix)
    raise UpstreamError(f"apt uses an archive that is not in versions.yaml: {urlsplit(uri).hostname}")


def _apt(configuration: Path, *command: str) -> str:
    """Return the output of one of apt's programs. Raises UpstreamError, or IntentError for an unknown package."""
    done = apt.run(configuration, *command)
    if done.returncode == 0:
        return done.stdout
    unknown = re.findall(
        r"Unable to locate package (\S+)|Package '?(\S+?)'? has no installation|Version '\S+' for '(\S+)' was not",
        done.stderr,
    )
    names = sorted({name for groups in unknown for name in groups if name})
    if names and command[1] == "install":  # the one command with names from versions.yaml
        raise IntentError(
            f"Debian has no package {', '.join(names)}",
            where="packages.install in versions.yaml",
            next_step="correct the name there",
        )
    sources = str(configuration.with_name("sources.list"))
    if names or "No packages found" in done.stderr:  # apt-cache reports no names
        raise UpstreamError(
            f"the archive has no package {', '.join(names) or command[-1]}",
            where=sources,
            next_step="check that it has these suites: packages.suites, upstream and mirrors in versions.yaml",
        )
    lines = done.stderr.strip().splitlines()
    raise UpstreamError(
        f"{' '.join(command[:2])} failed", found="; ".join(lines[-4:]), where=sources, next_step=NEXT_STEP
    )
