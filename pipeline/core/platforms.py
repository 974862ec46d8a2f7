"""Platforms the OCI way, and what each vendor calls them.

Source of the spellings: the file names of docker's static archives, k3s's, buildx's and compose's releases, and
dl.k8s.io; QEMU's and Debian's own architecture names.
"""

from __future__ import annotations

import platform as _host
from dataclasses import dataclass
from enum import StrEnum


class Platform(StrEnum):
    """A platform that the image is made for, written as OCI writes it."""

    AMD64 = "linux/amd64"
    ARM64 = "linux/arm64"

    @property
    def architecture(self) -> str:
        """OCI's and Debian's name of the architecture, e.g. `arm64`."""
        return self.value.partition("/")[2]

    @property
    def names(self) -> Spellings:
        """What the vendors call this platform."""
        return SPELLINGS[self]

    @classmethod
    def host(cls) -> Platform | None:
        """The platform whose binaries this machine runs natively; None when it is none of ours."""
        return {"x86_64": cls.AMD64, "amd64": cls.AMD64, "aarch64": cls.ARM64, "arm64": cls.ARM64}.get(
            _host.machine().lower()
        )


@dataclass(frozen=True, kw_only=True)
class Spellings:
    """One platform in the words of each vendor."""

    docker: str  # directory of download.docker.com/linux/static/stable/
    k3s: str  # suffix of the k3s binary
    k3s_checksums: str  # suffix of sha256sum-<…>.txt
    kubectl: str  # directory of dl.k8s.io/release/<v>/bin/linux/
    buildx: str  # suffix of buildx-v<v>.linux-<…>
    compose: str  # suffix of docker-compose-linux-<…>
    debian: str
    qemu: str  # suffix of qemu-<…>(-static) and qemu-system-<…>
    elf_machine: int  # e_machine of the ELF header
    wheel: str  # suffix of manylinux platform tags


SPELLINGS = {
    Platform.AMD64: Spellings(
        docker="x86_64",
        k3s="",
        k3s_checksums="amd64",
        kubectl="amd64",
        buildx="amd64",
        compose="x86_64",
        debian="amd64",
        qemu="x86_64",
        elf_machine=62,
        wheel="x86_64",
    ),
    Platform.ARM64: Spellings(
        docker="aarch64",
        k3s="-arm64",
        k3s_checksums="arm64",
        kubectl="arm64",
        buildx="arm64",
        compose="aarch64",
        debian="arm64",
        qemu="aarch64",
        elf_machine=183,
        wheel="aarch64",
    ),
}
