"""What somebody with push access can do to a published image, and that an anonymous client notices.

A real registry, and separate checks: an anonymous client that has nothing of what signed or pushed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.core import sboms
from pipeline.core.annotations import KEY, REHEARSAL
from pipeline.core.errors import IntentError, VerificationFailed
from pipeline.core.log import Log
from pipeline.core.names import INDEX, MANIFEST, REFERENCE_TYPE, Digest
from pipeline.core.platforms import Platform
from pipeline.core.sboms import Form
from pipeline.oci import referrers
from pipeline.oci.layout import Part
from pipeline.publish import retention, verify
from pipeline.signing import statement
from pipeline.signing.bundle import TYPE, Trust
from tests.helpers.images import Place, running
from tests.helpers.signed import Signed, new_key

AMD64, ARM64 = Platform.AMD64, Platform.ARM64


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running(tmp_path_factory.mktemp("registry")) as place:
        yield place


@pytest.fixture
def signed(place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> Signed:
    words = "-".join("".join(letter if letter.isalnum() else " " for letter in request.node.name.lower()).split())
    made = Signed(place, tmp_path / "dist", place.name(words))
    made.publish()
    made.sign()
    return made


def test_an_image_that_nobody_changed(signed: Signed, capfd: pytest.CaptureFixture[str]) -> None:
    for reference in (":latest", ":v1.37", f"@{signed.image.digest}", f":latest@{signed.image.digest}"):
        signed.verify(f"{signed.name}{reference}", log=Log())
    printed = capfd.readouterr().err
    for text in (
        f"linux/arm64 {signed.image.platforms[ARM64].digest}",
        "every byte hashed",
        "index and 2 manifests are signed by the holder of the key",
        "the CycloneDX SBOM of linux/arm64",
        f"{signed.name}@{signed.image.digest} is valid",
    ):
        assert text in printed


def test_it_needs_no_files_and_no_credentials(signed: Signed) -> None:
    asked: list[httpx.Request] = []
    through = httpx.HTTPTransport(verify=False)

    class Watched(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return through.handle_request(request)

    client = signed.place.client(Watched())
    verify.published([f"{signed.name}:latest"], signed.trust, tuple(Platform), client, Log(quiet=True))
    through.close()
    assert {request.method for request in asked} == {"GET"}
    assert not any(request.headers.get("Authorization", "").startswith("Basic") for request in asked)


# Tampering. Each case changes a published, signed image; the sentence is the reason that a user reads.


def _layer(signed: Signed, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = signed.document(signed.image.platforms[AMD64].digest)["layers"][number]
    return found


def _stored(signed: Signed, digest: str) -> Path:
    return signed.place.blob(Digest(digest))


def layer_byte(signed: Signed) -> None:
    path = _stored(signed, _layer(signed)["digest"])
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def layer_swapped(signed: Signed) -> None:
    _stored(signed, _layer(signed)["digest"]).write_bytes(_stored(signed, _layer(signed, 1)["digest"]).read_bytes())


def layer_truncated(signed: Signed) -> None:
    path = _stored(signed, _layer(signed)["digest"])
    path.write_bytes(path.read_bytes()[:-7])


def layer_gone(signed: Signed) -> None:
    _stored(signed, _layer(signed)["digest"]).unlink()


def config_bytes(signed: Signed) -> None:
    path = _stored(signed, signed.image.platforms[ARM64].config.text)
    path.write_bytes(path.read_bytes().replace(b'"linux"', b'"minix"'))


def manifest_bytes(signed: Signed) -> None:
    path = _stored(signed, signed.image.platforms[ARM64].digest.text)
    path.write_bytes(path.read_bytes().replace(b"gzip", b"gzzp", 1))


def index_bytes(signed: Signed) -> None:
    path = _stored(signed, signed.image.digest.text)
    path.write_bytes(path.read_bytes().replace(b'"dind-k3s"', b'"dind-k9s"', 1))


def _rewritten(signed: Signed, change: Callable[[dict[str, Any]], object]) -> None:
    """A consistent image with another manifest for amd64, under the tag."""
    manifest = signed.document(signed.image.platforms[AMD64].digest)
    change(manifest)
    entry = signed.put(manifest, MANIFEST)

    def swap(index: dict[str, Any]) -> None:
        index["manifests"][0].update(entry)
        for one in index["manifests"]:
            if (about := one.get("annotations", {})).get("vnd.docker.reference.digest") == str(
                signed.image.platforms[AMD64].digest
            ):
                about["vnd.docker.reference.digest"] = entry["digest"]

    signed.replace_index(swap)


def manifest_rewritten(signed: Signed) -> None:
    _rewritten(signed, lambda manifest: manifest["layers"].reverse())


def layer_dropped(signed: Signed) -> None:
    _rewritten(signed, lambda manifest: manifest["layers"].pop())


def layer_type(signed: Signed) -> None:
    _rewritten(signed, lambda manifest: manifest["layers"][0].update(mediaType="application/x-sh"))


def layer_size(signed: Signed) -> None:
    _rewritten(signed, lambda manifest: manifest["layers"][0].update(size=manifest["layers"][0]["size"] + 1))


def config_type(signed: Signed) -> None:
    _rewritten(signed, lambda manifest: manifest["config"].update(mediaType="application/vnd.oci.empty.v1+json"))


def manifest_annotation(signed: Signed) -> None:
    _rewritten(signed, lambda manifest: manifest["annotations"].update({f"{KEY}.k3s": "v1.0.0+k3s1"}))


def index_annotation(signed: Signed) -> None:
    signed.replace_index(lambda index: index["annotations"].update({"org.opencontainers.image.title": "other"}))


def index_more_said(signed: Signed) -> None:
    signed.replace_index(lambda index: index["manifests"][0].update(annotations={"note": "new"}))


def annotations_gone(signed: Signed) -> None:
    signed.replace_index(lambda index: index.pop("annotations"))


def index_type(signed: Signed) -> None:
    signed.replace_index(lambda index: index.pop("mediaType"))


def platform_missing(signed: Signed) -> None:
    signed.replace_index(lambda index: index["manifests"].pop(1))


def platform_more(signed: Signed) -> None:
    def add(index: dict[str, Any]) -> None:
        at = {"os": "linux", "architecture": "riscv64"}
        index["manifests"].append({**index["manifests"][0], "platform": at})

    signed.replace_index(add)


def platform_twice(signed: Signed) -> None:
    signed.replace_index(lambda index: index["manifests"].append(index["manifests"][0]))


def platform_of_the_other(signed: Signed) -> None:
    def swap(index: dict[str, Any]) -> None:
        first, second = index["manifests"][:2]
        first["platform"], second["platform"] = second["platform"], first["platform"]

    signed.replace_index(swap)


def manifest_of_another_image(signed: Signed) -> None:
    """Signed by the same hand, and older: what was wrong with it is wrong again."""
    older = Signed(signed.place, signed.dist.parent / "older", *signed.names)
    older.signer, older.key = signed.signer, signed.key
    older.publish()
    older.sign()
    index = older.document(older.image.digest)
    ours = older.image.platforms[AMD64]

    def swap(document: dict[str, Any]) -> None:
        document["manifests"][0] = index["manifests"][0]
        document["manifests"][2]["annotations"]["vnd.docker.reference.digest"] = ours.digest.text

    signed.replace_index(swap)


def manifest_size(signed: Signed) -> None:
    signed.replace_index(lambda index: index["manifests"][0].update(size=5))


def manifest_type(signed: Signed) -> None:
    signed.replace_index(lambda index: index["manifests"][0].update(mediaType=INDEX))


def tag_on_one_manifest(signed: Signed) -> None:
    signed.put(signed.document(signed.image.platforms[AMD64].digest), MANIFEST, "latest")


def provenance_gone(signed: Signed) -> None:
    signed.replace_index(
        lambda index: index.update(manifests=[e for e in index["manifests"] if "annotations" not in e])
    )


def provenance_of_another(signed: Signed) -> None:
    def change(index: dict[str, Any]) -> None:
        entry = next(entry for entry in index["manifests"] if REFERENCE_TYPE in entry.get("annotations", {}))
        entry["annotations"]["vnd.docker.reference.digest"] = Digest.of(b"another").text

    signed.replace_index(change)


def provenance_bytes(signed: Signed) -> None:
    (layer,) = signed.document(signed.document(signed.image.digest)["manifests"][2]["digest"])["layers"]
    path = _stored(signed, layer["digest"])
    path.write_bytes(path.read_bytes().replace(b"provenance of", b"provenance 0f"))


def _put_bundle(signed: Signed, subject: Digest, raw: bytes, kind: str, about: Digest | None = None) -> dict[str, Any]:
    """Push a bundle beside a manifest without entering it in the list; returns its entry."""
    file = signed.dist / "forged.json"
    file.write_bytes(raw)
    media = INDEX if subject == signed.image.digest else MANIFEST
    part = Part(
        digest=about or subject,
        size=(signed.dist / "image/blobs/sha256" / (about or subject).hex).stat().st_size,
        media_type=media,
        path=file,
    )
    annotations = {"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": kind}
    artifact = referrers.Referrer(subject=part, kind=TYPE, annotations=annotations, path=file)
    before = signed.claims(part.digest)
    referrers.push(signed.registry(signed.name), artifact, signed.dist, Log(quiet=True))
    (entry,) = [entry for entry in signed.claims(part.digest) if entry not in before]
    signed.list_claims(part.digest, before)
    return entry


def _only(signed: Signed, subject: Digest, kind: str, entries: list[dict[str, Any]]) -> None:
    """Have these in place of the claims of one kind."""
    others = [
        entry for entry in signed.claims(subject) if entry["annotations"]["dev.sigstore.bundle.predicateType"] != kind
    ]
    signed.list_claims(subject, [*others, *entries])


def _bundle(signed: Signed, subject: Digest, kind: str) -> dict[str, Any]:
    """The manifest of a claim that is there."""
    (entry,) = [
        entry for entry in signed.claims(subject) if entry["annotations"]["dev.sigstore.bundle.predicateType"] == kind
    ]
    found = signed.registry(signed.name).manifest(entry["digest"])
    assert found is not None
    document: dict[str, Any] = json.loads(found.raw)
    return document


def signature_gone(signed: Signed) -> None:
    _only(signed, signed.image.digest, statement.SIGNATURE, [])


def signature_gone_on_a_manifest(signed: Signed) -> None:
    _only(signed, signed.image.platforms[ARM64].digest, statement.SIGNATURE, [])


def signature_of_somebody_else(signed: Signed) -> None:
    other = new_key(signed.dist.parent / "other.key")
    raw = other.sign(statement.make("dind-k3s", signed.image.digest, statement.SIGNATURE, {}))
    entry = _put_bundle(signed, signed.image.digest, raw, statement.SIGNATURE)
    _only(signed, signed.image.digest, statement.SIGNATURE, [entry])


def signature_of_another_digest(signed: Signed) -> None:
    raw = signed.signer.sign(statement.make("dind-k3s", Digest.of(b"another"), statement.SIGNATURE, {}))
    entry = _put_bundle(signed, signed.image.digest, raw, statement.SIGNATURE)
    _only(signed, signed.image.digest, statement.SIGNATURE, [entry])


def signature_that_is_an_attestation(signed: Signed) -> None:
    """cosign's own `verify` takes any signed claim about the digest for a signature."""
    raw = signed.signer.sign(statement.make("dind-k3s", signed.image.digest, "https://example.org/note", {}))
    entry = _put_bundle(signed, signed.image.digest, raw, statement.SIGNATURE)
    _only(signed, signed.image.digest, statement.SIGNATURE, [entry])


