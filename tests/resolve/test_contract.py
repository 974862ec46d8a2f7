"""Requests to the vendors: `resolve` can parse what they publish today.

Deselected unless asked for, because it needs the internet: `nox -s tests -- -m contract`. The weekly workflow does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from pipeline import components
from pipeline.components import COMPONENTS
from pipeline.core.log import Log
from pipeline.core.names import Digest, ImageName
from pipeline.core.platforms import Platform
from pipeline.http import transport
from pipeline.inputs import compat, lock, versions
from pipeline.inputs.versions import UPSTREAM
from pipeline.oci.registry import Registry
from pipeline.resolve import channels, upstream
from pipeline.resolve.origins import Head, Origins
from pipeline.resolve.witnesses import Witnesses
from pipeline.signing import signature
from tests.helpers.vendors import CHANNELS

pytestmark = pytest.mark.contract
ROOT = Path(__file__).resolve().parents[2]
INTENT = versions.read(ROOT / "versions.yaml")


@pytest.fixture(scope="module")
def origins() -> Iterator[Origins]:
    with transport.make_client() as client:
        asked = replace(
            INTENT, components={**CHANNELS, "docker": "latest", "compose": "latest"}, upstream=dict(UPSTREAM)
        )
        yield Origins(asked, client, Log())


FILES = (*COMPONENTS, components.AIRGAP)


@pytest.fixture(scope="module")
def chosen(origins: Origins) -> dict[str, str]:
    """Component → version; k3s's system images have k3s's."""
    selected = channels.choose(origins, None, datetime.now(UTC))
    return {**selected, components.AIRGAP: selected["k3s"]}


def test_every_channel_has_a_compatible_release(chosen: dict[str, str]) -> None:
    assert set(chosen) == set(FILES)
    for component in COMPONENTS:
        assert components.is_exact(component, chosen[component])
    compat.check(chosen)


@pytest.mark.parametrize("component", FILES)
@pytest.mark.parametrize("platform", Platform)
def test_every_file_has_a_size_and_a_date(
    origins: Origins, chosen: dict[str, str], component: str, platform: Platform
) -> None:
    where = components.published(component, chosen[component], platform)
    head = origins.head(origins.url(where.origin, where.path), component)
    assert isinstance(head, Head)
    assert head.size is not None
    assert head.size > 10_000_000
    assert head.released is not None
    assert timedelta(0) < datetime.now(UTC) - head.released < timedelta(days=1000)


@pytest.mark.parametrize("component", [name for name in FILES if name != "docker"])
@pytest.mark.parametrize("platform", Platform)
def test_every_checksum_file_lists_the_file(
    origins: Origins, chosen: dict[str, str], component: str, platform: Platform
) -> None:
    where = components.published(component, chosen[component], platform)
    assert where.checksums is not None
    upstream.checksum(origins.text(where.origin, where.checksums, component), where.name)


def test_docker_still_publishes_no_checksum(origins: Origins, chosen: dict[str, str]) -> None:
    where = components.published("docker", chosen["docker"], Platform.AMD64)
    url = origins.url(where.origin, where.path)
    assert origins.content(f"{url}.sha256", "a checksum that would be news") is None


def test_k3ss_channels(origins: Origins) -> None:
    assert upstream.k3s_channel(origins.text("k3s-channels", upstream.CHANNELS_PATH, "the channels"), "stable")


@pytest.mark.parametrize("platform", Platform)
def test_kubectl_is_signed_by_kubernetes(origins: Origins, chosen: dict[str, str], platform: Platform) -> None:
    where = components.published("kubectl", chosen["kubectl"], platform)
    assert where.checksums is not None
    url = origins.url(where.origin, where.path)
    signed, certificate = (origins.content(f"{url}.{name}", name) for name in ("sig", "cert"))
    assert signed is not None
    assert certificate is not None
    signature.check_pair(
        certificate=certificate,
        signature=signed,
        digest=upstream.checksum(origins.text(where.origin, where.checksums, "the checksum"), ""),
        identity=signature.KUBERNETES,
        issuer=signature.GOOGLE,
        authorities=signature.trust().get_fulcio_certs(),
    )


@pytest.mark.parametrize("platform", Platform)
def test_buildx_is_signed_by_its_workflow(origins: Origins, chosen: dict[str, str], platform: Platform) -> None:
    where = components.published("buildx", chosen["buildx"], platform)
    assert where.signature is not None
    assert where.checksums is not None
    raw = origins.content(origins.url(where.origin, where.signature), "the bundle")
    assert raw is not None
    workflow = signature.Workflow(
        repository="https://github.com/docker/buildx",
        ref=f"refs/tags/{components.BUILDX.release_tag(chosen['buildx'])}",
    )
    digest = upstream.checksum(origins.text(where.origin, where.checksums, "the checksums"), where.name)
    signature.check_bundle(raw, digest=digest, workflow=workflow, root=signature.trust())


@pytest.mark.parametrize("component", ["buildx", "compose", "k3s"])
def test_github_records_the_digests(origins: Origins, chosen: dict[str, str], component: str) -> None:
    recorded = origins.assets(component, chosen[component])
    for platform in Platform:
        where = components.published(component, chosen[component], platform)
        assert where.checksums is not None
        listed = upstream.checksum(origins.text(where.origin, where.checksums, component), where.name)
        assert recorded[where.name] == listed


def test_the_base_image_has_an_index_with_every_platform() -> None:
    name, tag, _ = ImageName.parse(INTENT.base)
    with transport.make_client() as client:
        index = Registry(client, name).manifest(tag or "latest")
    assert index is not None
    assert index.digest == Digest.of(index.raw)
    for platform in INTENT.platforms:
        assert platform.architecture.encode() in index.raw


@pytest.mark.parametrize("platform", Platform)
def test_the_committed_lock_matches_upstream(origins: Origins, tmp_path: Path, platform: Platform) -> None:
    """The digests of docker in the lock were only recorded by others: hash its files."""
    committed = lock.parse((ROOT / "versions.lock.yaml").read_text(encoding="utf-8"), "versions.lock.yaml")
    (tmp_path / "sha256").mkdir()
    with Log().transfers() as transfers:
        today = datetime.now(UTC).date().isoformat()
        witnesses = Witnesses(origins=origins, cache=tmp_path, transfers=transfers, today=today)
        for file in committed.artifacts:
            if file.platform == platform:
                there = witnesses.file(file.component, file.version, platform, None)
                assert there.digest == file.digest, file.component


@pytest.mark.parametrize("base", INTENT.witnesses["docker"])
def test_a_witness_of_docker_has_files_of_the_same_sizes(origins: Origins, chosen: dict[str, str], base: str) -> None:
    for platform in Platform:
        where = components.published("docker", chosen["docker"], platform)
        ours = origins.head(origins.url("docker", where.path), "docker")
        there = httpx.head(f"{base}/{where.path}", follow_redirects=True, timeout=60)
        assert ours is not None
        assert there.headers["Content-Length"] == str(ours.size)
        assert there.url.host != "download.docker.com"
