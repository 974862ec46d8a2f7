"""Takes the inventory of one platform's image: its packages and their relations.

Sources by priority: the image's files (dpkg's database, the programs), the lock (the origin of files), and the
suppliers in components.py. Nothing is guessed: what no source states is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from debian.deb822 import Packages

from pipeline.components import AIRGAP_FOLDER, COMPONENTS, DOCKER
from pipeline.core.errors import DigestMismatch
from pipeline.core.names import ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import Image, Variant
from pipeline.inputs.lock import Artifact, Lock
from pipeline.oci.layers import FileSystem
from pipeline.sbom import licences, rootfs
from pipeline.sbom.packages import Inventory, Kind, Package, of_component, of_program, purl
from pipeline.sbom.rootfs import Archive, FileContent, Program

_OF_DOCKER_RELEASE = ("dockerd", "docker-cli", "docker-proxy")  # the archive's other programs have their own versions


def take(platform: Platform, image: Image, lock: Lock, root: FileSystem[FileContent]) -> Inventory:
    """Return the inventory of one platform. Raises DigestMismatch if a program is not the locked file."""
    builder = _Builder(platform, image, lock, root)
    builder.components()
    builder.system_images()
    builder.debian()
    return builder.done()


class _Builder:
    def __init__(self, platform: Platform, image: Image, lock: Lock, root: FileSystem[FileContent]) -> None:
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
                purl=purl("oci", title, manifest.text, arch=platform.architecture),
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
                purl=purl("oci", last, digest.text, repository_url=str(name), tag=tag or ""),
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
            archive = self._files.content(path)
            names = archive.names if isinstance(archive, Archive) else ()
            self._require_locked(file, path, archive)
            supplied = purl("generic", file.component, file.version, download_url=file.url)
            package = self._add(replace(of_component(file, path), purl=supplied, supplier="k3s"), self._root)
            for name in names:
                repository, _, tag = name.rpartition(":")
                self._add(
                    Package(
                        key=f"{package.key}/{name}",
                        kind=Kind.INNER,
                        name=repository,
                        version=tag,
                        purl=purl("docker", repository.removeprefix("docker.io/"), tag),
                    ),
                    package,
                )

    def _require_locked(self, file: Artifact, path: str, content: FileContent) -> None:
        digest = content.digest if isinstance(content, Archive | Program) else None
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
        self._require_locked(file, path, program)
        package = self._add(of_component(file, path), self._root)
        self._libraries(package, program)
        for name, inner in sorted(program.inside.items()):
            label = name.rpartition("/")[2]
            if label == file.component:
                # The outer program only unpacks this one, whose libraries are the component's.
                self._libraries(package, inner)
            else:
                child = of_program(f"{package.key}/{label}", label, inner.version, inner.digest, f"{path}!{name}")
                self._libraries(self._add(child, package), inner)

    def _archive(self, file: Artifact) -> None:
        """Add docker: an archive whose programs are separate files in the image."""
        package = self._add(of_component(file, None), self._root)
        stated = self._lock.embedded.get(file.component, {})
        for entry in DOCKER.programs:
            program = self._program(entry.path, entry.name)
            of_release = file.version if entry.name in _OF_DOCKER_RELEASE else None
            version = program.version or stated.get(entry.name) or of_release
            child = of_program(f"{package.key}/{entry.name}", entry.name, version, program.digest, entry.path)
            self._libraries(self._add(child, package), program)

    def _program(self, path: str, name: str) -> Program:
        program = self._files.content(path)
        if not isinstance(program, Program):
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
                purl=purl("golang", module, version),
                licence="BSD-3-Clause" if module == "stdlib" else None,
            )
            self._uses.add((user.key, self._add(library).key))

    def debian(self) -> None:
        """Add every installed package of dpkg's database, also those of the base image."""
        status = rootfs.text(self._files, rootfs.STATUS)
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
        licence = licences.read(name, rootfs.text(self._files, f"usr/share/doc/{name}/copyright") or "")
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
            purl=purl("deb", f"debian/{name}", version, arch=architecture, distro=distro, upstream=upstream),
            licence=licence.expression if licence else None,
            url=file.url if file else None,
            sha256=file.digest.hex if file else None,
            supplier=stanza.get("Maintainer"),
            source=f"{source} {own or version}",
        )

    def _distro(self) -> str:
        text = rootfs.text(self._files, "usr/lib/os-release") or rootfs.text(self._files, "etc/os-release") or ""
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
