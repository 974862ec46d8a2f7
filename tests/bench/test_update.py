"""`bench update` without an engine: only k3s and the day change; what is sent; the Dockerfile's layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.bench import lab, update
from pipeline.bench.update import COMPONENTS, Made
from pipeline.core import cache as cached
from pipeline.core.errors import BuildFailed
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.inputs.lock import Artifact, Lock
from pipeline.rehearsal import stub_k3s_build
from tests.helpers.examples import LOCK
from tests.helpers.images import make

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def own(tmp_path: Path) -> Lock:
    """A lock whose artifacts are all in a cache; one k3s is a stub."""
    (tmp_path / "sha256").mkdir()

    def there(file: Artifact) -> Artifact:
        data = f"{file.component} for {file.platform}".encode()
        if (file.component, file.platform) == ("k3s", Platform.AMD64):
            data = stub_k3s_build.build("v1.37.1+standin", file.platform.value)
        digest = Digest.of(data)
        cached.path_of(tmp_path, digest).write_bytes(data)
        return replace(file, digest=digest, size=len(data))

    return replace(LOCK, artifacts=tuple(there(file) for file in LOCK.artifacts))


def test_an_update_changes_k3s_and_the_day(own: Lock, tmp_path: Path) -> None:
    after = update.updated(own, tmp_path)
    files = zip(own.all_files, after.all_files, strict=True)
    assert {(new.component, new.platform) for old, new in files if new != old} == {("k3s", one) for one in Platform}
    assert after.date > own.date
    for file in after.artifacts:
        assert Digest.of_file(cached.require(tmp_path, file.digest)) == file.digest


def test_a_stub_is_made_as_large_as_a_real_k3s_and_a_real_one_stays(own: Lock, tmp_path: Path) -> None:
    grown = update.real_size(own, tmp_path)
    sizes = {file.platform: file.size for file in grown.artifacts if file.component == "k3s"}
    assert sizes == {Platform.AMD64: update.REAL_K3S, Platform.ARM64: len("k3s for linux/arm64")}
    others = [[file for file in one.artifacts if file.component != "k3s"] for one in (own, grown)]
    assert others[0] == others[1]
    assert lab.stubs(own, tmp_path) == {Platform.AMD64}


def made(folder: Path, seed: Mapping[int, str]) -> Made:
    """An image of nine layers, with that text in some of them, counted from the top one."""
    roots = {
        platform: [f"{platform} {number} {seed.get(number - 9, '')}".encode() * 200 for number in range(9)]
        for platform in Platform
    }
    return Made.read(folder, make(folder, f"update {seed}", roots=roots))


def test_what_is_sent_is_what_the_first_one_lacks(tmp_path: Path) -> None:
    before, after = made(tmp_path / "first", {}), made(tmp_path / "second", {-4: "new", -1: "new"})
    changes = update.compare(before, after)
    missing = sum(part.size for digest, part in after.parts.items() if digest not in before.parts)
    assert changes["k3s"]["push"] == missing
    besides = {entry["push"] - entry["own"] for entry in changes.values()}
    assert len(besides) == 1, "what is sent besides the component is the same for all"
    for what in COMPONENTS:
        entry = changes[what]
        assert entry["own"] < entry["push"] < entry["whole"]
        assert entry["own of one"] < entry["pull"] < entry["push"]
        assert entry["layers changed"] == [-1]


def test_an_update_that_leaves_k3s_as_it_is_shows_nothing(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="did not change"):
        update.compare(made(tmp_path / "first", {}), made(tmp_path / "second", {-1: "new"}))


def test_every_stage_that_becomes_a_layer_gives_its_files_one_time() -> None:
    """Else each layer holds the day it was made on, and an update of one component sends all of them anew."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    stages = {stage.split("\n", 1)[0].rpartition(" AS ")[2]: stage for stage in re.split(r"^FROM ", text, flags=re.M)}
    copied = re.findall(r"^COPY --link --from=(\S+) /layer/ /$", text, re.M)
    assert len(copied) == len(lab.LAYERS) + 1, "system images"
    for name in copied:
        lines = [line for line in stages[name].splitlines() if line and line != "EOF" and not line.startswith("#")]
        assert lines[-1].endswith("/build/settle /layer"), name
