"""Everything that the project knows of docker, buildx, compose, k3s and kubectl: one record for each.

A component is a record here, a stage in the Dockerfile, and a version in versions.yaml (docs/maintaining.md).

Sources: each project's own layout as of 2026. k3s: install.sh of k3s-io/k3s. kubectl: kubernetes.io, "Install kubectl"
and "Verify Signed Kubernetes Artifacts". buildx and compose: the release workflows of docker/buildx and docker/compose.
docker: docker-library/docker, and for its tags moby/moby#51192 (`docker-v29.0.0` and later; `v28.5.2` and earlier).
Licences: each repository's LICENSE file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import quote

from pipeline.core.platforms import Platform

AIRGAP = "k3s-airgap-images"  # k3s's own name for the archive of its system images, a file of each of its releases
AIRGAP_FOLDER = "usr/share/dind-k3s/images"  # where it is in the image, and run-preload looks (rootfs/)

# Numbers of a sane length: what a server sends is not trusted to be one.
NUMBER = r"[0-9]{1,9}"
RELEASE = rf"{NUMBER}\.{NUMBER}\.{NUMBER}"
_LINE = rf"stable|latest|{NUMBER}|{NUMBER}\.{NUMBER}"
_APACHE = "Apache-2.0"
_PLUGINS = "usr/local/libexec/docker/cli-plugins"


def _architectures(amd64: str, arm64: str) -> Mapping[Platform, str]:
    return {Platform.AMD64: amd64, Platform.ARM64: arm64}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One file of a release and the file that lists its checksum; paths are below the origin's base URL."""

    origin: str  # a key of versions.ORIGINS
    path: str
    checksums: str | None  # None: upstream publishes none
    name: str  # as the checksum file calls it; empty: the file holds the bare digest
    signature: str | None = None  # a Sigstore bundle, or the path that `.sig` and `.cert` are appended to


@dataclass(frozen=True, kw_only=True)
class File:
    """Where upstream publishes a file. Texts are filled with {version}, {tag} (quoted) and {arch}."""

    origin: str
    folder: str  # empty: at the top of its server
    name: str
    architectures: Mapping[Platform, str]
    checksums: str | None = None  # in the folder
    listed: bool = True  # the checksum file lists names; False: it holds the bare digest
    signature: str = ""  # in the folder

    def of(self, version: str, tag: str, platform: Platform) -> Published:
        """Return the file of one release and platform."""
        arch = self.architectures[platform]

        def filled(text: str) -> str:
            # k3s's file for amd64 has no suffix, its checksum file has one.
            return text.format(version=version, tag=quote(tag), arch=arch, plain=arch.lstrip("-") or "amd64")

        def path(name: str) -> str:
            return "/".join(filter(None, (filled(self.folder), filled(name))))

        name = filled(self.name)
        return Published(
            origin=self.origin,
            path=path(name),
            checksums=path(self.checksums) if self.checksums else None,
            name=name if self.checksums and self.listed else "",
            signature=path(self.signature) if self.signature else None,
        )


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program of a component in the image."""

    name: str  # in SBOMs
    path: str  # in the image, without the leading slash
    purl: str  # type/namespace/name; {major} is the module's major version suffix
    supplier: str
    licence: str = _APACHE
    tag: str = "v"  # what its maker's tags begin with
    own_version: bool = True  # it states the component's version; False: another one
    command: tuple[str, ...] = ()  # prints its version


@dataclass(frozen=True, kw_only=True)
class Component:
    """One program, or one archive of programs, from one upstream."""

    name: str
    exact: str  # regular expression of a version
    channels: str  # what else versions.yaml may ask for; `resolve` looks it up
    repository: str  # on GitHub: releases are tagged there
    tag: str = "v{}"  # of a release, around its version
    tagged: str = rf"v({RELEASE})"  # regular expression of such a tag; its group is the version
    chosen_by: Literal["tags", "docker", "k3s", "kubectl"] = "tags"  # how a channel becomes a version (channels.py)
    file: File
    signed: Literal["", "bundle", "certificate"] = ""  # how upstream signs the file
    in_context: str = ""  # the file's name in the build context; empty: the component's
    programs: tuple[Program, ...]
    members: Mapping[str, str | None] = field(default_factory=dict)  # in its archive → name; None: build info counts
    libraries: tuple[str, ...] = ()  # Go modules worth a line in a review (embedded.py)
    licence: str = _APACHE

    @property
    def asked(self) -> str:
        """Regular expression of what versions.yaml may say."""
        return f"{self.channels}|{self.exact}"

    @property
    def context_name(self) -> str:
        """The file's name in the build context, where the Dockerfile takes it from."""
        return self.in_context or self.name

    @property
    def is_one_file(self) -> bool:
        """Whether the image holds the published file itself."""
        return not self.in_context

    def release_tag(self, version: str) -> str:
        """Return the git tag of a release."""
        return self.tag.format(version)


