"""Platforms as OCI writes them, and their names in Debian, QEMU, ELF and Python. Upstream projects: components.py."""

from __future__ import annotations

import platform as _host
from dataclasses import dataclass
from enum import StrEnum


class Platform(StrEnum):
    """A platform of the image, as OCI writes it."""

    AMD64 = "linux/amd64"
    ARM64 = "linux/arm64"

    @property
    def architecture(self) -> str:
        """OCI's and Debian's name of the architecture, e.g. `arm64`."""
        return self.value.partition("/")[2]

    @property
    def names(self) -> Spellings:
        """Its names outside OCI."""
        return SPELLINGS[self]

    @classmethod
    def host(cls) -> Platform | None:
        """Return the platform that this machine runs natively; None if the image does not support it."""
        return cls.of_machine(_host.machine().lower())

    @classmethod
    def of_machine(cls, name: str) -> Platform | None:
        """Return the platform of an architecture in the spelling of `uname -m` or OCI; None if it is not supported."""
        return next((one for one in cls if name in (one.names.qemu, one.architecture)), None)


@dataclass(frozen=True, kw_only=True)
class Spellings:
    """Names of one platform outside OCI."""

    debian: str
    qemu: str  # suffix of qemu-<…>(-static) and qemu-system-<…>, and what `uname -m` prints
    elf_machine: int  # e_machine of the ELF header
    wheel: str  # suffix of manylinux platform tags


SPELLINGS = {
    Platform.AMD64: Spellings(debian="amd64", qemu="x86_64", elf_machine=62, wheel="x86_64"),
    Platform.ARM64: Spellings(debian="arm64", qemu="aarch64", elf_machine=183, wheel="aarch64"),
}
