"""The packages of one platform's image and their relations: the content of an SBOM, independent of its format.

Sources by priority: the image's files (dpkg's database, the programs), the lock (the origin of files), and the
suppliers in components.py. Nothing is guessed: what no source states is left out.
purl: https://github.com/package-url/purl-spec (types deb, golang, github, oci, generic).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePosixPath

from debian.deb822 import Packages
from packageurl import PackageURL

from pipeline.components import AIRGAP_FOLDER, COMPONENTS, DOCKER, PROGRAMS
from pipeline.core.errors import DigestMismatch
from pipeline.core.names import Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import Image, Variant
from pipeline.inputs.lock import Artifact, Lock
from pipeline.sbom import licences, rootfs
from pipeline.sbom.rootfs import Program, Root

_APACHE = "Apache-2.0"


class Kind(StrEnum):
    """The kind of a package."""

    IMAGE = "image"
    BASE = "base image"
    APPLICATION = "application"
    LIBRARY = "library"  # a Go module in a program
    SYSTEM = "system package"
    INNER = "image in an archive"


@dataclass(frozen=True, kw_only=True)
class Package:
    """One thing in the image."""

    key: str  # unique in the inventory, and reproducible
    kind: Kind
    name: str
    version: str | None
    purl: str | None = None
    licence: str | None = None  # SPDX expression; None: not known
    url: str | None = None  # of the download
    sha256: str | None = None  # hexadecimal, of the file at `url`, else of the file in the image
    path: str | None = None  # in the image
    supplier: str | None = None
    source: str | None = None  # Debian's source package and its version
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """One platform's image."""

    platform: Platform
    created: str  # RFC 3339
    namespace: str  # a URL of this image alone
    root: Package
    base: Package
    packages: tuple[Package, ...]  # all, root and base too, sorted by key
    contains: tuple[tuple[str, str], ...]  # keys: container, content
    uses: tuple[tuple[str, str], ...]  # keys: program, library
    texts: Mapping[str, str]  # LicenseRef-… → text of the licence


_PROGRAMS = {program.name: program for program in PROGRAMS.values()}
_OF_DOCKER_RELEASE = ("dockerd", "docker-cli", "docker-proxy")  # the archive's other programs have their own versions


def take(platform: Platform, image: Image, lock: Lock, root: Root) -> Inventory:
    """Return the inventory of one platform. Raises DigestMismatch if a program is not the locked file."""
    builder = _Builder(platform, image, lock, root)
    builder.components()
    builder.system_images()
    builder.debian()
    return builder.done()


