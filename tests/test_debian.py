"""Debian packages by the real apt, from a small repository made here, for a foreign architecture."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import debian
from pipeline.errors import IntentError, UpstreamError
from pipeline.lock import Evidence
from pipeline.oci import Digest
from pipeline.platforms import Platform
from tests.examples import INTENT

PACKAGES = {
    "tool": "Depends: libtool-data (>= 2), base-files\n",
    "libtool-data": "",
    "unrelated": "",
}
STATUS = """Package: base-files
Status: install ok installed
Architecture: arm64
Version: 13
Maintainer: nobody
Description: in the base image
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unsigned repository; apt is told to trust it, which the pipeline itself never does."""
    root = tmp_path / "debian"
    binary = root / "dists/trixie/main/binary-arm64"
    binary.mkdir(parents=True)
    stanzas = []
    for name, more in PACKAGES.items():
        path = f"pool/main/{name[0]}/{name}/{name}_2.1-1_arm64.deb"
        data = name.encode()
        stanzas.append(
            f"Package: {name}\nVersion: 2.1-1\nArchitecture: arm64\nMaintainer: nobody\n{more}Filename: {path}\n"
            f"Size: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\nDescription: x\n"
        )
    index = "\n".join(stanzas).encode()
    (binary / "Packages").write_bytes(index)
    (root / "dists/trixie/Release").write_text(
        "Suite: trixie\nCodename: trixie\nArchitectures: arm64\nComponents: main\n"
        f"SHA256:\n {hashlib.sha256(index).hexdigest()} {len(index)} main/binary-arm64/Packages\n"
    )
    configure = debian._configure

    def trusting(*arguments: object) -> Path:
        path = configure(*arguments)  # type: ignore[arg-type]
        sources = path.with_name("sources.list")
        sources.write_text(f"deb [trusted=yes] file://{root} trixie main\n")
        return path

    monkeypatch.setattr(debian, "_configure", trusting)
    return root


BASE = debian.BaseSystem(status=STATUS.encode(), keyrings={"debian-archive-keyring.gpg": b""})


def solve(repository: Path, tmp_path: Path, *packages: str) -> list[str]:
    intent = replace(INTENT, packages=packages, upstream={"debian": "https://deb.debian.org/debian"})
    solved = debian.solve(intent, Platform.ARM64, BASE, tmp_path / "apt", {"debian": f"file://{repository}"})
    for package in solved:
        assert package.digest == Digest.of(package.component.encode())
        assert package.size == len(package.component)
        assert package.url == f"https://deb.debian.org/debian/{package.path}"
        assert (package.evidence, package.origin) == (Evidence.SIGNED, "debian")
    return [f"{package.component}={package.version}" for package in solved]


def test_what_a_package_depends_on_is_added_and_what_the_base_has_is_not(repository: Path, tmp_path: Path) -> None:
    assert solve(repository, tmp_path, "tool") == ["libtool-data=2.1-1", "tool=2.1-1"]


def test_an_unknown_package_is_a_mistake_in_the_intent(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(IntentError, match="no package iptabels"):
        solve(repository, tmp_path, "tool", "iptabels")


def test_an_archive_that_is_not_there(repository: Path, tmp_path: Path) -> None:
    (repository / "dists/trixie/main/binary-arm64/Packages").unlink()
    with pytest.raises(UpstreamError, match="apt-get update"):
        solve(repository, tmp_path, "tool")


def layer(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return raw.getvalue()


def test_the_base_system_is_read_out_of_layers() -> None:
    first = {"./var/lib/dpkg/status": b"old", "./usr/share/keyrings/debian-archive-keyring.pgp": b"key"}
    system = debian.read_layers([layer(first), layer({"var/lib/dpkg/status": b"new"})])
    assert (system.status, dict(system.keyrings)) == (b"new", {"debian-archive-keyring.pgp": b"key"})


@pytest.mark.parametrize("layers", [[layer({"etc/alpine-release": b"3"})], [b"no tar at all" * 100]])
def test_a_base_that_is_no_debian_is_refused(layers: list[bytes]) -> None:
    with pytest.raises(UpstreamError, match=r"Debian|cannot be read"):
        debian.read_layers(layers)
