"""System images and the route that a container without a network gets: functions, with fake commands."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.rootfs.test_shell import LIBRARY, Box

IMAGES = {
    "a/klipper-helm:1": ("helm.json", ("shared", "helm")),
    "a/mirrored-coredns-coredns:1": ("dns.json", ("shared", "dns")),
    "a/mirrored-pause:3": ("pause.json", ("pause",)),
}


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def archive(folder: Path, *, links: bool = False) -> Path:
    """What `docker save` writes, packed with zstd; the list of images comes last."""
    files = {layer: f"layer {layer}".encode() for _, layers in IMAGES.values() for layer in layers}
    files |= {config: f"config {config}".encode() for config, _ in IMAGES.values()}
    listed = [{"Config": config, "RepoTags": [name], "Layers": [*layers]} for name, (config, layers) in IMAGES.items()]
    files["manifest.json"] = json.dumps(listed).encode()
    with tarfile.open(folder / "plain.tar", "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            if links and name == "pause":
                member.type, member.linkname = tarfile.SYMTYPE, "shared"
            else:
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    subprocess.run(["zstd", "-q", "plain.tar", "-o", "images.tar.zst"], cwd=folder, check=True)
    return folder / "images.tar.zst"


def first_images(box: Box, file: Path, tmp_path: Path) -> tuple[int, dict[str, bytes]]:
    """Run the command with a docker that writes down what it is given; exit code and the files of the archive."""
    box.fake("docker", f'[[ $* == "image load --quiet" ]] && cat >{tmp_path}/given')
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(LIBRARY), "first-images", str(file)],
        env={"PATH": f"{box.bin}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("", "")
    given = (tmp_path / "given").read_bytes()
    try:
        with tarfile.open(fileobj=io.BytesIO(given)) as tar:
            return done.returncode, {member.name: (tar.extractfile(member) or io.BytesIO()).read() for member in tar}
    except tarfile.ReadError:
        return done.returncode, {}


def test_the_first_images_are_picked_with_all_that_they_share(box: Box, tmp_path: Path) -> None:
    code, files = first_images(box, archive(tmp_path), tmp_path)
    assert code == 0
    listed = json.loads(files.pop("manifest.json"))
    assert [entry["RepoTags"] for entry in listed] == [["a/mirrored-coredns-coredns:1"], ["a/mirrored-pause:3"]]
    assert set(files) == {"dns.json", "shared", "dns", "pause.json", "pause"}
    assert files["dns"] == b"layer dns"


@pytest.mark.parametrize("text", ["", "no archive", "links"])
def test_what_cannot_be_picked_is_left_to_the_load_of_the_whole(text: str, box: Box, tmp_path: Path) -> None:
    file = archive(tmp_path, links=text == "links")
    if text != "links":
        file.write_text(text)
    code, _ = first_images(box, file, tmp_path)
    assert code == 1