class _Builder:
    def __init__(self, platform: Platform, image: Image, lock: Lock, root: Root) -> None:
        self._platform, self._image, self._lock, self._files = platform, image, lock, root
        self._packages: dict[str, Package] = {}
        self._contains: list[tuple[str, str]] = []
        self._uses: set[tuple[str, str]] = set()
        self._texts: dict[str, str] = {}
        stated = image.annotations
        manifest = image.platforms[platform].digest
        title = stated.get("org.opencontainers.image.title", "image")
        self._root = self._add(
            Package(
                key="image",
                kind=Kind.IMAGE,
                name=title,
                version=stated.get("org.opencontainers.image.version") or manifest.text,
                purl=_purl("oci", title, manifest.text, arch=platform.architecture),
                licence=stated.get("org.opencontainers.image.licenses"),
                sha256=manifest.hex,
                note=f"the digest is the manifest's of {platform}, in the index {image.digest}",
            )
        )
        name, tag, _ = ImageName.parse(lock.base.image)
        digest = lock.base.digest
        last = name.repository.rpartition("/")[2]
        self._base = self._add(
            Package(
                key="base",
                kind=Kind.BASE,
                name=name.repository,
                version=digest.text,
                purl=_purl("oci", last, digest.text, repository_url=str(name), tag=tag or ""),
                sha256=digest.hex,
                note=f"{lock.base.image}; the digest is its index's",
            )
        )

    def _add(self, package: Package, inside: Package | None = None) -> Package:
        """Add a package, and its container `inside`."""
        self._packages[package.key] = package
        if inside is not None:
            self._contains.append((inside.key, package.key))
        return package

    def components(self) -> None:
        """Add the locked components, their programs, and the libraries of those."""
        for file in sorted(self._lock.artifacts, key=lambda file: file.component):
            if file.platform == self._platform:
                component = COMPONENTS[file.component]
                if component.is_one_file:
                    self._single(file, component.programs[0].path)
                else:
                    self._archive(file)

    def system_images(self) -> None:
        """Add k3s's archive of system images in the variant airgap, which must be the locked one, and its images."""
        for file in self._lock.airgap:
            if file.platform != self._platform or self._image.variant is not Variant.AIRGAP:
                continue
            path = f"{AIRGAP_FOLDER}/{PurePosixPath(file.path).name}"
            archive = self._files.archive(path)
            self._require_locked(file, path, archive.digest if archive else None)
            purl = _purl("generic", file.component, file.version, download_url=file.url)
            package = self._add(replace(_component(file, path), purl=purl, supplier="k3s"), self._root)
            for name in archive.names if archive else ():
                repository, _, tag = name.rpartition(":")
                self._add(
                    Package(
                        key=f"{package.key}/{name}",
                        kind=Kind.INNER,
                        name=repository,
                        version=tag,
                        purl=_purl("docker", repository.removeprefix("docker.io/"), tag),
                    ),
                    package,
                )

    def _require_locked(self, file: Artifact, path: str, digest: Digest | None) -> None:
        if digest != file.digest:
            raise DigestMismatch(
                f"{file.component} in the image is not the file that the lock names",
                expected=file.digest.text,
                found=digest.text if digest else "no such file",
                where=f"/{path} for {self._platform}",
                next_step="nox -s build, then smoke",
            )

    def _single(self, file: Artifact, path: str) -> None:
        """Add a component that is one file, which must be the locked one."""
        program = self._program(path, file.component)
        self._require_locked(file, path, program.digest)
        package = self._add(_component(file, path), self._root)
        self._libraries(package, program)
        for name, inner in sorted(program.inside.items()):
            label = name.rpartition("/")[2]
            if label == file.component:
                # The outer program only unpacks this one, whose libraries are the component's.
                self._libraries(package, inner)
            else:
                child = _program(f"{package.key}/{label}", label, inner.version, inner, f"{path}!{name}")
                self._libraries(self._add(child, package), inner)

    def _archive(self, file: Artifact) -> None:
        """Add docker: an archive whose programs are separate files in the image."""
        package = self._add(_component(file, None), self._root)
        stated = self._lock.embedded.get(file.component, {})
        for entry in DOCKER.programs:
            program = self._program(entry.path, entry.name)
            of_release = file.version if entry.name in _OF_DOCKER_RELEASE else None
            version = program.version or stated.get(entry.name) or of_release
            child = _program(f"{package.key}/{entry.name}", entry.name, version, program, entry.path)
            self._libraries(self._add(child, package), program)

    def _program(self, path: str, name: str) -> Program:
        program = self._files.program(path)
        if program is None:
            raise DigestMismatch(
                f"{name} is missing from the image",
                expected=f"/{path} for {self._platform}",
                next_step="nox -s build, then smoke",
            )
        return program

    def _libraries(self, user: Package, program: Program) -> None:
        """Add Go and every module of a program's build information."""
        if program.build is None:
            return
        go = program.build.go.removeprefix("go").partition(" ")[0]
        modules = {"stdlib": go} if re.match(r"\d", go) else {}
        for module, version in program.build.dependencies.items():
            modules[program.build.replaced.get(module, module)] = version
        for module, version in modules.items():
            library = Package(
                key=f"go/{module}@{version}",
                kind=Kind.LIBRARY,
                name=module,
                version=version,
                purl=_purl("golang", module, version),
                licence="BSD-3-Clause" if module == "stdlib" else None,
            )
            self._uses.add((user.key, self._add(library).key))

    def debian(self) -> None:
        """Add every installed package of dpkg's database, also those of the base image."""
        status = self._files.text(rootfs.STATUS)
        if status is None:
            raise DigestMismatch(f"the image of {self._platform} has no {rootfs.STATUS}", next_step="nox -s build")
        locked = {file.component: file for file in self._lock.packages if file.platform == self._platform}
        distro = self._distro()
        for stanza in Packages.iter_paragraphs(status, use_apt_pkg=False):
            if stanza.get("Status", "").endswith(" installed"):
                file = locked.get(stanza["Package"])
                self._add(self._of_debian(stanza, file, distro), self._root if file else self._base)

    def _of_debian(self, stanza: Mapping[str, str], file: Artifact | None, distro: str) -> Package:
        """Return an installed package; `file`: its locked file, None for one of the base image."""
        name, version, architecture = stanza["Package"], stanza["Version"], stanza["Architecture"]
        licence = licences.read(name, self._files.text(f"usr/share/doc/{name}/copyright") or "")
        if licence is not None:
            self._texts.update(licence.texts)
        # The source package, with its version in brackets where it differs.
        match = re.fullmatch(r"(\S+)(?: \((\S+)\))?", stanza.get("Source", "").strip() or name)
        assert match is not None
        source, own = match.groups()
        upstream = f"{source}@{own}" if own else source
        return Package(
            key=f"debian/{name}:{architecture}",
            kind=Kind.SYSTEM,
            name=name,
            version=version,
            purl=_purl("deb", f"debian/{name}", version, arch=architecture, distro=distro, upstream=upstream),
            licence=licence.expression if licence else None,
            url=file.url if file else None,
            sha256=file.digest.hex if file else None,
            supplier=stanza.get("Maintainer"),
            source=f"{source} {own or version}",
        )

    def _distro(self) -> str:
        text = self._files.text("usr/lib/os-release") or self._files.text("etc/os-release") or ""
        fields = {key: value.strip('"') for key, _, value in (line.partition("=") for line in text.splitlines())}
        return f"{fields['ID']}-{fields['VERSION_ID']}" if {"ID", "VERSION_ID"} <= fields.keys() else ""

    def done(self) -> Inventory:
        stated = self._image.annotations
        site = stated.get("org.opencontainers.image.source", "https://example.invalid")
        manifest = self._image.platforms[self._platform].digest
        return Inventory(
            platform=self._platform,
            created=stated.get("org.opencontainers.image.created") or f"{self._lock.date}T00:00:00Z",
            namespace=f"{site}/sbom/{self._platform.architecture}/{manifest.hex}",
            root=self._root,
            base=self._base,
            packages=tuple(self._packages[key] for key in sorted(self._packages)),
            contains=tuple(sorted(set(self._contains))),
            uses=tuple(sorted(self._uses)),
            texts=dict(sorted(self._texts.items())),
        )


