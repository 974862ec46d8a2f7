"""The build stage with a recording docker executable: the call of buildx, and what is made of its output."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from python_on_whales import DockerClient

from pipeline.build import build, context
from pipeline.core.cache import path_of
from pipeline.core.errors import BuildFailed, UpstreamError
from pipeline.core.log import Log
from pipeline.core.names import INDEX, MANIFEST, Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import Image, Variant
from pipeline.engine.engine import Engine
from pipeline.inputs.lock import Lock
from pipeline.inputs.versions import Intent
from tests.helpers.examples import AIRGAP_LOCK, INTENT, LOCK, artifact

# In place of docker: records its arguments, exports a layout as buildx does, prints progress.
DOCKER = """#!{python}
import json, os, pathlib, sys
folder = pathlib.Path({folder!r})
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps([sys.argv[1:], os.getcwd()]) + "\\n")
targets = json.loads(pathlib.Path(sys.argv[sys.argv.index("--file") + 1]).read_text())["target"]
artifacts = pathlib.Path(targets["image"]["contexts"]["artifacts"])
for arch in ("amd64", "arm64"):
    assert (artifacts / arch / "k3s").exists()
    assert ("airgap" in targets) == (artifacts / arch / "airgap" / f"k3s-airgap-images-{{arch}}.tar.zst").exists()
if (folder / "fail").exists():
    print(json.dumps({{"vertexes": [{{"digest": "d", "name": "[image 1/1] RUN x", "error": "exit code: 3",
                                     "completed": "2026-11-22T00:00:00Z"}}]}}), file=sys.stderr)
    sys.exit(1)
import shutil
for name in (word for word in sys.argv if word in targets):
    dest = dict(part.split("=") for part in targets[name]["output"][0].split(","))["dest"]
    shutil.copytree(folder / name, dest)
print(json.dumps({{"vertexes": [{{"digest": "d", "name": "[image 1/1] COPY", "cached": True,
                                 "completed": "2026-11-22T00:00:00Z"}}]}}), file=sys.stderr)
"""


class Built:
    """A repository, a filled cache and the recording docker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "repository"
        (self.root / "rootfs").mkdir(parents=True)
        for name in ("Dockerfile", ".dockerignore", "rootfs/entrypoint"):
            (self.root / name).write_text(name, encoding="utf-8")
        self.cache = folder / "cache"
        (self.cache / "sha256").mkdir(parents=True)
        for name in INTENT.components:
            for platform in Platform:
                self.put(f"{name} for {platform}".encode())
        for platform in Platform:
            self.put(f"iptables for {platform}".encode())
            self.put(f"system images for {platform}".encode())
        self.base = self._image(self.cache / "sha256")
        self.index = self.exports(Variant.IMAGE)
        self.exports(Variant.AIRGAP, "system images")
        executable = folder / "docker"
        executable.write_text(DOCKER.format(python=sys.executable, folder=str(folder)), encoding="utf-8")
        executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
        self.asked = 0  # for an engine
        self.engine = Engine(
            docker=DockerClient(client_call=[str(executable)]),
            builder="default",
            description="a recording",
            platform=Platform.host(),
        )

    def put(self, data: bytes) -> None:
        path_of(self.cache, Digest.of(data)).write_bytes(data)

    def exports(self, variant: Variant, *above: str, lowest: str = "layer") -> Digest:
        """Let buildx export an image with these layers for a target; return its digest."""
        layout = self.folder / variant / "blobs" / "sha256"
        layout.mkdir(parents=True, exist_ok=True)
        index = self._image(layout, lowest, *above)
        listed = {"digest": index.text, "size": (layout / index.hex).stat().st_size}
        (self.folder / variant / "index.json").write_text(json.dumps({"manifests": [listed]}))
        return index

    def _image(self, blobs: Path, *layers: str) -> Digest:
        def put(data: bytes) -> dict[str, object]:
            (blobs / Digest.of(data).hex).write_bytes(data)
            return {"digest": Digest.of(data).text, "size": len(data), "mediaType": "application/octet-stream"}

        manifests = []
        for platform in Platform:
            manifest = {
                "config": put(f"config {platform} {blobs}".encode()),
                "layers": [put(layer.encode()) for layer in layers],
            }
            entry = put(json.dumps(manifest).encode())
            entry |= {"mediaType": MANIFEST, "platform": {"os": "linux", "architecture": platform.architecture}}
            manifests.append(entry)
        data = json.dumps({"mediaType": INDEX, "manifests": manifests}).encode()
        (blobs / Digest.of(data).hex).write_bytes(data)
        return Digest.of(data)

    def run(self, lock: Lock = LOCK) -> Image:
        return self.run_all(lock)[Variant.IMAGE]

    def run_all(self, lock: Lock, intent: Intent | None = None, *, log: Log | None = None) -> Mapping[Variant, Image]:
        lock = replace(lock, base=replace(lock.base, digest=self.base))
        intent = intent or replace(INTENT, variants=lock.variants[1:])
        job = build.Job(
            intent=intent, lock=lock, root=self.root, dist=self.root / "dist", cache=self.cache, rehearsed=True
        )
        return build.run(job, self._ask, log or Log(quiet=True))

    def _ask(self) -> Engine:
        self.asked += 1
        return self.engine

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line)[0] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return Built(tmp_path)


