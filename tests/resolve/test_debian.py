"""Debian packages by the real apt, from a small repository, for another architecture."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.errors import IntentError, UpstreamError
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.inputs.evidence import Grade
from pipeline.inputs.lock import Artifact
from pipeline.inputs.versions import Intent
from pipeline.resolve import debian
from tests.helpers.binaries import tarred
from tests.helpers.examples import INTENT

# Suite → packages, each as name=version and what else its stanza says.
SUITES = {
    "trixie": {
        "tool=2.1-1": "Depends: libtool-data (>= 2), base-files\n",
        "libtool-data=2.1-1": "",
        "unrelated=2.1-1": "",
        "libtool++=2.1+deb13u1-1": "",
        "busybox-static=1.37-6+b9": "",
        # The metapackage like Debian's, and a kernel whose dependencies are not in the archive.
        "linux-image-cloud-arm64=6.12.99-1": "Depends: linux-image-6.12.99+deb13-cloud-arm64 (= 6.12.99-1)\n",
        "linux-image-6.12.99+deb13-cloud-arm64=6.12.99-1": "Depends: kmod, initramfs-tools (>= 0.1) | dracut\n",
    },
    "trixie-updates": {
        "linux-image-cloud-arm64=6.12.118-1": "Depends: linux-image-6.12.118+deb13-cloud-arm64 (= 6.12.118-1)\n",
        "linux-image-6.12.118+deb13-cloud-arm64=6.12.118-1": "Depends: kmod, initramfs-tools (>= 0.1) | dracut\n",
    },
    "bookworm": {
        "busybox-static=1.35-4": "",
        "linux-image-cloud-arm64=6.1.176-1": "Depends: linux-image-6.1.0-50-cloud-arm64 (= 6.1.176-1)\n",
        "linux-image-6.1.0-50-cloud-arm64=6.1.176-1": "Depends: kmod, initramfs-tools (>= 0.1) | dracut\n",
    },
}
STATUS = """Package: base-files
Status: install ok installed
Architecture: arm64
Version: 13
Maintainer: nobody
Description: in the base image
"""


class Trusting(debian.Solver):
    """apt that trusts an unsigned repository, unlike in the pipeline."""

    def configure(self, suites: Mapping[str, tuple[str, ...]], folder: Path) -> Path:
        path = super().configure(suites, folder)
        sources = path.with_name("sources.list")
        sources.write_text(re.sub(r"signed-by=\S*\]", "trusted=yes]", sources.read_text()))
        return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An unsigned repository."""
    root = tmp_path / "debian"
    for suite, packages in SUITES.items():
        publish(root, suite, packages)
    return root


def publish(root: Path, suite: str, packages: Mapping[str, str]) -> None:
    """Write a suite's indexes; the content of a package is its name."""
    stanzas = []
    for package, more in packages.items():
        name, _, version = package.partition("=")
        path = f"pool/main/{name[0]}/{name}/{name}_{version}_arm64.deb"
        data = name.encode()
        stanzas.append(
            f"Package: {name}\nVersion: {version}\nArchitecture: arm64\nMaintainer: nobody\n{more}Filename: {path}\n"
            f"Size: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\nDescription: x\n"
        )
    index = "\n".join(stanzas).encode()
    binary = root / "dists" / suite / "main/binary-arm64"
    binary.mkdir(parents=True, exist_ok=True)
    (binary / "Packages").write_bytes(index)
    (root / "dists" / suite / "Release").write_text(
        f"Suite: {suite}\nCodename: {suite}\nArchitectures: arm64\nComponents: main\n"
        f"SHA256:\n {hashlib.sha256(index).hexdigest()} {len(index)} main/binary-arm64/Packages\n"
        # Like Debian's; the files do not exist.
        f" {'0' * 64} 5 main/dep11/Components-arm64.yml\n"
    )


BASE = debian.BaseSystem(status=STATUS.encode(), keyrings={"debian-archive-keyring.gpg": b""})


def solve(repository: Path, tmp_path: Path, *packages: str) -> list[str]:
    return described(solver(repository, tmp_path, asked(*packages)).packages())


def guest(repository: Path, tmp_path: Path, *suites: str) -> list[str]:
    return described(solver(repository, tmp_path, asked(suites=suites)).guest())


def solver(repository: Path, tmp_path: Path, intent: Intent) -> debian.Solver:
    upstream = {"debian": f"file://{repository}"}
    return Trusting(intent=intent, platform=Platform.ARM64, base=BASE, folder=tmp_path / "apt", upstream=upstream)


def asked(*packages: str, suites: tuple[str, ...] = ("trixie",)) -> Intent:
    upstream = {"debian": "https://deb.debian.org/debian"}
    return replace(INTENT, packages=packages, suites={"debian": suites}, upstream=upstream)