def _component(file: Artifact, path: str | None) -> Package:
    """Return the package of a component's locked file; `path`: in the image, None for an archive."""
    purl = _supplier_purl(file.component, file.version)
    known = _PROGRAMS.get(file.component)
    if known is None:  # docker's archive
        purl = _purl("generic", f"docker/{file.component}", file.version, download_url=file.url)
    return Package(
        key=f"component/{file.component}",
        kind=Kind.APPLICATION,
        name=file.component,
        version=file.version,
        purl=purl,
        licence=known.licence if known else _APACHE,
        url=file.url,
        sha256=file.digest.hex,
        path=path,
        supplier=known.supplier if known else "Docker",
        note=f"its digest is believed because it is {file.grade}",
    )


def _program(key: str, name: str, version: str | None, program: Program, path: str) -> Package:
    """Return the package of a component's program."""
    known = _PROGRAMS.get(name)
    return Package(
        key=key,
        kind=Kind.APPLICATION,
        name=name,
        version=version,
        purl=_supplier_purl(name, version),
        licence=known.licence if known else None,
        sha256=program.digest.hex,
        path=path,
        supplier=known.supplier if known else None,
    )


def _supplier_purl(name: str, version: str | None) -> str | None:
    """Return a program's purl as components.py defines it; None if it is not there."""
    known = _PROGRAMS.get(name)
    if known is None or version is None:
        return None
    number = re.match(r"v?(\d+)", version)
    major = int(number[1]) if number else 0
    kind, _, rest = known.purl.format(major=f"/v{major}" if major > 1 else "").partition("/")
    return _purl(kind, rest, known.tag + version.removeprefix("v"))


def _purl(kind: str, path: str, version: str, **qualifiers: str) -> str:
    """Return a purl; `path`: namespace/name."""
    namespace, _, name = path.rpartition("/")
    present = {key: value for key, value in qualifiers.items() if value}
    return PackageURL(kind, namespace or None, name, version, present or None).to_string()