def signature_listed_for_another(signed: Signed) -> None:
    kind = statement.SIGNATURE
    amd64, arm64 = (signed.image.platforms[platform].digest for platform in Platform)
    entries = [
        entry for entry in signed.claims(arm64) if entry["annotations"]["dev.sigstore.bundle.predicateType"] == kind
    ]
    _only(signed, amd64, kind, entries)


def bundle_bytes(signed: Signed) -> None:
    (layer,) = _bundle(signed, signed.image.digest, statement.SIGNATURE)["layers"]
    path = _stored(signed, layer["digest"])
    path.write_bytes(path.read_bytes().replace(b'"payload":"e', b'"payload":"f'))


def bundle_payload(signed: Signed) -> None:
    """Consistent digests, and a payload that nobody signed."""
    (layer,) = _bundle(signed, signed.image.digest, statement.SIGNATURE)["layers"]
    document = json.loads(_stored(signed, layer["digest"]).read_bytes())
    payload = base64.b64decode(document["dsseEnvelope"]["payload"]).replace(b"dind-k3s", b"dind-k9s")
    document["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    entry = _put_bundle(signed, signed.image.digest, json.dumps(document).encode(), statement.SIGNATURE)
    _only(signed, signed.image.digest, statement.SIGNATURE, [entry])


def bundle_that_is_none(signed: Signed) -> None:
    entry = _put_bundle(signed, signed.image.digest, b'{"mediaType": "x"}', statement.SIGNATURE)
    _only(signed, signed.image.digest, statement.SIGNATURE, [entry])


def attestation_gone(signed: Signed) -> None:
    _only(signed, signed.image.platforms[AMD64].digest, Form.SPDX.predicate, [])


def attestation_of_somebody_else(signed: Signed) -> None:
    other = new_key(signed.dist.parent / "other.key")
    digest = signed.image.platforms[AMD64].digest
    document = json.loads(sboms.path(signed.dist, AMD64, Form.SPDX).read_text(encoding="utf-8"))
    raw = other.sign(statement.make("dind-k3s", digest, Form.SPDX.predicate, document))
    entry = _put_bundle(signed, digest, raw, Form.SPDX.predicate)
    _only(signed, digest, Form.SPDX.predicate, [entry])


def sbom_bytes(signed: Signed) -> None:
    (layer,) = _bundle(signed, signed.image.platforms[AMD64].digest, Form.CYCLONEDX.predicate)["layers"]
    path = _stored(signed, layer["digest"])
    raw = path.read_bytes()
    path.write_bytes(raw[:2000] + (b"A" if raw[2000:2001] != b"A" else b"B") + raw[2001:])


def _signed_sbom(signed: Signed, document: Any, form: Form) -> None:
    """Our own hand attests a wrong SBOM."""
    digest = signed.image.platforms[AMD64].digest
    raw = signed.signer.sign(statement.make("dind-k3s", digest, form.predicate, document))
    _only(signed, digest, form.predicate, [_put_bundle(signed, digest, raw, form.predicate)])


def sbom_of_the_other_platform(signed: Signed) -> None:
    for form in Form:
        document = json.loads(sboms.path(signed.dist, ARM64, form).read_text(encoding="utf-8"))
        _signed_sbom(signed, document, form)


def sbom_of_another_version(signed: Signed) -> None:
    document = json.loads(sboms.path(signed.dist, AMD64, Form.CYCLONEDX).read_text(encoding="utf-8"))
    next(one for one in document["components"] if one["name"] == "k3s")["version"] = "v1.0.0+k3s1"
    _signed_sbom(signed, document, Form.CYCLONEDX)


def sbom_that_is_none(signed: Signed) -> None:
    _signed_sbom(signed, {"spdxVersion": "SPDX-2.3"}, Form.SPDX)


CASES: dict[Callable[[Signed], None], str] = {
    layer_byte: "the blob sha256:[0-9a-f]{64} is not what it should be",
    layer_swapped: "the blob sha256:[0-9a-f]{64} is not what it should be",
    layer_truncated: "the blob sha256:[0-9a-f]{64} is not what it should be",
    layer_gone: "cannot read blobs of .* without credentials",
    config_bytes: "the blob sha256:[0-9a-f]{64} is not what it should be",
    manifest_bytes: "the digest of the manifest of linux/arm64 is not what it should be",
    index_bytes: "image.title on the manifest of linux/amd64 is not what it should be",
    manifest_rewritten: "^the index is not signed\n",
    layer_dropped: "the number of layers in the config of linux/amd64 is not what it should be",
    layer_type: "the media type of linux/amd64's layer sha256:[0-9a-f]{64} is not what it should be",
    layer_size: "the size of sha256:[0-9a-f]{64} is not what it should be",
    config_type: "the media type of linux/amd64's config is not what it should be",
    manifest_annotation: f"{KEY}.k3s on the manifest of linux/amd64 is not what it should be",
    index_annotation: "image.title on the manifest of linux/amd64 is not what it should be",
    index_more_said: "^the index is not signed\n",
    annotations_gone: "the index lacks an annotation",
    index_type: "the media type that the index gives itself is not what it should be",
    platform_missing: "the list of platforms is not what it should be",
    platform_more: "the list of platforms is not what it should be",
    platform_twice: "the list of platforms is not what it should be",
    platform_of_the_other: "the platform in the config of linux/arm64 is not what it should be",
    manifest_of_another_image: "seed on the manifest of linux/amd64 is not what it should be",
    manifest_size: "the size of the manifest of linux/amd64 is not what it should be",
    manifest_type: "the media type that the index gives the manifest of linux/amd64 is not what it should be",
    tag_on_one_manifest: "latest, is a single manifest, not an index",
    provenance_gone: "linux/amd64 has no provenance attestation in the index",
    provenance_of_another: "an attestation in the index is about another image",
    provenance_bytes: "the blob sha256:[0-9a-f]{64} is not what it should be",
    signature_gone: "^the index is not signed\n",
    signature_gone_on_a_manifest: "^the manifest of linux/arm64 is not signed\n",
    signature_of_somebody_else: "the index is not signed by a trusted signer: unexpected signer",
    signature_of_another_digest: "by a trusted signer: a signature that refers to the index is for another digest",
    signature_that_is_an_attestation: "a referrer of the index signs something else",
    signature_listed_for_another: "the subject of a referrer of the manifest of linux/amd64 is not what it should",
    bundle_bytes: "the index is not signed by a trusted signer: the blob sha256:[0-9a-f]{64} is not what it should be",
    bundle_payload: "the index is not signed by a trusted signer: unexpected signer, or the signed bytes have changed",
    bundle_that_is_none: "the index is not signed by a trusted signer: a bundle cannot be read",
    attestation_gone: "^the manifest of linux/amd64 is not attested with a SPDX SBOM\n",
    attestation_of_somebody_else: "not attested with a SPDX SBOM by a trusted signer: unexpected signer",
    sbom_bytes: "not attested with a CycloneDX SBOM by a trusted signer: the blob sha256:",
    sbom_of_the_other_platform: "the manifest that the SPDX SBOM of linux/amd64 is about is not what it should be",
    sbom_of_another_version: "k3s's version in the CycloneDX SBOM of linux/amd64 is not what it should be",
    sbom_that_is_none: "has a document that cannot be read",
}


@pytest.mark.parametrize(("tamper", "sentence"), CASES.items(), ids=[case.__name__ for case in CASES])
def test_tampering_is_refused(tamper: Callable[[Signed], None], sentence: str, signed: Signed) -> None:
    signed.verify()
    tamper(signed)
    with pytest.raises(VerificationFailed, match=sentence) as failure:
        signed.verify()
    assert failure.value.exit_code == 10
    assert failure.value.next_step


def test_a_second_signature_by_somebody_else_does_no_harm(signed: Signed) -> None:
    other = new_key(signed.dist.parent / "other.key")
    raw = other.sign(statement.make("dind-k3s", signed.image.digest, statement.SIGNATURE, {}))
    entry = _put_bundle(signed, signed.image.digest, raw, statement.SIGNATURE)
    signed.list_claims(signed.image.digest, [entry, *signed.claims(signed.image.digest)])
    signed.verify()


def test_what_retention_leaves_is_signed_and_whole(place: Place, tmp_path: Path) -> None:
    def dated(kind: str, document: dict[str, Any]) -> None:
        labels = {"org.opencontainers.image.created": "2020-01-01T00:00:00Z"}
        if kind in ("index", "manifest"):
            document["annotations"] |= labels
        elif kind == "config":
            document["config"]["Labels"] |= labels

    older, newer = (Signed(place, tmp_path / name, place.name("retention")) for name in ("older", "newer"))
    for release in (older, newer):
        release.publish(dated)
        release.sign()
    older.verify(f"{older.name}@{older.image.digest}")
    claims = [entry["digest"] for entry in older.claims(older.image.digest)]
    rule = retention.Rule(newest=1, younger=timedelta(days=1))
    registry = newer.registry(newer.name)
    retention.run(registry, rule, Log(quiet=True), registry.delete)
    newer.verify()
    with pytest.raises(VerificationFailed, match="there is no"):
        older.verify(f"{older.name}@{older.image.digest}")
    assert [older.registry(older.name).manifest(digest) for digest in claims] == [None]


def test_another_key_is_expected(signed: Signed) -> None:
    with pytest.raises(VerificationFailed, match="the index is not signed by a trusted signer"):
        signed.verify(trust=Trust(key=new_key(signed.dist.parent / "other.key").public))


def test_a_workflow_is_expected_and_a_key_signed(signed: Signed) -> None:
    trust = Trust(identity="https://github.com/dind-k3s/dind-k3s/.github/workflows/release.yml@refs/tags/*")
    with pytest.raises(VerificationFailed, match="unexpected signer") as failure:
        signed.verify(trust=trust)
    assert "release.yml" in str(failure.value)


def test_a_rehearsed_image_elsewhere(signed: Signed) -> None:
    """The same bytes behind a public name."""
    index = signed.document(signed.image.digest)
    index["annotations"][REHEARSAL] = "made of stubs"
    answer = httpx.MockTransport(lambda request: httpx.Response(200, json=index, headers={"Content-Type": INDEX}))
    client = signed.place.client(answer)
    with pytest.raises(VerificationFailed, match="contains stubs"):
        verify.published(["ghcr.io/a/b:latest"], signed.trust, tuple(Platform), client, Log(quiet=True))


def test_a_tag_that_is_not_there(signed: Signed) -> None:
    with pytest.raises(VerificationFailed, match="there is no"):
        signed.verify(f"{signed.name}:none")
    with pytest.raises(IntentError, match="not an image name"):
        signed.verify("UPPER CASE")


@pytest.mark.parametrize("raw", [b"[]", b"{}", b"null", b"<html>", b'{"manifests": 5}', b'{"manifests": [1]}', b"\xff"])
def test_nonsense_in_the_place_of_an_index(signed: Signed, raw: bytes) -> None:
    answer = httpx.MockTransport(lambda request: httpx.Response(200, content=raw, headers={"Content-Type": INDEX}))
    client = signed.place.client(answer)
    with pytest.raises(VerificationFailed):
        verify.published([f"{signed.name}:latest"], signed.trust, tuple(Platform), client, Log(quiet=True))


def test_the_digest_that_was_asked_for(signed: Signed) -> None:
    raw = json.dumps(signed.document(signed.image.digest)).encode() + b"\n"
    answer = httpx.MockTransport(lambda request: httpx.Response(200, content=raw, headers={"Content-Type": INDEX}))
    client = signed.place.client(answer)
    reference = f"{signed.name}@{signed.image.digest}"
    with pytest.raises(VerificationFailed, match=f"the index {signed.image.digest} is not what it should be"):
        verify.published([reference], signed.trust, tuple(Platform), client, Log(quiet=True))
