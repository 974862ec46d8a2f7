"""A small checkout with everything in its cache: versions.yaml, a lock of tiny files at the vendors' paths, a base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipeline import components
from pipeline.core.cache import path_of
from pipeline.core.log import Log
from pipeline.core.names import INDEX, MANIFEST, Digest
from pipeline.core.platforms import Platform
from pipeline.http import transport
from pipeline.inputs import lock, versions
from pipeline.inputs.lock import Artifact
from pipeline.workflow import Run
from tests.helpers.examples import GUEST, INTENT, LOCK, VERSIONS, artifact

# Nothing listens there.
NOWHERE = "http://127.0.0.1:9"


class Site:
    """versions.yaml, versions.lock.yaml, dist/ and cache/ in `folder`; `lock` is the written lock."""

    def __init__(self, folder: Path, url: str = NOWHERE) -> None:
        self.folder = folder
        self.client = transport.make_client()
        self.cache = folder / "cache"
        (self.cache / "sha256").mkdir(parents=True)
        self.base = self._base()
        # Its registry is down, too.
        self.image = "127.0.0.1:9/library/debian:trixie-slim"
        self.intent_path = folder / "versions.yaml"
        self.write_intent({})
        intent = versions.read(self.intent_path)
        artifacts = tuple(self._component(name, platform, url) for name in VERSIONS for platform in Platform)
        packages = tuple(self._package("iptables", "1.8.11-2+b1", platform, url) for platform in Platform)
        guest = tuple(self._package(kind, GUEST[kind], platform, url) for kind in GUEST for platform in Platform)
        self.lock = replace(
            LOCK,
            intent=intent.checksum,
            base=replace(LOCK.base, image=self.image, digest=self.base),
            artifacts=artifacts,
            packages=packages,
            guest=guest,
        )
        lock.write(folder / "versions.lock.yaml", self.lock)

    def write_intent(self, mirrors: Mapping[str, tuple[str, ...]]) -> None:
        """Write versions.yaml with these mirrors."""
        versions.write(self.intent_path, replace(INTENT, base=self.image, mirrors=mirrors))

    def run(self, cache: Path | None = None) -> Run:
        return Run(
            root=Path(__file__).resolve().parents[2],
            intent_path=self.intent_path,
            lock_path=self.folder / "versions.lock.yaml",
            dist=self.folder / "dist",
            cache=cache or self.cache,
            log=Log(quiet=True),
            client=self.client,
            credentials=lambda registry: None,
        )

    def close(self) -> None:
        """Close the client of its runs."""
        self.client.close()

    @property
    def arguments(self) -> list[str]:
        """The command line's options for this checkout."""
        return [
            *("--versions", str(self.intent_path), "--lock", str(self.folder / "versions.lock.yaml")),
            *("--dist", str(self.folder / "dist"), "--cache", str(self.cache)),
        ]

    @property
    def everything(self) -> dict[Digest, bytes]:
        """All files of lock and base image."""
        return {Digest.of_file(path): path.read_bytes() for path in (self.cache / "sha256").iterdir()}

    def put(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        path_of(self.cache, digest).write_bytes(data)
        return digest

    def _component(self, name: str, platform: Platform, url: str) -> Artifact:
        where = components.published(name, VERSIONS[name], platform)
        data = f"{name} for {platform}".encode()
        self.put(data)
        made = artifact(name, platform, data)
        return replace(made, origin=where.origin, path=where.path, url=f"{url}/{where.origin}/{where.path}")

    def _package(self, name: str, version: str, platform: Platform, url: str) -> Artifact:
        data = f"{name} {version} for {platform}".encode()
        self.put(data)
        path = f"pool/main/{name[0]}/{name}/{name}_{version}_{platform.names.debian}.deb".replace("+", "%2b")
        made = artifact(name, platform, data)
        return replace(made, version=version, origin="debian", path=path, url=f"{url}/debian/{path}")

    def _base(self) -> Digest:
        def described(data: bytes, media_type: str) -> dict[str, object]:
            return {"mediaType": media_type, "digest": self.put(data).text, "size": len(data)}

        manifests = []
        for platform in Platform:
            manifest = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": described(f"config for {platform}".encode(), "application/vnd.oci.image.config.v1+json"),
                "layers": [described(f"layer for {platform}".encode(), "application/vnd.oci.image.layer.v1.tar+gzip")],
            }
            entry = described(json.dumps(manifest).encode(), MANIFEST)
            manifests.append({**entry, "platform": {"os": "linux", "architecture": platform.architecture}})
        return self.put(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode())


def committed(dist: Path) -> Run:
    """Return a run on this repository's versions.yaml and lock, with results and cache elsewhere. Close its client."""
    root = Path(__file__).resolve().parents[2]
    return Run(
        root=root,
        intent_path=root / "versions.yaml",
        lock_path=root / "versions.lock.yaml",
        dist=dist,
        cache=dist,
        log=Log(quiet=True),
    )
