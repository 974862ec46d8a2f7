"""Smoke on a real engine with a small image: loading keeps every byte, commands are asked, a red boot cleans up."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from python_on_whales import DockerClient

from pipeline import smoke
from pipeline.core.errors import IntentError, LockStale, SmokeFailed
from pipeline.core.log import Log
from pipeline.core.names import INDEX, MANIFEST, Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import BuiltPlatform, Image, SmokeReport, State, Tier
from pipeline.engine.engine import Engine
from pipeline.engine.engines import Engines
from pipeline.oci import layout as layouts
from pipeline.smoke import commands, load
from pipeline.smoke.booted import BootOptions
from tests.helpers.examples import LOCK, VERSIONS

pytestmark = pytest.mark.engine
HOST = Platform.host() or Platform.AMD64
PROGRAMS = ("sh", "cat", "sleep", "timeout", "uname")
SCRIPTS = (
    *("doctor", "wait-ready", "iptables"),
    "dockerd",
    "docker",
    "containerd",
    "ctr",
    "runc",
    "docker-init",
    "kubectl",
    "k3s",
    "supervisord",
    "python3",
)


@pytest.fixture
def docker(request: pytest.FixtureRequest) -> DockerClient:
    """The engine that DIND_K3S_TEST_ENGINE names (a docker host), else the tests' own."""
    if host := os.environ.get("DIND_K3S_TEST_ENGINE"):
        return DockerClient(host=host, client_call=[shutil.which("docker") or "docker"])
    own: DockerClient = request.getfixturevalue("engine")
    return own


