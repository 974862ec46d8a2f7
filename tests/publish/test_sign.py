"""Signing with a local key, for real against a registry, and cosign's own word on it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from pipeline.core import sboms
from pipeline.core.errors import IntentError, RegistryError, VerificationFailed
from pipeline.core.log import Log
from pipeline.core.names import MANIFEST, Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import Release
from pipeline.core.sboms import Form
from pipeline.oci import layout, referrers
from pipeline.publish import sign
from pipeline.signing import bundle, statement
from pipeline.signing.bundle import Trust
from pipeline.signing.signer import KeySigner, keyless
from tests.helpers.cosigns import Cosign
from tests.helpers.images import Line, Place, running
from tests.helpers.signed import Signed, new_key

LOG = Log(quiet=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running(tmp_path_factory.mktemp("registry")) as place:
        yield place


@pytest.fixture
def signed(place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> Signed:
    name = place.name("".join(letter if letter.isalnum() else "-" for letter in request.node.name).strip("-").lower())
    while "--" in name.repository:
        name = replace(name, repository=name.repository.replace("--", "-"))
    made = Signed(place, tmp_path / "dist", name)
    made.publish()
    return made


def test_every_claim_is_signed_and_lies_beside_its_subject(signed: Signed) -> None:
    release = signed.sign()
    assert release.signed == (str(signed.name),)
    assert Release.read(signed.dist, signed.image.digest).signed == release.signed
    (only,) = signed.claims(signed.image.digest)
    assert only["artifactType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert only["annotations"]["dev.sigstore.bundle.predicateType"] == statement.SIGNATURE
    for built in signed.image.platforms.values():
        kinds = [entry["annotations"]["dev.sigstore.bundle.predicateType"] for entry in signed.claims(built.digest)]
        assert kinds == [statement.SIGNATURE, "https://spdx.dev/Document", "https://cyclonedx.org/bom"]
    signed.verify()


def test_a_second_run_sends_and_signs_nothing(signed: Signed) -> None:
    signed.sign()
    before = len(signed.line.written)
    signed.sign()
    assert signed.asked == 1
    assert len(signed.line.written) == before


def test_what_another_machine_signed_is_found_in_the_registry(signed: Signed) -> None:
    signed.sign()
    before, asked = len(signed.line.written), signed.asked
    kept = {path.name: path.read_bytes() for path in (signed.dist / "signed").glob("*.*.json")}
    for path in (signed.dist / "signed").iterdir():
        path.unlink()
    signed.sign()
    assert (len(signed.line.written), signed.asked) == (before, asked)
    assert {path.name: path.read_bytes() for path in (signed.dist / "signed").glob("*.*.json")} == kept


@pytest.mark.parametrize("after", [1, 5, 12, 20, 30, 44])
def test_an_interrupted_run_is_completed(signed: Signed, after: int) -> None:
    signed.line = Line(dies_after=after)
    with pytest.raises(RegistryError):
        signed.sign()
    assert Release.read(signed.dist, signed.image.digest).signed == ()
    signed.line = Line()
    signed.sign()
    signed.verify()
    sent = [request.url.path for request in signed.line.written if "/manifests/sha256:" in request.url.path]
    assert len(sent) == len(set(sent))


def test_several_repositories_get_the_same_bytes(place: Place, tmp_path: Path) -> None:
    names = (place.name("several/a"), place.name("several/b"))
    signed = Signed(place, tmp_path / "dist", *names)
    signed.publish()
    release = signed.sign()
    assert release.signed == tuple(map(str, names))
    assert signed.asked == 1
    lists = [referrers.entries(signed.registry(name), signed.image.digest) for name in names]
    assert lists[0] == lists[1] != []
    for name in names:
        signed.verify(f"{name}:v1.37")


def test_what_others_have_put_there_stays(signed: Signed) -> None:
    entry = {**signed.document(signed.image.digest)["manifests"][0], "annotations": {"of": "others"}}
    signed.list_claims(signed.image.digest, [entry])
    signed.sign()
    assert signed.claims(signed.image.digest)[0] == entry
    assert len(signed.claims(signed.image.digest)) == 2
    signed.verify()


def test_the_tag_of_the_list_is_somebody_elses(signed: Signed) -> None:
    signed.put(
        signed.document(signed.image.platforms[Platform.AMD64].digest), MANIFEST, referrers.tag_of(signed.image.digest)
    )
    with pytest.raises(RegistryError, match="cannot be read") as failure:
        signed.sign()
    assert "sha256-" in str(failure.value)


def test_a_registry_that_keeps_the_list_itself(signed: Signed) -> None:
    """The registry of the tests does not, so its answers are completed on their way."""
    kept: dict[str, list[dict[str, object]]] = {}
    through = signed.line

    class Listing(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            _, _, subject = request.url.path.partition("/referrers/")
            if subject:
                return httpx.Response(200, json={"schemaVersion": 2, "manifests": kept.get(subject, [])})
            raw = request.read() if request.method == "PUT" and "/manifests/sha256:" in request.url.path else b""
            answer = through.handle_request(request)
            if raw:
                document = json.loads(raw)
                entry = {"mediaType": MANIFEST, "digest": Digest.of(raw).text, "size": len(raw)}
                kept.setdefault(document["subject"]["digest"], []).append(entry)
            return answer

    registry = signed.place.registry(signed.name, Listing())  # type: ignore[arg-type]
    publication = replace(signed.publication(), registry_for=lambda _: registry)
    for _ in range(2):
        sign.run(publication, lambda: signed.signer, signed.trust)
    assert sorted(len(entries) for entries in kept.values()) == [1, 3, 3]
    assert not any(tag.startswith("sha256-") for tag in signed.registry(signed.name).tags())


def test_an_sbom_of_another_image_is_not_signed(signed: Signed) -> None:
    first, second = (sboms.path(signed.dist, platform, Form.SPDX) for platform in Platform)
    first.write_bytes(second.read_bytes())
    with pytest.raises(VerificationFailed, match=r"amd64.spdx.json is not about this image"):
        signed.sign()
    first.unlink()
    with pytest.raises(IntentError, match="nox -s sbom"):
        signed.sign()


def test_an_image_that_was_not_pushed(place: Place, signed: Signed) -> None:
    signed.names = (place.name("elsewhere"),)
    with pytest.raises(IntentError, match="is not pushed in"):
        signed.sign()
    # nor one that was there once, whatever the record says
    Release.read(signed.dist, signed.image.digest).having(pushed=str(signed.name)).write(signed.dist)
    with pytest.raises(IntentError, match="does not have this image"):
        signed.sign()


def test_a_rehearsed_image_is_not_signed_for_others(signed: Signed) -> None:
    signed.image = replace(signed.image, rehearsed=True)
    signed.names = (replace(signed.name, registry="ghcr.io"),)
    with pytest.raises(RegistryError, match="never leaves this machine"):
        signed.sign()


def test_a_signer_whom_verify_would_not_believe(signed: Signed, tmp_path: Path) -> None:
    with pytest.raises(VerificationFailed, match="verify would refuse the new signature"):
        signed.sign(new_key(tmp_path / "other"))


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_key_that_cannot_be_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(IntentError, match="cannot be read"):
        KeySigner(tmp_path / "key")
    with pytest.raises(IntentError, match="cannot be read"):
        bundle.public_key(tmp_path / "key")


def test_there_is_no_identity_outside_of_a_workflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "BUILDKITE", "SIGSTORE_ID_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(IntentError, match="no identity to sign with") as failure:
        keyless()
    assert "id-token: write" in str(failure.value)


def test_the_same_statement_gives_the_same_bundle(tmp_path: Path) -> None:
    signer = new_key(tmp_path / "key")
    output = statement.make("x", Digest.of(b"x"), statement.SIGNATURE, {})
    assert signer.sign(output) == signer.sign(output)
    assert bundle.statement(signer.sign(output), Trust(key=signer.public)) == json.loads(output)


# cosign's own word


def cosign(version: Cosign, signed: Signed, *arguments: str, key: Path | None = None) -> tuple[int, str]:
    public = (key or signed.key).with_suffix(".pub")
    return version.run(arguments[0], "--key", str(public), "--insecure-ignore-tlog=true", *arguments[1:])


def test_cosign_accepts_the_signatures(cosigns: dict[int, Cosign], signed: Signed) -> None:
    signed.sign()
    for digest in (signed.image.digest, *(built.digest for built in signed.image.platforms.values())):
        code, output = cosign(cosigns[3], signed, "verify", f"{signed.name}@{digest}")
        assert code == 0, output
        assert digest.text in output
    code, output = cosign(cosigns[3], signed, "verify", f"{signed.name}:latest")
    assert code == 0, output


def test_cosign_accepts_the_sboms(cosigns: dict[int, Cosign], signed: Signed) -> None:
    signed.sign()
    for platform, built in signed.image.platforms.items():
        for kind, form in (("spdxjson", Form.SPDX), ("cyclonedx", Form.CYCLONEDX)):
            reference = f"{signed.name}@{built.digest}"
            code, output = cosign(cosigns[3], signed, "verify-attestation", "--type", kind, reference)
            assert code == 0, output
            line = next(line for line in output.splitlines() if line.startswith("{"))
            predicate = json.loads(base64.b64decode(json.loads(line)["payload"]))["predicate"]
            assert predicate == json.loads(sboms.path(signed.dist, platform, form).read_text(encoding="utf-8"))


def test_cosign_refuses_another_key(cosigns: dict[int, Cosign], signed: Signed, tmp_path: Path) -> None:
    signed.sign()
    new_key(tmp_path / "other.key")
    code, output = cosign(cosigns[3], signed, "verify", f"{signed.name}:latest", key=tmp_path / "other.key")
    assert code != 0
    assert "signature" in output


def test_cosign_refuses_an_image_that_was_changed(cosigns: dict[int, Cosign], signed: Signed) -> None:
    signed.sign()
    signed.replace_index(lambda index: index["annotations"].update(changed="yes"))
    code, output = cosign(cosigns[3], signed, "verify", f"{signed.name}:latest")
    assert code != 0
    assert "no signatures found" in output


def test_cosign_refuses_a_bundle_that_was_changed(cosigns: dict[int, Cosign], signed: Signed) -> None:
    signed.sign()
    (entry,) = signed.claims(signed.image.digest)
    raw = signed.registry(signed.name).manifest(entry["digest"])
    assert raw is not None
    path = signed.place.blob(Digest(json.loads(raw.raw)["layers"][0]["digest"]))
    path.write_bytes(path.read_bytes().replace(b'"payload":"e', b'"payload":"f'))
    code, _ = cosign(cosigns[3], signed, "verify", f"{signed.name}:latest")
    assert code != 0


def test_cosign_2_reads_the_sboms_but_no_signatures(cosigns: dict[int, Cosign], signed: Signed) -> None:
    """docs/verify.md asks for cosign 3, for this reason."""
    signed.sign()
    code, output = cosign(cosigns[2], signed, "verify", "--new-bundle-format", f"{signed.name}:latest")
    assert (code, "no signatures found" in output) == (10, True)
    reference = f"{signed.name}@{signed.image.platforms[Platform.AMD64].digest}"
    # It asks for Sigstore's trust root, over the network, though a key needs none.
    root = signed.dist / "root.json"
    root.write_text('{"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}', encoding="ascii")
    options = ("--new-bundle-format", "--trusted-root", str(root), "--type", "spdxjson")
    code, output = cosign(cosigns[2], signed, "verify-attestation", *options, reference)
    assert code == 0, output


def test_the_layout_is_left_alone(signed: Signed) -> None:
    signed.sign()
    layout.read(signed.dist / "image", signed.image.digest).verify()