_CONTAINERD = Program(
    name="containerd",
    path="usr/local/bin/containerd",
    purl="golang/github.com/containerd/containerd{major}",
    supplier="containerd",
    own_version=False,
    command=("containerd", "--version"),
)
DOCKER = Component(
    name="docker",
    exact=RELEASE,
    channels=_LINE,
    repository="moby/moby",
    tagged=rf"(?:docker-)?v({RELEASE})",
    chosen_by="docker",
    file=File(
        origin="docker",
        folder="linux/static/stable/{arch}",
        name="docker-{version}.tgz",
        architectures=_architectures("x86_64", "aarch64"),
    ),
    in_context="docker.tgz",
    programs=(
        Program(
            name="dockerd",
            path="usr/local/bin/dockerd",
            purl="github/moby/moby",
            supplier="Moby",
            tag="docker-v",
            command=("dockerd", "--version"),
        ),
        Program(
            name="docker-cli",
            path="usr/local/bin/docker",
            purl="github/docker/cli",
            supplier="Docker",
            command=("docker", "--version"),
        ),
        _CONTAINERD,
        replace(_CONTAINERD, name="containerd-shim-runc-v2", path="usr/local/bin/containerd-shim-runc-v2", command=()),
        replace(_CONTAINERD, name="ctr", path="usr/local/bin/ctr", command=("ctr", "--version")),
        Program(
            name="runc",
            path="usr/local/bin/runc",
            purl="golang/github.com/opencontainers/runc",
            supplier="Open Container Initiative",
            own_version=False,
            command=("runc", "--version"),
        ),
        Program(
            name="docker-init",
            path="usr/local/bin/docker-init",
            purl="github/krallin/tini",
            supplier="tini",
            licence="MIT",
            own_version=False,
            command=("docker-init", "--version"),
        ),
        Program(
            name="docker-proxy",
            path="usr/local/bin/docker-proxy",
            purl="github/moby/moby",
            supplier="Moby",
            tag="docker-v",
            own_version=False,
        ),
    ),
    members={
        "docker/docker": "docker-cli",
        "docker/dockerd": None,
        "docker/containerd": "containerd",
        "docker/runc": "runc",
        "docker/docker-init": "docker-init",
    },
    libraries=("buildkit",),
)
BUILDX = Component(
    name="buildx",
    exact=RELEASE,
    channels=_LINE,
    repository="docker/buildx",
    file=File(
        origin="github",
        folder="docker/buildx/releases/download/{tag}",
        name="buildx-{tag}.linux-{arch}",
        architectures=_architectures("amd64", "arm64"),
        checksums="checksums.txt",
        signature="buildx-{tag}.linux-{arch}.sigstore.json",
    ),
    signed="bundle",
    programs=(
        Program(
            name="buildx",
            path=f"{_PLUGINS}/docker-buildx",
            purl="golang/github.com/docker/buildx",
            supplier="Docker",
            command=("docker", "buildx", "version"),
        ),
    ),
    libraries=("buildkit", "docker-client", "moby-client"),
)
COMPOSE = Component(
    name="compose",
    exact=RELEASE,
    channels=_LINE,
    repository="docker/compose",
    file=File(
        origin="github",
        folder="docker/compose/releases/download/{tag}",
        name="docker-compose-linux-{arch}",
        architectures=_architectures("x86_64", "aarch64"),
        checksums="checksums.txt",
    ),
    programs=(
        Program(
            name="compose",
            path=f"{_PLUGINS}/docker-compose",
            purl="golang/github.com/docker/compose{major}",
            supplier="Docker",
            command=("docker", "compose", "version"),
        ),
    ),
    libraries=("buildkit", "buildx", "compose-go", "docker-client", "moby-client"),
)
_K3S = File(
    origin="github",
    folder="k3s-io/k3s/releases/download/{tag}",
    name="k3s{arch}",
    architectures=_architectures("", "-arm64"),
    checksums="sha256sum-{plain}.txt",
)
K3S = Component(
    name="k3s",
    exact=rf"v1\.{NUMBER}\.{NUMBER}\+(k3s{NUMBER}|standin)",
    channels=rf"stable|latest|v1\.{NUMBER}",
    repository="k3s-io/k3s",
    tag="{}",
    tagged=rf"(v{RELEASE}\+(?:k3s{NUMBER}|standin))",
    chosen_by="k3s",
    file=_K3S,
    programs=(
        Program(
            name="k3s",
            path="usr/local/bin/k3s",
            purl="golang/github.com/k3s-io/k3s",
            supplier="k3s",
            command=("k3s", "--version"),
        ),
    ),
    members={"bin/k3s": None, "bin/containerd": "containerd", "bin/runc": "runc"},
    libraries=("containerd", "cri-dockerd", "docker-client", "moby-client"),
)
KUBECTL = Component(
    name="kubectl",
    exact=rf"v1\.{NUMBER}\.{NUMBER}",
    channels=rf"k3s|v1\.{NUMBER}",
    repository="kubernetes/kubernetes",
    tag="{}",
    tagged=rf"(v{RELEASE})",
    chosen_by="kubectl",
    file=File(
        origin="kubernetes",
        folder="release/{version}/bin/linux/{arch}",
        name="kubectl",
        architectures=_architectures("amd64", "arm64"),
        checksums="kubectl.sha256",
        listed=False,
        signature="kubectl",
    ),
    signed="certificate",
    programs=(
        Program(
            name="kubectl",
            path="usr/local/bin/kubectl",
            purl="golang/k8s.io/kubernetes",
            supplier="Kubernetes",
            command=("kubectl", "version", "--client"),
        ),
    ),
)

