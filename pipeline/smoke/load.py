"""The built image into an engine, without changing a byte of it."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator

from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException

from pipeline.errors import EngineError
from pipeline.layout import Layout
from pipeline.log import Log
from pipeline.oci import INDEX
from pipeline.platforms import Platform
from pipeline.release import Image

_CHUNK = 1 << 20
_REPOSITORY = "dind-k3s.local/smoke"


def run(client: DockerClient, layout: Layout, image: Image, log: Log) -> str:
    """Have the image in the engine; returns the name to run it by.

    An engine with the containerd image store keeps the index digest; a classic one keeps the config digest of its own
    platform. Either is held against the image. Raises EngineError when the engine has something else afterwards.
    """
    name = f"{_REPOSITORY}:{image.digest.hex[:16]}"
    expected = {image.digest.text, *(built.config.text for built in image.platforms.values())}
    if _loaded(client, name) in expected:
        log.say("the engine has the image already")
        return name
    try:
        client.load(_archive(layout, image, name), quiet=True)
    except DockerException as error:
        raise EngineError("the engine cannot load the image", found=(error.stderr or "").strip()) from None
    found = _loaded(client, name)
    if found not in expected:
        raise EngineError(
            "the engine has another image than was built", expected=image.digest.text, found=str(found), where=name
        )
    return name


def _loaded(client: DockerClient, name: str) -> str | None:
    if not client.image.exists(name):
        return None
    return client.image.inspect(name).id


def _archive(layout: Layout, image: Image, name: str) -> Iterator[bytes]:
    """A tar stream of the layout, with the name that containerd's loader reads, and a manifest.json for classic ones.

    Sources: containerd's core/images/archive/importer.go; moby's image/tarexport/load.go.
    """
    described = {
        "mediaType": INDEX,
        "digest": layout.index.digest.text,
        "size": layout.index.size,
        "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]},
    }
    texts: dict[str, object] = {
        "oci-layout": {"imageLayoutVersion": "1.0.0"},
        "index.json": {"schemaVersion": 2, "mediaType": INDEX, "manifests": [described]},
    }
    host = Platform.host()
    if host is not None and host in image.platforms:
        paths = {part.digest: part.path for part in layout}
        manifest = json.loads(paths[image.platforms[host].digest].read_bytes())
        blob = "blobs/sha256/{}".format
        texts["manifest.json"] = [
            {
                "Config": blob(manifest["config"]["digest"].removeprefix("sha256:")),
                "RepoTags": [name],
                "Layers": [blob(layer["digest"].removeprefix("sha256:")) for layer in manifest["layers"]],
            }
        ]
    for file, document in texts.items():
        data = json.dumps(document).encode()
        yield _header(file, len(data))
        yield data + _padding(len(data))
    for part in layout:
        yield _header(f"blobs/sha256/{part.digest.hex}", part.size)
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
