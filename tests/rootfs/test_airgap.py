"""System images and the route that a container without a network gets: functions, with fake commands."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from dind_k3s import preload, system_images

from tests.rootfs.test_shell import Box

# As k3s's archive lists them: not in the order in which they are needed.
IMAGES = {
    "a/klipper-helm:1": ("helm", ("shared", "helm")),
    "a/mirrored-coredns-coredns:1": ("dns", ("shared", "dns")),
    "a/other:1": ("other", ("other",)),
    "a/mirrored-pause:3": ("pause", ("pause",)),
}
ORDER = ["a/mirrored-pause:3", "a/mirrored-coredns-coredns:1", "a/klipper-helm:1", "a/other:1"]
# A docker that lists the files of each archive and takes note of whether the first images were announced by then.
DOCKER = """
[[ $* == "image load --quiet" ]] || exit 64
rm -rf "$FOLDER/given" && mkdir "$FOLDER/given" && tar -xC "$FOLDER/given"
name=$(grep -o '"a/[^"]*"' "$FOLDER/given/manifest.json" | tr -d '"')
files=$(cd "$FOLDER/given" && find . -type f | sort | paste -sd, -)
echo "$name $files $([[ -e $FOLDER/first ]] && echo after)" >>"$FOLDER/loads"
if [[ $name == "${FAILS-}" ]]; then echo 'no space left' >&2; exit 1; fi
echo "Loaded image: $name"
"""


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def archive(folder: Path) -> Path:
    """What `ctr images export` writes, packed with zstd: blobs by their digest, manifest.json last."""
    blobs = {layer: f"layer {layer}".encode() for _, layers in IMAGES.values() for layer in layers}
    blobs |= {f"{config}.json": f"config {config}".encode() for config, _ in IMAGES.values()}
    files = {f"blobs/sha256/{name}": data for name, data in blobs.items()}
    listed = [
        {
            "Config": f"blobs/sha256/{config}.json",
            "RepoTags": [name],
            "Layers": [f"blobs/sha256/{layer}" for layer in layers],
        }
        for name, (config, layers) in IMAGES.items()
    ]
    files |= {"index.json": b"{}", "oci-layout": b"{}", "manifest.json": json.dumps(listed).encode()}
    with tarfile.open(folder / "plain.tar", "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    subprocess.run(["zstd", "-q", "plain.tar", "-o", "images.tar.zst"], cwd=folder, check=True)
    return folder / "images.tar.zst"


@pytest.fixture
def load(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], tuple[int, str, list[str]]]:
    """Loads an archive with a docker that takes notes: exit code, what it says, and the notes."""
    box.fake("docker", DOCKER)
    monkeypatch.setenv("PATH", f"{box.bin}:{os.environ['PATH']}")
    monkeypatch.setenv("FOLDER", str(tmp_path))

    def run(file: Path) -> tuple[int, str, list[str]]:
        done = system_images.load(file, tmp_path / "scratch", (tmp_path / "first").touch)
        assert not (tmp_path / "scratch").exists()
        loads = (tmp_path / "loads").read_text().splitlines() if (tmp_path / "loads").exists() else []
        return done.returncode, done.stdout + done.stderr, loads

    return run


Load = Callable[[Path], tuple[int, str, list[str]]]


def test_each_image_is_loaded_alone_and_those_that_every_pod_needs_come_first(load: Load, tmp_path: Path) -> None:
    code, output, loads = load(archive(tmp_path))
    assert (code, output) == (0, "".join(f"Loaded image: {name}\n" for name in ORDER))
    assert [line.split()[0] for line in loads] == ORDER
    assert loads[1].split()[1] == "./blobs/sha256/dns,./blobs/sha256/dns.json,./blobs/sha256/shared,./manifest.json"
    assert [line.endswith(" after") for line in loads] == [False, False, True, True]


def test_an_image_that_dockerd_refuses_is_reported_and_ends_the_load(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "a/klipper-helm:1")
    code, output, loads = load(archive(tmp_path))
    assert (code, "no space left" in output, len(loads)) == (1, True, 3)


@pytest.mark.parametrize("text", ["", "no archive", "no list"])
def test_what_is_no_archive_of_images_is_reported(text: str, load: Load, tmp_path: Path) -> None:
    file = tmp_path / "images.tar.zst"
    if text == "no list":
        (tmp_path / "hostname").touch()
        subprocess.run(["tar", "--zstd", "-cf", str(file), "hostname"], cwd=tmp_path, check=True)
    else:
        file.write_text(text)
    code, output, loads = load(file)
    assert code != 0
    assert output
    assert loads == []


def test_a_file_is_known_while_all_of_its_images_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    (tmp_path / "var/lib/docker/.dind-k3s").mkdir(parents=True)
    written = preload.Loaded()
    assert not written.has("mark", {"a:1"})
    written.add("mark", ["a:1", "b:1"])
    written.add("of an older release", [])  # it wrote no names, so nobody knows whether they are there
    read = preload.Loaded()
    assert read.has("mark", {"a:1", "b:1", "c:1"})
    assert not read.has("mark", {"a:1"})  # docker system prune
    assert not read.has("of an older release", {"a:1"})


def test_every_archive_below_the_folder_is_loaded_and_all_else_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    archives = ["b.TAR", "a.tar.xz", "more/c.Tar.Zst", "more/d.tgz", "more/pause.txz", "more/e.tar.bz2"]
    others = ["README.md", "f.zip", "more/g.gz", "more/tar", ".hidden.tar", ".git/h.tar"]
    for name in (*archives, *others):
        (tmp_path / "app/images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "app/images" / name).touch()
    order = ["more/pause.txz", "a.tar.xz", "b.TAR", "more/c.Tar.Zst", "more/d.tgz", "more/e.tar.bz2"]
    assert [preload.name_of(file) for file in preload.files()] == order
    assert preload.others() == ["README.md", "f.zip", "more/g.gz", "more/tar"]
