"""An image that was published and signed with a local key, and anonymous clients that look at it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import sbom
from pipeline.core.log import Log
from pipeline.core.names import INDEX, Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.core.records import Image, Release
from pipeline.oci import referrers
from pipeline.oci.registry import Registry
from pipeline.publish import sign, verify
from pipeline.publish.publication import Publication
from pipeline.signing.bundle import Trust
from pipeline.signing.signer import KeySigner, Signer, make_key
from tests.helpers.examples import INTENT
from tests.helpers.images import Change, Line, Place, make, publication, publish
from tests.sbom.test_sbom import layer, lock, roots

LOG = Log(quiet=True)


def new_key(path: Path) -> KeySigner:
    """A private key at that path, the public one beside it with the ending .pub."""
    make_key(path)
    return KeySigner(path)


class Signed:
    """One repository, or several, and one machine that releases to them."""

    def __init__(self, place: Place, dist: Path, *names: ImageName) -> None:
        self.place, self.dist, self.names = place, dist, names
        self.lock = lock()
        self.line = Line()
        self.key = dist.parent / f"{dist.name}.key"
        dist.mkdir(exist_ok=True)
        self.signer = new_key(self.key)
        self.asked = 0  # how often a signer was asked for

    @property
    def name(self) -> ImageName:
        return self.names[0]

    @property
    def trust(self) -> Trust:
        return Trust(key=self.signer.public)

    def registry(self, name: ImageName) -> Registry:
        return self.place.registry(name, self.line)

    def publication(self) -> Publication:
        intent = replace(INTENT, names=self.names)
        return publication(intent, self.lock, self.image, self.dist, self.registry)

    def publish(self, change: Change | None = None) -> Image:
        """Build, write the SBOMs, push and tag; nothing is signed."""
        seed = f"{self.name} {self.dist}"
        # Two layers unlike every other test's: a registry keeps equal bytes once, and some tests spoil them.
        marks = [layer({f"seed{number}": seed.encode()}) for number in range(2)]
        made = {platform: [*marks, *roots(platform)] for platform in Platform}
        self.image = make(self.dist, seed, lock=self.lock, roots=made, change=change)
        sbom.run([self.image], self.lock, self.dist, LOG)
        release = publish(self.publication())
        replace(release, signed=()).write(self.dist)
        return self.image

    def sign(self, signer: Signer | None = None, trust: Trust | None = None) -> Release:
        def ask() -> Signer:
            self.asked += 1
            return signer or self.signer

        return sign.run(self.publication(), ask, trust or self.trust)

    def verify(self, reference: str | None = None, *, trust: Trust | None = None, log: Log = LOG) -> None:
        """As an anonymous client, who waits for nothing."""
        client = self.place.client()
        asked = reference or f"{self.name}:latest"
        verify.published([asked], trust or self.trust, tuple(Platform), client, log, sleep=lambda _: None)

    # What somebody can do who may write to the repository

    def document(self, digest: Digest | str) -> Any:
        """A manifest or index of the layout."""
        return json.loads((self.dist / "image/blobs/sha256" / str(digest).removeprefix("sha256:")).read_bytes())

    def put(self, document: Any, media_type: str, tag: str | None = None) -> dict[str, Any]:
        """Push a manifest or index, by its digest or under a tag; returns a descriptor."""
        raw = json.dumps(document).encode()
        digest = Digest.of(raw)
        self.registry(self.name).tag(tag or digest.text, raw, media_type)
        return {"mediaType": media_type, "digest": digest.text, "size": len(raw)}

    def replace_index(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Move `latest` to a changed index."""
        index = self.document(self.image.digest)
        change(index)
        self.put(index, INDEX, "latest")

    def claims(self, subject: Digest) -> list[dict[str, Any]]:
        """What lies beside a manifest."""
        return referrers.entries(self.registry(self.name), subject)

    def list_claims(self, subject: Digest, entries: list[dict[str, Any]]) -> None:
        """Have others lie there."""
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        self.put(index, INDEX, referrers.tag_of(subject))
