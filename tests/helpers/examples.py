"""Records that several tests start from."""

from __future__ import annotations

from dataclasses import replace

from pipeline.components import AIRGAP
from pipeline.core.names import Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.inputs.evidence import Evidence, Grade
from pipeline.inputs.lock import Artifact, Base, Lock
from pipeline.inputs.versions import Intent

VERSIONS = {"docker": "29.7.2", "buildx": "0.36.1", "compose": "5.4.0", "k3s": "v1.37.1+k3s1", "kubectl": "v1.37.1"}
INTENT = Intent(
    names=(ImageName(registry="127.0.0.1:5000", repository="dind-k3s"),),
    title="dind-k3s",
    description="dockerd and k3s in one container",
    source="https://example.org/dind-k3s",
    licenses="Apache-2.0",
    platforms=tuple(Platform),
    components=VERSIONS,
    base="docker.io/library/debian:trixie-slim",
    suites={"debian": ("trixie",)},
    packages=("iptables",),
    upstream={"docker": "https://docker.example", "debian": "https://debian.example"},
    mirrors={},
)
PUBLISHED = (Evidence(grade=Grade.PUBLISHED, source="a test", observed="2026-11-22"),)


# By kind: what smoke's virtual machines are made of, with the names and versions that Debian gives.
GUEST = {
    "busybox-static": "1.37.0-6+b9",
    "linux-image-6.1.0-50-cloud": "6.1.176-1",
    "linux-image-6.12.118+deb13-cloud": "6.12.118-1",
}


def digest(seed: str) -> Digest:
    """A digest that is plainly made up."""
    return Digest.of(seed.encode())


def artifact(component: str, platform: Platform, data: bytes | None = None) -> Artifact:
    """An artifact of a component, of these bytes."""
    data = f"{component} for {platform}".encode() if data is None else data
    path = f"{component}/{platform.architecture}"
    return Artifact(
        component=component,
        version=VERSIONS.get(component, "1.0-1"),
        platform=platform,
        origin="docker" if component in VERSIONS else "debian",
        path=path,
        url=f"https://docker.example/{path}",
        digest=Digest.of(data),
        size=len(data),
        evidence=PUBLISHED,
    )


def guest(platform: Platform) -> tuple[Artifact, ...]:
    """The packages to boot one platform with."""
    names = {kind: f"{kind}-{platform.architecture}" if kind.startswith("linux") else kind for kind in GUEST}
    return tuple(replace(artifact(names[kind], platform), version=version) for kind, version in GUEST.items())


LOCK = Lock(
    intent=digest("intent"),
    date="2026-11-22",
    base=Base(image=INTENT.base, digest=digest("base"), evidence=PUBLISHED),
    versions=VERSIONS,
    artifacts=tuple(artifact(component, platform) for component in VERSIONS for platform in Platform),
    packages=tuple(artifact("iptables", platform) for platform in Platform),
    guest=tuple(file for platform in Platform for file in guest(platform)),
)
AIRGAP_LOCK = replace(
    LOCK,
    airgap=tuple(
        replace(
            artifact(AIRGAP, platform, f"system images for {platform}".encode()),
            version=VERSIONS["k3s"],
            path=f"k3s/{AIRGAP}-{platform.architecture}.tar.zst",
        )
        for platform in Platform
    ),
)