class Small:
    """dist/ with an image of this machine's own files, whose programs say their versions and nothing more."""

    def __init__(self, dist: Path, seed: str) -> None:
        self.dist = dist
        self.scripts = dict.fromkeys(SCRIPTS, f"echo version {' '.join(VERSIONS.values())}")
        self.scripts["entrypoint"] = f"echo '{seed}: nothing to start'; exit 3"
        self.blobs = dist / "image" / "blobs" / "sha256"
        self.blobs.mkdir(parents=True)

    def put(self, data: bytes, media_type: str) -> dict[str, object]:
        (self.blobs / Digest.of(data).hex).write_bytes(data)
        return {"mediaType": media_type, "digest": Digest.of(data).text, "size": len(data)}

    def build(self) -> Image:
        """An index of this machine's platform, and of the other one with the same content."""
        plain = self._archive()
        layer = self.put(gzip.compress(plain, 1, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")
        built = {}
        entries = []
        for platform in Platform:
            at = {"os": "linux", "architecture": platform.architecture}
            settings = {"Entrypoint": ["/usr/local/sbin/dind-k3s-entrypoint"], "Env": ["PATH=/usr/local/bin:/bin"]}
            unpacked = {"type": "layers", "diff_ids": [Digest.of(plain).text]}
            described = json.dumps({**at, "config": settings, "rootfs": unpacked}).encode()
            config = self.put(described, "application/vnd.oci.image.config.v1+json")
            manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
            entry = self.put(json.dumps(manifest).encode(), MANIFEST)
            entries.append({**entry, "platform": at})
            built[platform] = BuiltPlatform(
                digest=Digest(str(entry["digest"])), config=Digest(str(config["digest"])), size=1
            )
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        return Image(
            digest=Digest(str(self.put(json.dumps(index).encode(), INDEX)["digest"])),
            inputs=Digest.of(plain),
            lock=LOCK.digest,
            platforms=built,
            annotations={},
            rehearsed=True,
        )

    def _archive(self) -> bytes:
        files: dict[str, bytes] = {}
        for found in filter(None, map(shutil.which, PROGRAMS)):
            files[f"bin/{Path(found).name}"] = Path(found).read_bytes()
            listed = subprocess.run(["ldd", found], capture_output=True, text=True, check=True).stdout
            for library in re.findall(r"(/\S+)", listed):
                files[library.lstrip("/")] = Path(library).read_bytes()
        for name, script in self.scripts.items():
            files[f"usr/local/bin/{name}"] = f"#!/bin/sh\n{script}\n".encode()
        files["usr/local/sbin/dind-k3s-entrypoint"] = (
            b'#!/bin/sh\n[ $# = 0 ] || exec "$@"\nexec /usr/local/bin/entrypoint\n'
        )
        files["bin/echo"] = b'#!/bin/sh\necho "$@"\n'
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as archive:
            for name, data in sorted(files.items()):
                member = tarfile.TarInfo(name)
                member.mode, member.size = 0o755, len(data)
                archive.addfile(member, io.BytesIO(data))
        return raw.getvalue()

    def smoke(self, docker: DockerClient, image: Image, *tiers: Tier, log: Log | None = None) -> SmokeReport:
        own = Engine(docker=docker, builder=None, description="the tests' own", platform=HOST)
        request = smoke.Request(
            image=image,
            lock=LOCK,
            dist=self.dist,
            platforms=[HOST],
            tiers=tiers,
            engines=Engines(lock=LOCK, cache=self.dist, log=Log(quiet=True), start=lambda: own),
            log=log or Log(quiet=True),
            options=lambda *_: BootOptions(),
        )
        return smoke.run(request)[0]


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path / "dist", tmp_path.name)


def forget(docker: DockerClient, image: Image) -> None:
    for name in docker.image.list():
        for tag in name.repo_tags:
            if image.digest.hex[:16] in tag:
                docker.image.remove(tag, force=True)


def ours(docker: DockerClient) -> list[str]:
    names = [container.name for container in docker.container.list(all=True)]
    names += [volume.name for volume in docker.volume.list()]
    return [name for name in names if name.startswith("smoke-")]


def test_loading_keeps_the_digest_and_happens_once(
    docker: DockerClient, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    image = small.build()
    layout = layouts.read(small.dist / "image", image.digest)
    try:
        for platform in Platform:
            loaded = load.run(docker, layout, image, platform, Log())
        assert capsys.readouterr().err.count("the engine has the image already") in (0, 1)
        again = load.run(docker, layout, image, Platform.ARM64, Log())
        assert again == loaded
        assert "the engine has the image already" in capsys.readouterr().err
        assert docker.image.inspect(loaded.name).id in (image.digest.text, loaded.built.config.text)
    finally:
        forget(docker, image)


def test_of_what_was_loaded_the_last_few_stay_and_what_is_used(
    docker: DockerClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "KEPT", 2)
    images, names, used = [], [], []
    try:
        for number in range(4):
            small = Small(tmp_path / str(number), f"{tmp_path.name} {number}")
            images.append(image := small.build())
            layout = layouts.read(small.dist / "image", image.digest)
            names.append(load.run(docker, layout, image, HOST, Log(quiet=True)).name)
            if not number:
                used.append(docker.run(names[0], ["/bin/sleep", "600"], platform=HOST.value, detach=True))
        assert [docker.image.exists(name) for name in names] == [True, False, True, True]
    finally:
        for container in used:
            container.remove(force=True)
        for image in images:
            forget(docker, image)


def test_commands_pass_and_hang_and_leave_nothing(
    docker: DockerClient, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = small.build()
    before = ours(docker)
    try:
        ended = small.smoke(docker, image, Tier.COMMANDS)
        assert f"it runs {image.platforms[HOST].digest}" in ended.tiers[0].checks[0].detail
    finally:
        forget(docker, image)
    monkeypatch.setattr(commands, "_TRIES", 1)
    monkeypatch.setattr(commands, "_SECONDS", 1.0)
    monkeypatch.setattr(commands, "_GRACE", 1.0)
    small.scripts["supervisord"] = "sleep 1000"
    # As under an emulator that stalls: not even timeout(1) ends.
    small.scripts["timeout"] = 'case "$*" in *doctor*) exec sleep 1000 ;; esac; exec /bin/timeout "$@"'
    image = small.build()
    try:
        with pytest.raises(SmokeFailed, match="supervisord --version: no end within 1 s"):
            small.smoke(docker, image, Tier.COMMANDS)
    finally:
        forget(docker, image)
    last = SmokeReport.read(small.dist, HOST).tiers[0].checks[-1]
    assert (last.name, last.state) == ("doctor --help", State.FAILED)
    assert "so the container was killed" in last.detail
    assert ours(docker) == before


def test_a_container_that_ends_at_once_is_told_with_its_last_words(docker: DockerClient, small: Small) -> None:
    image = small.build()
    before = ours(docker)
    try:
        with pytest.raises(SmokeFailed, match=r"the container has ended: .*nothing to start") as failed:
            small.smoke(docker, image, Tier.BOOT)
    finally:
        forget(docker, image)
    assert failed.value.exit_code == 8
    assert ours(docker) == before
    report = SmokeReport.read(small.dist, HOST)
    assert report.state(Tier.BOOT) == State.FAILED
    assert "nothing to start" in (small.dist / "smoke" / f"{HOST.architecture}-boot.log").read_text()
    assert [check.state for tier in report.tiers for check in tier.checks].count(State.FAILED) == 1


def test_another_lock_or_platform_than_was_built_is_refused(docker: DockerClient, small: Small) -> None:
    image = small.build()
    with pytest.raises(LockStale, match="built from another lock"):
        small.smoke(docker, replace(image, lock=image.digest), Tier.FILES)
    other = {platform: built for platform, built in image.platforms.items() if platform != HOST}
    with pytest.raises(IntentError, match=f"the built image has no {HOST}"):
        small.smoke(docker, replace(image, platforms=other), Tier.FILES)
