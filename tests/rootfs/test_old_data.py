"""What earlier versions of k3s unpacked goes; what is in use never does."""

from __future__ import annotations

from pathlib import Path

from dind_k3s import old_data

OLDEST, OLD, NEW = (digit * 64 for digit in "abc")


def unpack(data: Path, name: str) -> Path:
    program = data / name / "bin/k3s"
    program.parent.mkdir(parents=True)
    program.touch()
    return program


def link(path: Path, to: Path) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(to)


def names(data: Path) -> set[str]:
    return {path.name for path in data.iterdir()}


def test_after_an_upgrade_only_the_new_one_stays(tmp_path: Path) -> None:
    for name in (OLDEST, OLD, f"{OLD}-tmp", "mine"):
        unpack(tmp_path, name)
    program = unpack(tmp_path, NEW)
    link(tmp_path / "current", tmp_path / NEW)
    link(tmp_path / "previous", tmp_path / OLD)
    link(tmp_path / "cni/host-local", tmp_path / NEW / "bin/cni")
    assert old_data.remove_others(program) == [OLDEST, OLD, f"{OLD}-tmp"]
    assert names(tmp_path) == {NEW, "current", "cni", "mine"}
    assert old_data.remove_others(program) == []


def test_an_earlier_version_that_runs_again_keeps_what_its_links_lead_to(tmp_path: Path) -> None:
    """k3s finds its folder and then leaves `current` and the plugins with the newer one's."""
    unpack(tmp_path, OLDEST)
    unpack(tmp_path, NEW)
    program = unpack(tmp_path, OLD)
    link(tmp_path / "current", tmp_path / NEW)
    link(tmp_path / "previous", tmp_path / OLD)
    link(tmp_path / "cni/host-local", tmp_path / NEW / "bin/cni")
    assert old_data.remove_others(program) == [OLDEST]
    assert names(tmp_path) == {OLD, NEW, "current", "previous", "cni"}
