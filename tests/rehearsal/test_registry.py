"""The rehearsal's registry, and the base image in it."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from pipeline.core.errors import EngineError
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.rehearsal import images
from pipeline.rehearsal import registry as rehearsal
from pipeline.rehearsal.registry import free_ports
from tests.helpers.images import Line, program, running

LOG = Log(quiet=True)


@pytest.mark.parametrize("offset", [0, 1], ids=["registry", "token server"])
def test_error_names_a_port_in_use(offset: int, tmp_path: Path) -> None:
    port = free_ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + offset))
        taken.listen()
        with pytest.raises(EngineError, match=f"127.0.0.1:{port + offset}"), rehearsal.serve(program(), tmp_path, port):
            pytest.fail("it started")


def test_error_quotes_the_output_of_a_registry_that_exits(tmp_path: Path) -> None:
    program = tmp_path / "registry"
    program.write_text("#!/bin/sh\necho no space left on device\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(EngineError, match="no space left"), rehearsal.serve(str(program), tmp_path, free_ports()):
        pytest.fail("it started")


def test_registry_ends_with_its_block_and_keeps_images(tmp_path: Path) -> None:
    roots = _roots(tmp_path)
    with running(tmp_path / "registry") as place:
        host = place.served.host
        registry = place.registry(place.name("base"), Line())
        digest = images.push_base(registry, "trixie", roots, tmp_path / "base", LOG)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{host}/v2/", trust_env=False)
    with running(tmp_path / "registry") as place:
        kept = place.anonymous(place.name("base")).manifest("trixie")
        assert kept is not None
        assert kept.digest == digest


def _roots(folder: Path) -> dict[Platform, Path]:
    roots = {}
    for platform in Platform:
        path = folder / f"{platform.architecture}.tar"
        path.write_bytes(f"a root of {platform}".encode() * 50)
        roots[platform] = path
    return roots


def test_base_image_has_the_content_of_the_tars(tmp_path: Path) -> None:
    roots = _roots(tmp_path)
    with running(tmp_path / "registry") as place:
        lines = [Line(), Line(), Line()]
        name = place.name("library/debian")
        first = images.push_base(place.registry(name, lines[0]), "trixie", roots, tmp_path / "one", LOG)
        # In another folder: the same bytes.
        assert images.push_base(place.registry(name, lines[1]), "trixie", roots, tmp_path / "two", LOG) == first
        assert lines[1].written == []
        index = place.anonymous(name).manifest("trixie")
        assert index is not None
        for entry in json.loads(index.raw)["manifests"]:
            platform = Platform(f"{entry['platform']['os']}/{entry['platform']['architecture']}")
            manifest = json.loads((tmp_path / "one/blobs/sha256" / Digest(entry["digest"]).hex).read_bytes())
            config = json.loads((tmp_path / "one/blobs/sha256" / Digest(manifest["config"]["digest"]).hex).read_bytes())
            assert config["rootfs"]["diff_ids"] == [Digest.of_file(roots[platform]).text]
            layer = tmp_path / "one/blobs/sha256" / Digest(manifest["layers"][0]["digest"]).hex
            unpacked = subprocess.run(["gzip", "-dc", str(layer)], capture_output=True, check=True).stdout
            assert unpacked == roots[platform].read_bytes()
        # Another root: another image with the same tag.
        roots[Platform.ARM64].write_bytes(b"another root")
        second = images.push_base(place.registry(name, lines[2]), "trixie", roots, tmp_path / "one", LOG)
        assert second != first
        moved = place.anonymous(name).manifest("trixie")
        assert moved is not None
        assert moved.digest == second


def test_dockers_own_clients_get_a_token(tmp_path: Path) -> None:
    """They send POST first, and GET only after 405."""
    with running(tmp_path / "registry") as place, place.client() as client:
        challenge = client.get(f"http://{place.served.host}/v2/").headers["WWW-Authenticate"]
        realm = challenge.partition('realm="')[2].partition('"')[0]
        assert client.post(realm, data={"grant_type": "password"}).status_code == 405
        assert client.get(realm).json()["token"].count(".") == 2