def described(solved: tuple[Artifact, ...]) -> list[str]:
    for package in solved:
        assert package.digest == Digest.of(package.component.encode())
        assert package.size == len(package.component)
        assert package.url == f"https://deb.debian.org/debian/{package.path}"
        assert (package.grade, package.origin) == (Grade.SIGNED, "debian")
    return [f"{package.component}={package.version}" for package in solved]


def test_dependencies_are_added_except_those_of_the_base(repository: Path, tmp_path: Path) -> None:
    assert solve(repository, tmp_path, "tool") == ["libtool-data=2.1-1", "tool=2.1-1"]


def test_names_and_versions_are_debians(repository: Path, tmp_path: Path) -> None:
    assert solve(repository, tmp_path, "libtool++") == ["libtool++=2.1+deb13u1-1"]


def test_the_guest_is_busybox_and_two_kernels_without_dependencies(repository: Path, tmp_path: Path) -> None:
    files = guest(repository, tmp_path, "trixie", "trixie-updates")
    assert files == [
        "busybox-static=1.37-6+b9",
        "linux-image-6.1.0-50-cloud-arm64=6.1.176-1",
        "linux-image-6.12.118+deb13-cloud-arm64=6.12.118-1",
    ]
    # Packages of the image and of the guest, chosen in one folder, do not depend on each other.
    assert solve(repository, tmp_path, "busybox-static") == files[:1]
    assert guest(repository, tmp_path, "trixie", "trixie-updates") == files


def test_the_guest_of_an_older_image_has_one_kernel(repository: Path, tmp_path: Path) -> None:
    assert guest(repository, tmp_path, "bookworm") == [
        "busybox-static=1.35-4",
        "linux-image-6.1.0-50-cloud-arm64=6.1.176-1",
    ]


def test_suites_are_those_of_the_intent_and_the_one_for_cgroup_v1() -> None:
    intent = replace(INTENT, suites={"debian": ("trixie",), "debian-security": ("trixie-security",)})
    assert debian.suites(intent) == {"debian": ("trixie", "bookworm"), "debian-security": ("trixie-security",)}
    assert debian.suites(asked(suites=("bookworm",))) == {"debian": ("bookworm",)}


@pytest.mark.parametrize("lacks", ["linux-image-cloud-arm64", "linux-image-6.1.0-50-cloud-arm64"])
def test_a_suite_without_the_kernel_is_an_upstream_error(repository: Path, tmp_path: Path, lacks: str) -> None:
    rest = {package: more for package, more in SUITES["bookworm"].items() if not package.startswith(f"{lacks}=")}
    publish(repository, "bookworm", rest)
    with pytest.raises(UpstreamError, match=f"the archive has no package {re.escape(lacks)}\n"):
        guest(repository, tmp_path, "trixie")


def test_a_metapackage_without_a_kernel_is_reported(repository: Path, tmp_path: Path) -> None:
    publish(repository, "bookworm", {"linux-image-cloud-arm64=6.1-1": "Depends: linux-image-arm64 | kmod\n"})
    with pytest.raises(UpstreamError, match=r"(?s)does not depend on a kernel.*linux-image-arm64 \| kmod"):
        guest(repository, tmp_path, "trixie")


def test_an_unknown_package_is_an_intent_error(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(IntentError, match="no package iptabels"):
        solve(repository, tmp_path, "tool", "iptabels")


def test_a_missing_archive(repository: Path, tmp_path: Path) -> None:
    (repository / "dists/trixie/main/binary-arm64/Packages").unlink()
    with pytest.raises(UpstreamError, match="apt-get update"):
        solve(repository, tmp_path, "tool")


def stored(folder: Path, *layers: bytes) -> list[Path]:
    """Write layers like the cache: named by their digests."""
    paths = [folder / Digest.of(layer).hex for layer in layers]
    for path, layer in zip(paths, layers, strict=True):
        path.write_bytes(layer)
    return paths


def test_the_base_system_is_read_from_layers(tmp_path: Path) -> None:
    first = {
        "./var/lib/dpkg/status": b"old",
        "./usr/share/keyrings/debian-archive-keyring.pgp": b"key",
        "./usr/share/keyrings/removed.gpg": b"old key",
    }
    second = {"var/lib/dpkg/status": b"new", "usr/share/keyrings/.wh.removed.gpg": b""}
    system = debian.read_layers(stored(tmp_path, tarred(first), tarred(second)))
    assert (system.status, dict(system.keyrings)) == (b"new", {"debian-archive-keyring.pgp": b"key"})


@pytest.mark.parametrize("layer", [tarred({"etc/alpine-release": b"3"}), b"no tar at all" * 100])
def test_a_base_that_is_not_debian_is_refused(tmp_path: Path, layer: bytes) -> None:
    with pytest.raises(UpstreamError, match=r"Debian|cannot be read"):
        debian.read_layers(stored(tmp_path, layer))
