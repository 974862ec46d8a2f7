"""The build stage against a recording docker executable: what buildx is asked for, and what is made of its answer."""

from __future__ import annotations

import json
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from python_on_whales import DockerClient

from pipeline import build
from pipeline.cache import path_of
from pipeline.engine import Engine
from pipeline.errors import BuildFailed, UpstreamError
from pipeline.lock import Lock
from pipeline.log import Log
from pipeline.oci import INDEX, MANIFEST, Digest
from pipeline.platforms import Platform
from pipeline.release import Image
from tests.examples import INTENT, LOCK, artifact

# Stands for docker: writes the argv down, exports a layout as buildx would, streams two lines of progress.
DOCKER = """#!{python}
import json, os, pathlib, sys
folder = pathlib.Path({folder!r})
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps([sys.argv[1:], os.getcwd()]) + "\\n")
bake = json.loads(pathlib.Path(sys.argv[sys.argv.index("--file") + 1]).read_text())["target"]["image"]
for arch in ("amd64", "arm64"):
    assert (pathlib.Path(bake["contexts"]["artifacts"]) / arch / "k3s").exists()
if (folder / "fail").exists():
    print(json.dumps({{"vertexes": [{{"digest": "d", "name": "[image 1/1] RUN x", "error": "exit code: 3",
                                     "completed": "2026-11-22T00:00:00Z"}}]}}), file=sys.stderr)
    sys.exit(1)
dest = dict(part.split("=") for part in bake["output"][0].split(","))["dest"]
import shutil
shutil.copytree(folder / "layout", dest)
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
        self.base = self._image(self.cache / "sha256")
        layout = folder / "layout" / "blobs" / "sha256"
        layout.mkdir(parents=True)
        self.index = self._image(layout)
        (folder / "layout" / "index.json").write_text(
            json.dumps({"manifests": [{"digest": self.index.text, "size": (layout / self.index.hex).stat().st_size}]})
        )
        executable = folder / "docker"
        executable.write_text(DOCKER.format(python=sys.executable, folder=str(folder)), encoding="utf-8")
        executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
        self.engine = Engine(
            docker=DockerClient(client_call=[str(executable)]),
            builder="default",
            description="a recording",
            platform=Platform.host(),
        )

    def put(self, data: bytes) -> None:
        path_of(self.cache, Digest.of(data)).write_bytes(data)

    def _image(self, blobs: Path) -> Digest:
        def put(data: bytes) -> dict[str, object]:
            (blobs / Digest.of(data).hex).write_bytes(data)
            return {"digest": Digest.of(data).text, "size": len(data), "mediaType": "application/octet-stream"}

        manifests = []
        for platform in Platform:
            manifest = {"config": put(f"config {platform} {blobs}".encode()), "layers": [put(b"layer")]}
            entry = put(json.dumps(manifest).encode())
            entry |= {"mediaType": MANIFEST, "platform": {"os": "linux", "architecture": platform.architecture}}
            manifests.append(entry)
        data = json.dumps({"mediaType": INDEX, "manifests": manifests}).encode()
        (blobs / Digest.of(data).hex).write_bytes(data)
        return Digest.of(data)

    def run(self, lock: Lock = LOCK) -> Image:
        lock = replace(lock, base=replace(lock.base, digest=self.base))
        return build.run(
            INTENT,
            lock,
            root=self.root,
            dist=self.root / "dist",
            cache=self.cache,
            engine=self.engine,
            log=Log(quiet=True),
            rehearsed=True,
        )

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


def test_another_guest_is_no_other_image(built: Built) -> None:
    first = built.run()
    assert built.run(replace(LOCK, guest=LOCK.guest[:1])) == first
    assert len(built.calls) == 1


def test_a_changed_file_of_rootfs_is_built(built: Built) -> None:
    built.run()
    (built.root / "rootfs" / "entrypoint").chmod(0o755)
    built.run()
    assert len(built.calls) == 2


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
