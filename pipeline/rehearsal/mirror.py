"""Debian's packages, downloaded by apt itself with the machine's mirrors, proxies and keys.

The addresses are those of a Debian machine's own sources, and only the suite differs; other machines (Ubuntu) use the
upstream of versions.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from platform import libc_ver

from debian.deb822 import Deb822

from pipeline.core import machine
from pipeline.core.errors import UpstreamError
from pipeline.core.log import Log
from pipeline.core.machine import disk_full
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.resolve import apt

_KEYRINGS = ("/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp")
_HELPER = "/usr/lib/apt/apt-helper"  # apt's own downloader, with apt's own configuration (apt-helper(8))


@dataclass(frozen=True, kw_only=True)
class Archives:
    """Base URLs of Debian's archives, without a trailing slash, and their keyring."""

    uris: Mapping[str, str]  # `debian` and `debian-security`
    keyring: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One version of one Debian package for one platform."""

    name: str
    version: str
    platform: Platform
    path: str  # below the archive
    digest: Digest
    libc: tuple[int, ...]  # the least glibc of its Depends; () without one

    @property
    def source_version(self) -> str:
        """The version without the number of a rebuild (`+b2`), which architectures do not share."""
        return re.sub(r"\+b\d+$", "", self.version)


def archives(upstream: Mapping[str, str]) -> Archives:
    """Return this machine's Debian archives; those of `upstream` if its own sources have none. Raises UpstreamError."""
    keyring = next((path for path in _KEYRINGS if Path(path).exists()), None)
    if keyring is None:
        raise UpstreamError(
            "Debian's signatures cannot be verified on this machine",
            expected=f"one of {', '.join(_KEYRINGS)}",
            next_step="apt-get install debian-archive-keyring",
        )
    uris = {"debian": upstream["debian"], "debian-security": upstream["debian-security"]}
    codename, suites = machine.debian_suites()
    for archive, suite in (("debian", codename), ("debian-security", f"{codename}-security")):
        uris[archive] = suites.get(suite, uris[archive])
    return Archives(uris=uris, keyring=keyring)


class Apt:
    """apt with a separate state, for other suites and architectures than this machine's."""

    def __init__(self, folder: Path, where: Archives, suites: Iterable[str], platforms: Iterable[Platform]) -> None:
        self._archives = where
        sources = ((where.uris["debian"], suite, where.keyring) for suite in suites)
        self._configuration = apt.configure(folder, sources, platforms)

    def update(self) -> None:
        """Fetch the package lists. Raises UpstreamError."""
        _apt("apt-get", "update", "-qq", "--error-on=any", configuration=self._configuration)

    def candidates(self, name: str, platform: Platform) -> list[Candidate]:
        """Return every version of a package, newest first. Raises UpstreamError."""
        text = _apt("apt-cache", "show", f"{name}:{platform.names.debian}", configuration=self._configuration)
        return [
            Candidate(
                name=name,
                version=fields["Version"],
                platform=platform,
                path=fields["Filename"],
                digest=Digest.of_hex(fields["SHA256"]),
                libc=_least_libc(fields.get("Depends", "")),
            )
            for fields in Deb822.iter_paragraphs(text, use_apt_pkg=False)
        ]

    def download(self, candidate: Candidate, folder: Path) -> Path:
        """Download a package into a folder. Raises UpstreamError."""
        target = folder / candidate.path.rsplit("/", 1)[1]
        download(f"{self._archives.uris['debian']}/{candidate.path}", target, candidate.digest)
        return target


def download(uri: str, target: Path, digest: Digest | None = None) -> None:
    """Download a file with apt's own downloader, unless it exists. Raises UpstreamError."""
    if target.exists() and (digest is None or Digest.of_file(target) == digest):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    checked = [f"SHA256:{digest.hex}"] if digest else []
    _apt(_HELPER, "-o", "APT::Sandbox::User=root", "download-file", uri, str(partial), *checked)
    partial.replace(target)


def host_libc() -> tuple[int, ...]:
    """Return this machine's version of glibc, e.g. (2, 36); () without glibc (musl)."""
    name, version = libc_ver()
    return tuple(map(int, version.split("."))) if name == "glibc" else ()


def _least_libc(depends: str) -> tuple[int, ...]:
    match = re.search(r"libc6 \(>= ([\d.]+)\)", depends)
    return tuple(map(int, match[1].split("."))) if match else ()


def newest_fitting(
    apt: Apt, names: tuple[str, ...], platforms: Iterable[Platform], libc: tuple[int, ...], log: Log
) -> list[Candidate]:
    """Return candidates of each name and platform: the newest version that all have and this machine's glibc can run.

    `names`: packages of one source (docker.io, docker-cli), whose versions must match. Raises UpstreamError.
    """
    available = [
        {candidate.source_version: candidate for candidate in apt.candidates(name, platform)}
        for name in names
        for platform in platforms
    ]
    refused: list[str] = []
    for version in available[0]:
        if not all(version in versions for versions in available):
            continue
        chosen = [versions[version] for versions in available]
        if max(candidate.libc for candidate in chosen) <= libc:
            why = f" (not {', '.join(refused)}: glibc too new for this machine)" if refused else ""
            log.say(f"{', '.join(names)}: {version}{why}")
            return chosen
        refused.append(version)
    raise UpstreamError(
        f"no version of {', '.join(names)} can run on this machine",
        expected=f"a version for at most glibc {'.'.join(map(str, libc))}",
        found=", ".join(refused) or "no version for all platforms",
        next_step="use a newer Debian or Ubuntu release",
    )


def _apt(*command: str, configuration: Path | None = None) -> str:
    done = apt.run(configuration, *command)
    if done.returncode != 0:
        if full := disk_full(done.stderr, configuration or Path(command[-1])):
            raise full
        raise UpstreamError(
            f"{' '.join(command[:3])} … failed",
            found="; ".join(done.stderr.strip().splitlines()[-4:]),
            next_step="check that this machine's package mirror answers: apt-get update",
        )
    return done.stdout
