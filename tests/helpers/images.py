"""Tiny images as OCI layouts, and a real registry to push them to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.core.annotations import KEY
from pipeline.core.log import Log
from pipeline.core.names import INDEX, MANIFEST, REFERENCE_TYPE, Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import (
    BuiltPlatform,
    Check,
    Image,
    Release,
    ScanReport,
    SmokeReport,
    State,
    Tier,
    TierReport,
    Variant,
)
from pipeline.http import transport
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent
from pipeline.oci.credentials import Credentials
from pipeline.oci.registry import Registry
from pipeline.publish import push, tag
from pipeline.publish.publication import Publication
from pipeline.rehearsal.registry import Served, free_ports, serve
from tests.helpers.examples import LOCK, digest

Change = Callable[[str, dict[str, Any]], object]  # what is written ("index", "manifest", …) and its document


def make(
    dist: Path,
    seed: str,
    variant: Variant = Variant.IMAGE,
    *,
    lock: Lock = LOCK,
    rehearsed: bool = False,
    change: Change | None = None,
    roots: Mapping[Platform, Sequence[bytes]] | None = None,
) -> Image:
    """Write dist/image/ as buildx would: two platforms with three layers each, and their attestations.

    A variant has the layers of the image with the same seed and one more. `seed` makes the bytes unlike every other
    test's. `change` may spoil a document before it is written. `roots`: the layers of each platform in place of those
    that are only noise.
    """
    blobs = dist / "image" / "blobs" / "sha256"
    shutil.rmtree(dist / "image", ignore_errors=True)
    blobs.mkdir(parents=True)
    labels = {"org.opencontainers.image.title": "dind-k3s", f"{KEY}.seed": seed, f"{KEY}.lock": lock.digest.text}
    labels |= {f"{KEY}.{component}": version for component, version in lock.versions.items()}
    if variant is not Variant.IMAGE:
        labels[f"{KEY}.variant"] = variant.value

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        (blobs / Digest.of(data).hex).write_bytes(data)
        return {"mediaType": media_type, "digest": Digest.of(data).text, "size": len(data)}

    def document(kind: str, data: dict[str, Any], media_type: str) -> dict[str, Any]:
        if change is not None:
            change(kind, data)
        return put(json.dumps(data).encode(), media_type)

    shared = put(f"{seed}: a layer of both platforms".encode() * 100, "application/vnd.oci.image.layer.v1.tar+gzip")
    entries: list[dict[str, Any]] = []
    attestations: list[dict[str, Any]] = []
    built: dict[Platform, BuiltPlatform] = {}
    for platform in Platform:
        at = {"os": "linux", "architecture": platform.architecture}
        layers = [put(layer, shared["mediaType"]) for layer in roots[platform]] if roots else []
        layers = layers or [
            shared,
            *(put(f"{seed} {platform} {n}".encode() * 100, shared["mediaType"]) for n in range(2)),
        ]
        if variant is not Variant.IMAGE:
            layers.append(put(f"{seed} {platform} {variant}".encode() * 100, shared["mediaType"]))
        config = document(
            "config",
            {
                **at,
                "config": {"Labels": dict(labels)},
                "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
            },
            "application/vnd.oci.image.config.v1+json",
        )
        parts = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        entry = document("manifest", {**parts, "annotations": dict(labels)}, MANIFEST)
        entries.append({**entry, "platform": at})
        built[platform] = BuiltPlatform(
            digest=Digest(entry["digest"]),
            config=Digest(config["digest"]),
            size=sum(layer["size"] for layer in layers),
            layers=tuple(Digest(layer["digest"]) for layer in layers),
        )
        kind = "https://slsa.dev/provenance/v1"
        provenance = {"predicateType": kind, "predicate": f"provenance of {seed} {platform}"}
        statement = put(json.dumps(provenance).encode(), "application/vnd.in-toto+json")
        statement["annotations"] = {"in-toto.io/predicate-type": kind}
        parts = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": [statement]}
        parts["config"] = put(f"{{}}{seed}".encode(), "application/vnd.oci.image.config.v1+json")
        about = {REFERENCE_TYPE: "attestation-manifest", "vnd.docker.reference.digest": entry["digest"]}
        unknown = {"os": "unknown", "architecture": "unknown"}
        attestations.append({**document("attestation", parts, MANIFEST), "annotations": about, "platform": unknown})
    top = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*entries, *attestations], "annotations": dict(labels)}
    index = document("index", top, INDEX)
    (dist / "image" / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index]}))
    return Image(
        digest=Digest(index["digest"]),
        inputs=digest("inputs"),
        lock=lock.digest,
        platforms=built,
        annotations=labels,
        rehearsed=rehearsed,
        variant=variant,
    )


def tier(name: Tier, state: State = State.PASSED, reason: str = "") -> TierReport:
    """A tier's report with one check."""
    check = Check(name="a check", state=state, seconds=0.5, detail="seen")
    return TierReport(tier=name, state=state, reason=reason, where="native", checks=(check,))


