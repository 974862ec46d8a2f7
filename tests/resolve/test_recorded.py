"""Recorded responses of the vendors (tests/data/upstream/recorded/), parsed by the pipeline."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.core.errors import UpstreamError, VerificationFailed
from pipeline.core.log import Log
from pipeline.core.names import INDEX, MANIFEST, Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.fetch import base
from pipeline.http import transport
from pipeline.inputs.lock import Base
from pipeline.oci.registry import Registry
from pipeline.resolve import upstream
from pipeline.signing import signature
from tests.helpers.examples import PUBLISHED
from tests.helpers.vendors import RECORDED

FOLDER = RECORDED / "recorded"


def recorded(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def test_each_recording_is_documented() -> None:
    documented = (RECORDED / "README.md").read_text(encoding="utf-8").partition("## Trimmed")[0]
    for path in FOLDER.iterdir():
        assert f"| {path.name} |" in documented


@pytest.mark.parametrize(
    ("channel", "version"),
    [
        ("stable", "v1.25.6+k3s1"),
        ("latest", "v1.26.1+k3s1"),
        ("v1.26", "v1.26.1+k3s1"),
        ("v1.24", "v1.24.10+k3s1"),
        ("v1.16", "v1.16.15+k3s1"),
    ],
)
def test_k3ss_channels(channel: str, version: str) -> None:
    assert upstream.k3s_channel(recorded("k3s-channels.json"), channel) == version


@pytest.mark.parametrize("channel", ["testing", "v1.16-testing", "v1.17-testing", "v1.18-testing"])
def test_k3ss_channels_of_candidates(channel: str) -> None:
    assert channel in recorded("k3s-channels.json")
    with pytest.raises(UpstreamError, match="points to no release"):
        upstream.k3s_channel(recorded("k3s-channels.json"), channel)


def test_k3ss_checksums() -> None:
    text = recorded("k3s-sha256sum-amd64.txt")
    assert upstream.checksum(text, "k3s").hex == "86945269160fdd1bbd06283ea5b3bafd6c0ec0d1df3ac68ad3686656632081a5"
    with pytest.raises(UpstreamError, match="does not list k3s-arm64"):
        upstream.checksum(text, "k3s-arm64")


def test_kubectls_checksum() -> None:
    digest = upstream.checksum(recorded("kubectl-1.32.2-amd64.sha256"), "")
    assert digest.hex == "4f6a959dcc5b702135f8354cc7109b542a2933c46b808b248a214c1f69f817ea"


def test_githubs_record_of_a_release() -> None:
    assert upstream.assets(recorded("github-release.json")) == {
        "Mimic-0.10.0.pkg": Digest.of_hex("2213186b58dc26c199d7948a34694e9ef3965a2a3c429c62b642463b02c299f8")
    }


def test_debians_index_and_manifest_through_a_registry(tmp_path: Path) -> None:
    index = (FOLDER / "debian-trixie-slim-s390x.index.json").read_bytes()
    entry = json.loads(index)["manifests"][0]
    manifest = base64.b64decode(entry["data"])
    served = {f"/v2/library/debian/manifests/{Digest.of(raw)}": raw for raw in (index, manifest)}

    def answer(request: httpx.Request) -> httpx.Response:
        raw = served[request.url.path]
        return httpx.Response(200, content=raw, headers={"Content-Type": INDEX if raw is index else MANIFEST})

    name = ImageName(registry="docker.io", repository="library/debian")
    with transport.make_client(httpx.MockTransport(answer)) as client:
        registry = Registry(client, name)
        described = registry.manifest(entry["digest"])
        assert described is not None
        assert described.digest.text == "sha256:051787f410904dc6260467a33d225071e50a71f7736721c5fb0ebb0a920c22c0"
        assert len(described.raw) == entry["size"] == 1021
        config, (layer,) = json.loads(described.raw)["config"], json.loads(described.raw)["layers"]
        assert Digest.of(base64.b64decode(config["data"])).text == config["digest"]
        assert (layer["size"], layer["digest"][:19]) == (29_867_719, "sha256:3b49fae03f57")
        lock = Base(image=f"{name}:trixie-slim", digest=Digest.of(index), evidence=PUBLISHED)
        with pytest.raises(UpstreamError, match="has no linux/amd64"):
            base.fetch(lock, [Platform.AMD64], registry, tmp_path, Log(quiet=True))


# The workflow that asked for it; the reusable one that signed belongs to bdehamer/workflows.
WORKFLOW = signature.Workflow(repository="https://github.com/malancas/attest-demo", ref="refs/heads/main")
SIGNED = Digest.of_hex("07e4b8c0e3580b3e4a1eb62c70f1ffb86004d3d94f50767cb404fa7a639b4d05")


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def check(bundle: bytes, digest: Digest = SIGNED, workflow: signature.Workflow = WORKFLOW) -> None:
    signature.check_bundle(bundle, digest=digest, workflow=workflow, root=signature.trust())


@pytest.mark.usefixtures("_own_cache")
def test_a_signed_statement_of_a_reusable_workflow() -> None:
    bundle = recorded("reusable-workflow.sigstore.json").encode()
    check(bundle)
    with pytest.raises(VerificationFailed, match="about other files"):
        check(bundle, digest=Digest.of(b"another file"))
    for other in (
        replace(WORKFLOW, repository="https://github.com/bdehamer/workflows"),
        replace(WORKFLOW, repository="https://github.com/docker/buildx"),
        replace(WORKFLOW, ref="refs/tags/v0.36.1"),
    ):
        with pytest.raises(VerificationFailed, match="the bundle is invalid"):
            check(bundle, workflow=other)


@pytest.mark.usefixtures("_own_cache")
def test_a_statement_that_was_changed_after_signing() -> None:
    bundle: dict[str, Any] = json.loads(recorded("reusable-workflow.sigstore.json"))
    envelope = bundle["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["subject"][0]["digest"]["sha256"] = Digest.of(b"another file").hex
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    with pytest.raises(VerificationFailed, match="the bundle is invalid"):
        check(json.dumps(bundle).encode(), digest=Digest.of(b"another file"))
