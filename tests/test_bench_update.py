"""`bench update` without an engine: one component changes and nothing else; what is sent; the page."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.bench import updating
from pipeline.bench.sizing import stubs
from pipeline.bench.updating import LAYERS, OWN, Made
from pipeline.core import cache as cached
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import Image
from pipeline.inputs.lock import Artifact, Lock
from pipeline.rehearsal import stub_k3s_build
from tests.examples import LOCK, artifact
from tests.images import make, program
from tests.sites import committed

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("iptables", "git")


def archive(content: bytes) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as packed:
        member = tarfile.TarInfo("docker/dockerd")
        member.size, member.mode = len(content), 0o755
        packed.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def package(folder: Path, name: str, size: int) -> bytes:
    tree = folder / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr").mkdir()
    (tree / "usr/file").write_bytes(bytes(size))
    text = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    (tree / "DEBIAN/control").write_text(text, encoding="utf-8")
    out = folder / f"{name}.deb"
    subprocess.run(["dpkg-deb", "-Znone", "-b", str(tree), str(out)], check=True, capture_output=True)
    return out.read_bytes()


@pytest.fixture
def own(tmp_path: Path) -> Lock:
    """A lock whose files are all in a cache."""
    (tmp_path / "sha256").mkdir()

    def there(file: Artifact, data: bytes) -> Artifact:
        digest = Digest.of(data)
        cached.path_of(tmp_path, digest).write_bytes(data)
        return replace(file, digest=digest, size=len(data))

    def content(file: Artifact) -> bytes:
        data = f"{file.component} for {file.platform}".encode()
        if (file.component, file.platform) == ("k3s", Platform.AMD64):
            return stub_k3s_build.build("v1.37.1+standin", file.platform.value)
        return archive(data) if file.component == "docker" else data

    debs = {name: package(tmp_path / "debs", name, size) for name, size in (("iptables", 50), ("git", 50_000))}
    return replace(
        LOCK,
        artifacts=tuple(there(file, content(file)) for file in LOCK.artifacts),
        packages=tuple(there(artifact(name, one), debs[name]) for name in PACKAGES for one in Platform),
    )


@pytest.mark.parametrize("what", LAYERS)
def test_an_update_changes_one_component_and_the_day(own: Lock, tmp_path: Path, what: str) -> None:
    after = updating.changed(own, what, PACKAGES, tmp_path)
    files = zip((*own.artifacts, *own.packages), (*after.artifacts, *after.packages), strict=True)
    differ = {(new.component, new.platform) for old, new in files if new.digest != old.digest}
    expected = {OWN: None, "Debian packages": "iptables"}.get(what, what)
    assert differ == ({(expected, platform) for platform in Platform} if expected else set())
    assert after.date > own.date
    for file in (*after.artifacts, *after.packages):
        assert Digest.of_file(cached.require(tmp_path, file.digest)) == file.digest
    if what == "docker":
        with tarfile.open(cached.require(tmp_path, after.artifacts[0].digest)) as packed:
            inside = packed.extractfile("docker/dockerd")
            assert inside is not None
            assert inside.read().endswith(updating._CHANGE)
    if what == "Debian packages":
        changed = next(file for file in after.packages if file.component == "iptables")
        path = str(cached.require(tmp_path, changed.digest))
        assert subprocess.check_output(["dpkg-deb", "-f", path, "Version"], text=True) == "1+bench1\n"


def test_a_stub_is_made_as_large_as_a_real_k3s_and_a_real_one_stays(own: Lock, tmp_path: Path) -> None:
    grown = updating._real_size(own, tmp_path)
    sizes = {file.platform: file.size for file in grown.artifacts if file.component == "k3s"}
    assert sizes == {Platform.AMD64: updating.REAL_K3S, Platform.ARM64: len("k3s for linux/arm64")}
    others = [[file for file in one.artifacts if file.component != "k3s"] for one in (own, grown)]
    assert others[0] == others[1]
    assert stubs(own, tmp_path) == {Platform.AMD64}


def layers(seed: Mapping[int, str]) -> dict[Platform, list[bytes]]:
    """Nine layers, with that text in some of them."""
    return {
        platform: [f"{platform} {number} {seed.get(number - 9, '')}".encode() * 200 for number in range(9)]
        for platform in Platform
    }


def image(folder: Path, seed: Mapping[int, str]) -> Image:
    return make(folder, f"update {seed}", roots=layers(seed))


def test_what_is_sent_is_what_the_repository_lacks(tmp_path: Path) -> None:
    program()  # skips where there is no registry
    made = {"first": Made(dist=tmp_path / "first", image=image(tmp_path / "first", {}), seconds=9)}
    for what, at in LAYERS.items():
        dist = tmp_path / what
        made[what] = Made(dist=dist, image=image(dist, {at: "new", -1: what}), seconds=3)
    run = committed(tmp_path)
    with run.client:
        found = updating._transfer(run, made, tmp_path, 2)
    for what, entry in found.items():
        parts = updating._parts(made[what])
        before = updating._parts(made["first"])
        assert entry["push"] == sum(part.size for digest, part in parts.items() if digest not in before)
        assert entry["own"] < entry["push"] < entry["whole"]
        assert entry["own of one"] < entry["pull"] < entry["push"]
        assert entry["layers changed"] == [-1]
        assert len(entry["push seconds"]) == len(entry["pull seconds"]) == 2


def test_page_and_drawing_are_what_the_figures_give() -> None:
    folder = ROOT / "docs/benchmarks"
    document = json.loads((folder / "update.json").read_text(encoding="utf-8"))
    assert updating.render(document) == (folder / "update.md").read_text(encoding="utf-8")
    assert updating.draw(document) == (folder / "update.svg").read_text(encoding="utf-8")


def test_every_stage_that_becomes_a_layer_gives_its_files_one_time() -> None:
    """Else each layer holds the day it was made on, and an update of one component sends all of them anew."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = {stage.split("\n", 1)[0].rpartition(" AS ")[2]: stage for stage in re.split(r"^FROM ", text, flags=re.M)}
    copied = re.findall(r"^COPY --link --from=(\S+) /layer/ /$", text, re.M)
    assert len(copied) == len(LAYERS) + 4, "buildx, compose, the manifest; system images"
    for name in copied:
        lines = [line for line in stages[name].splitlines() if line and line != "EOF" and not line.startswith("#")]
        assert lines[-1].endswith("/build/settle /layer"), name