def smoked(image: Image) -> list[SmokeReport]:
    """What smoke writes when every platform boots; commands of one of them could not run.

    Of a variant only one platform is booted.
    """
    skipped = tier(Tier.COMMANDS, State.NOT_RUN, "no binfmt handler")
    booted = tier(Tier.BOOT) if image.variant is Variant.IMAGE else tier(Tier.BOOT, State.NOT_RUN, "not natively")
    tiers = {
        Platform.AMD64: (tier(Tier.FILES), tier(Tier.COMMANDS), tier(Tier.BOOT)),
        Platform.ARM64: (tier(Tier.FILES), skipped, booted),
    }
    return [
        SmokeReport(platform=platform, index=image.digest, digest=built.digest, tiers=tiers[platform])
        for platform, built in image.platforms.items()
    ]


def scanned(image: Image, **changes: Any) -> list[ScanReport]:
    """What scan writes when there is nothing to be found."""
    return [
        ScanReport(
            **{
                **{"platform": platform, "index": image.digest, "digest": built.digest, "by": "grype 0.104.0"},
                **{"database": datetime.now(UTC), "findings": 0, "refused": (), "allowed": (), "unfixed": ()},
                **changes,
            }
        )
        for platform, built in image.platforms.items()
    ]


def publication(
    intent: Intent,
    lock: Lock,
    image: Image,
    dist: Path,
    registry_for: Callable[[ImageName], Registry],
    *,
    base: Image | None = None,
) -> Publication:
    """An image on its way, without a word."""
    log = Log(quiet=True)
    return Publication(intent=intent, lock=lock, image=image, dist=dist, registry_for=registry_for, log=log, base=base)


def publish(publication: Publication) -> Release:
    """Push and tag an image that was smoked and scanned, and that is recorded as signed without being so."""
    release = push.run(publication, smoked(publication.image), scanned(publication.image))
    for name in publication.intent.names:
        release = release.having(signed=str(name))
    release.write(publication.dist)
    return tag.run(publication)


class Line(httpx.BaseTransport):
    """The network, with a record of what went over it; it goes dead after `dies_after` requests."""

    def __init__(self, dies_after: int | None = None) -> None:
        # No certificates are loaded: it only ever goes to loopback, in plain HTTP.
        self._through = httpx.HTTPTransport(verify=False)
        self._dies_after = dies_after
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self._dies_after is not None and len(self.requests) >= self._dies_after:
            raise httpx.ConnectError("Connection refused")
        self.requests.append(request)
        return self._through.handle_request(request)

    def close(self) -> None:
        self._through.close()

    @property
    def written(self) -> list[httpx.Request]:
        """The requests that change something in a registry."""
        return [request for request in self.requests if request.method not in ("GET", "HEAD")]


class Place:
    """A running registry, as the tests use it."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.served = served
        self._storage = folder / "storage" / "docker" / "registry" / "v2"
        self._clients: list[httpx.Client] = []

    def client(self, line: httpx.BaseTransport | None = None) -> httpx.Client:
        """A client that is closed with the place."""
        self._clients.append(transport.make_client(line or Line()))
        return self._clients[-1]

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def name(self, repository: str) -> ImageName:
        return ImageName(registry=self.served.host, repository=repository)

    def registry(self, name: ImageName, line: Line, credentials: Credentials | None = None) -> Registry:
        """With the pushing user's credentials unless others are given; a pause is an error, as none is expected."""

        def no_pause(seconds: float) -> None:
            raise AssertionError(f"a try was repeated after {seconds} s")

        return Registry(self.client(line), name, credentials or self.served.credentials, sleep=no_pause)

    def anonymous(self, name: ImageName) -> Registry:
        """Without credentials."""
        return Registry(self.client(), name)

    def blob(self, digest: Digest) -> Path:
        """Where the registry keeps these bytes."""
        return self._storage / "blobs" / "sha256" / digest.hex[:2] / digest.hex / "data"

    def forget_manifest(self, name: ImageName, digest: Digest) -> None:
        """What a careless «delete untagged» does to a part of an index."""
        shutil.rmtree(self._storage / "repositories" / name.repository / "_manifests/revisions/sha256" / digest.hex)


@contextmanager
def running(folder: Path) -> Iterator[Place]:
    """The rehearsal's registry on two free ports."""
    with serve(program(), folder, free_ports()) as served:
        place = Place(served, folder)
        try:
            yield place
        finally:
            place.close()


def program() -> str:
    """The registry's executable; skips the test where there is none."""
    found = os.environ.get("DIND_K3S_TEST_REGISTRY") or shutil.which("docker-registry")
    if not found:
        pytest.skip("no docker-registry: apt-get install docker-registry, or DIND_K3S_TEST_REGISTRY=PATH")
    return found


def spoil(kind: str, path: tuple[str, ...]) -> Change:
    """A change that removes one entry of every document of that kind."""

    def change(found: str, document: dict[str, Any]) -> None:
        if found == kind:
            inner: Any = document
            for step in path[:-1]:
                inner = inner[step]
            del inner[path[-1]]

    return change
