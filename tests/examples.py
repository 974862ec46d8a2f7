"""Records that several tests start from."""

from __future__ import annotations

from pipeline.lock import Artifact, Base, Evidence, Lock
from pipeline.oci import Digest, ImageName
from pipeline.platforms import Platform
from pipeline.versions import Intent

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
        evidence=Evidence.PUBLISHED,
        source="a test",
    )


LOCK = Lock(
    intent=digest("intent"),
    date="2026-11-22",
    base=Base(image=INTENT.base, digest=digest("base"), evidence=Evidence.PUBLISHED, source="a test"),
    versions=VERSIONS,
    artifacts=tuple(artifact(component, platform) for component in VERSIONS for platform in Platform),
    packages=tuple(artifact("iptables", platform) for platform in Platform),
)