def test_one_call_of_buildx_for_all_platforms(built: Built) -> None:
    image = built.run()
    assert [call[:2] for call in built.calls] == [["buildx", "bake"]]
    assert image.digest == built.index
    assert set(image.platforms) == set(Platform)
    assert image == Image.read(built.root / "dist")


def test_the_same_inputs_are_not_built_again(built: Built) -> None:
    first = built.run()
    assert built.run() == first
    assert len(built.calls) == 1
    assert built.asked == 1, "no engine is started for nothing"


def test_another_guest_needs_no_build(built: Built) -> None:
    first = built.run()
    assert built.run(replace(LOCK, guest=LOCK.guest[:1])) == first
    assert len(built.calls) == 1


def test_a_changed_file_of_rootfs_is_built(built: Built) -> None:
    built.run()
    (built.root / "rootfs" / "entrypoint").chmod(0o755)
    built.run()
    assert len(built.calls) == 2


def test_byte_code_in_rootfs_is_ignored(built: Built) -> None:
    built.run()
    left = built.root / "rootfs" / "__pycache__"
    left.mkdir()
    (left / "x.cpython-313.pyc").write_bytes(b"x")
    built.run()
    assert len(built.calls) == 1


def test_a_damaged_layout_is_built_again(built: Built) -> None:
    image = built.run()
    (built.root / "dist/image/blobs/sha256" / image.digest.hex).unlink()
    built.run()
    assert len(built.calls) == 2


def test_a_failure_names_the_step_and_keeps_the_last_image(built: Built) -> None:
    image = built.run()
    (built.folder / "fail").touch()
    (built.root / "Dockerfile").write_text("changed", encoding="utf-8")
    with pytest.raises(BuildFailed, match=r"\[image 1/1\] RUN x") as failure:
        built.run()
    assert "exit code: 3" in str(failure.value)
    assert (built.root / "dist/image/blobs/sha256" / image.digest.hex).exists()


def test_a_file_that_was_not_fetched_is_named(built: Built) -> None:
    path_of(built.cache, artifact("k3s", Platform.ARM64).digest).unlink()
    with pytest.raises(UpstreamError, match="nox -s fetch"):
        built.run()


def test_a_variant_is_another_target_of_the_same_call(built: Built) -> None:
    images = built.run_all(AIRGAP_LOCK)
    (call,) = built.calls
    assert call[-2:] == ["image", "airgap"]
    for variant, image in images.items():
        assert Image.read(variant.below(built.root / "dist")) == image
        assert image.variant is variant
    assert built.run_all(AIRGAP_LOCK) == images
    assert len(built.calls) == 1
    # a common layer is one file in two folders
    layer = Digest.of(b"layer").hex
    first, second = (variant.below(built.root / "dist") / "image/blobs/sha256" / layer for variant in images)
    assert first.samefile(second)


def test_a_variant_has_the_layers_of_the_image_and_one_more(built: Built) -> None:
    built.exports(Variant.AIRGAP, "system images", lowest="the same layer, built again with other bytes")
    with pytest.raises(BuildFailed, match="is not the image and one layer more"):
        built.run_all(AIRGAP_LOCK)
    assert not (built.root / "dist/airgap/image.json").exists()


def test_a_variant_without_its_files_is_a_warning(built: Built, capfd: pytest.CaptureFixture[str]) -> None:
    intent = replace(INTENT, variants=(Variant.AIRGAP,))
    assert set(built.run_all(LOCK, intent, log=Log())) == {Variant.IMAGE}
    log = " ".join("".join(capfd.readouterr()).split())
    assert "without airgap: the lock lacks its files for linux/amd64, linux/arm64; nox -s resolve" in log


def test_the_manifest_of_the_variant_names_the_system_images_too(built: Built) -> None:
    lock = replace(AIRGAP_LOCK, base=replace(LOCK.base, digest=built.base))
    context.prepare(INTENT, lock, built.cache, built.folder / "context", Log(quiet=True))
    for platform in Platform:
        folder = built.folder / "context/artifacts" / platform.architecture
        image, airgap = (json.loads((folder / name).read_text()) for name in ("manifest.json", "airgap/manifest.json"))
        assert airgap[:-1] == image
        assert airgap[-1]["component"] == "k3s-airgap-images"
        assert airgap[-1]["version"] == AIRGAP_LOCK.versions["k3s"]
        assert airgap[-1]["sha256"] == Digest.of(f"system images for {platform}".encode()).hex
