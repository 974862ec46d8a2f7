"""Loads the built image into an engine without changing a byte of it."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException
from python_on_whales.utils import run as run_docker

from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import BuiltPlatform, Image
from pipeline.engine.engine import has_containerd_store
from pipeline.oci.index import layout_files
from pipeline.oci.layout import Layout, Part

_CHUNK = 1 << 20
_REPOSITORY = "dind-k3s.local/smoke"
KEPT = 6  # images in an engine: a concurrent smoke can be about to start an older one


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One platform of the image in an engine."""

    name: str  # to run, with the platform
    platform: Platform
    index: Digest
    built: BuiltPlatform

    def confirm(self, client: DockerClient, container: str) -> str:
        """Return what a container was created from, which must be exactly the smoked manifest.

        Docker reports the manifest since API 1.48 with the containerd image store; a classic engine reports the
        config's digest. Older ones with the containerd store report only the index. Raises AssertionError.
        """
        # python-on-whales' model of a container drops unknown fields.
        text = run_docker([*client.client_config.docker_cmd, "container", "inspect", container])
        data = json.loads(str(text))[0]
        descriptor = data.get("ImageManifestDescriptor")
        actual = descriptor["digest"] if descriptor else data["Image"]
        expected = [self.built.digest.text] if descriptor else [self.built.config.text, self.index.text]
        assert actual in expected, f"the engine runs {actual}, not {' or '.join(expected)}: it has another image"
        return f"it runs {actual}"


def run(client: DockerClient, layout: Layout, image: Image, platform: Platform, log: Log) -> Loaded:
    """Load that platform of the image into the engine, unless it is there already.

    An engine with the containerd image store takes the whole index and keeps its digest; a classic one takes one
    platform at a time and keeps the digest of its config. Either is checked against the image. Of the images of
    earlier runs, the last few stay. Raises EngineError if the engine has another image afterwards, or does not answer.
    """
    built = image.platforms[platform]
    try:
        containerd = has_containerd_store(client)
        name = _name(image) + ("" if containerd else f"-{platform.architecture}")
        expected = image.digest if containerd else built.config
        loaded = Loaded(name=name, platform=platform, index=image.digest, built=built)
        if _image_id(client, name) == expected.text:
            log.say("the engine has the image already")
            return loaded
        _remove_older(client, log)
        with log.waiting("the engine to load the image"):
            client.load(
                _tar(_index(layout, name), layout) if containerd else _docker_archive(layout, built, name), quiet=True
            )
        actual = _image_id(client, name)
    except DockerException as error:
        raise EngineError("the engine cannot load the image", found=(error.stderr or str(error)).strip()) from None
    if actual != expected.text:
        raise EngineError(
            "the engine has another image than was built", expected=expected.text, found=str(actual), where=name
        )
    return loaded


def prepare(client: DockerClient, layout: Layout, image: Image, platform: Platform, log: Log) -> None:
    """Load and unpack only that platform in an engine with the containerd image store. Raises EngineError.

    Creating a container without starting it makes dockerd unpack the layers, also of a non-native platform.
    """
    built = image.platforms[platform]
    name = _name(image)
    try:
        with log.waiting("the engine to load the image"):
            client.load(_tar(_index(layout, name), dict.fromkeys([layout.index, *_closure(layout, built)])), quiet=True)
        with log.waiting("the engine to unpack the image"):
            client.create(name, platform=platform.value).remove(volumes=True)
    except DockerException as error:
        raise EngineError("the engine cannot unpack the image", found=(error.stderr or str(error)).strip()) from None


def _remove_older(client: DockerClient, log: Log) -> None:
    """Remove the oldest images but KEPT - 1. An image in use by a container stays."""
    images = client.image.list(_REPOSITORY)
    tagged = sorted(
        ((str((image.metadata or {}).get("LastTagTime")), image.repo_tags) for image in images), reverse=True
    )
    names = [name for _, tags in tagged for name in tags if name.startswith(f"{_REPOSITORY}:")]
    for name in names[KEPT - 1 :]:
        with suppress(DockerException):
            client.image.remove(name)
            log.say(f"removed {name}, which an earlier smoke had loaded")


def _name(image: Image) -> str:
    return f"{_REPOSITORY}:{image.digest.hex[:16]}"


def _closure(layout: Layout, built: BuiltPlatform) -> list[Part]:
    """Return one platform's manifest, config and layers, in order; a layer can be there twice."""
    return [layout.part(built.digest), layout.part(built.config), *layout.layers(built.digest)]


def _image_id(client: DockerClient, name: str) -> str | None:
    if not client.image.exists(name):
        return None
    return client.image.inspect(name).id


def _index(layout: Layout, name: str) -> dict[str, bytes]:
    """Return the files at the top of a layout, with the name that containerd's loader reads.

    Source: containerd's core/images/archive/importer.go.
    """
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    return layout_files({**layout.index.descriptor, "annotations": names})


def _docker_archive(layout: Layout, built: BuiltPlatform, name: str) -> Iterator[bytes]:
    """Yield one platform in the format of `docker save`. Source: moby's image/tarexport/load.go."""
    _, *parts = _closure(layout, built)
    config, *layers = map(_blob, parts)
    manifest = [{"Config": config, "RepoTags": [name], "Layers": layers}]
    return _tar({"manifest.json": json.dumps(manifest).encode()}, dict.fromkeys(parts))


def _blob(part: Part) -> str:
    return f"blobs/sha256/{part.digest.hex}"


def _tar(files: dict[str, bytes], parts: Iterable[Part]) -> Iterator[bytes]:
    for file, data in files.items():
        yield _header(file, len(data))
        yield data + _padding(len(data))
    for part in parts:
        yield _header(_blob(part), part.size)
        with part.path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
        yield _padding(part.size)
    yield b"\0" * 1024


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(format=tarfile.USTAR_FORMAT)


def _padding(size: int) -> bytes:
    return b"\0" * (-size % tarfile.BLOCKSIZE)