# In the order in which their versions are chosen: kubectl follows k3s.
COMPONENTS = {one.name: one for one in (DOCKER, BUILDX, COMPOSE, K3S, KUBECTL)}
# k3s's system images: a second file of its releases. Each image in it tells its own licence; this is the archive's.
SYSTEM_IMAGES = replace(_K3S, name=f"{AIRGAP}-{{plain}}.tar.zst")
PROGRAMS = {program.path: program for one in COMPONENTS.values() for program in one.programs}


def owner(part: str) -> Component:
    """Return the component whose releases have a file: a component's own, or AIRGAP. Raises KeyError."""
    return K3S if part == AIRGAP else COMPONENTS[part]


def published(part: str, version: str, platform: Platform) -> Published:
    """Return where a component's file, or that of AIRGAP, and its checksum are. Raises KeyError for another name."""
    file = SYSTEM_IMAGES if part == AIRGAP else owner(part).file
    return file.of(version, owner(part).release_tag(version), platform)


def parts(component: str, *, airgap: bool) -> tuple[str, ...]:
    """Return the files that a release must have; `airgap`: with k3s's system images."""
    return (component, AIRGAP) if component == "k3s" and airgap else (component,)


def is_exact(component: str, text: str) -> bool:
    """Whether a text is an exact version of the component and not a channel."""
    return re.fullmatch(COMPONENTS[component].exact, text) is not None
