"""The Markdown of a pull request, and `update` against an origin of the vendors' layout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import date
from pathlib import Path

import httpx
import pytest

from pipeline import __main__ as cli
from pipeline.core.errors import Incompatible
from pipeline.core.platforms import Platform
from pipeline.http import transport
from pipeline.inputs import changes, lock, versions
from pipeline.inputs.evidence import Evidence, Grade
from pipeline.inputs.lock import Artifact, Lock
from pipeline.rehearsal import origin
from pipeline.rehearsal.registry import free_ports
from pipeline.resolve import resolve
from tests.helpers.binaries import go_binary
from tests.helpers.examples import LOCK, VERSIONS, artifact, digest
from tests.helpers.sites import Site
from tests.inspect import test_embedded
from tests.inspect.test_embedded import TOLD
from tests.resolve.test_resolve import Upstream

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
NEW_VERSIONS = {**VERSIONS, "docker": "29.10.0", "k3s": "v1.37.2+k3s1", "kubectl": "v1.37.3"}
OLD = replace(
    LOCK,
    embedded=TOLD,
    packages=(
        *LOCK.packages,
        *(replace(artifact("libssl3", platform), version="3.5.4-1") for platform in Platform),
        artifact("netbase", Platform.AMD64),
    ),
)


def renewed() -> Lock:
    """Return a lock with many changes."""
    files = []
    for file in OLD.artifacts:
        version = NEW_VERSIONS[file.component]
        changed = replace(file, version=version, size=1000 if version == file.version else 1234)
        if version != file.version:
            changed = replace(changed, digest=digest(f"{file.component} {version} {file.platform}"))
        if file.component == "docker":
            changed = replace(changed, evidence=(Evidence(grade=Grade.FIRST_USE, source="a download"),))
        files.append(changed)
    packages = [
        replace(file, version="3.5.5-1") if file.component == "libssl3" else file
        for file in OLD.packages
        if file.component != "netbase"
    ]
    packages.append(replace(artifact("libxtables12", Platform.ARM64), version="1.8.11-2"))
    return replace(
        OLD,
        intent=digest("another intent"),
        date="2026-11-29",
        base=replace(OLD.base, digest=digest("another base")),
        versions=NEW_VERSIONS,
        artifacts=tuple(files),
        packages=tuple(packages),
        guest=tuple(
            replace(file, version="6.12.121-1") if file.version == "6.12.118-1" else file for file in OLD.guest
        ),
        embedded={**TOLD, "docker": {**TOLD["docker"], "containerd": "v2.2.2", "runc": "1.3.4"}},
    )


def golden(request: pytest.FixtureRequest, name: str, text: str) -> None:
    path = GOLDEN / name
    if request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_is_the_golden_file(request: pytest.FixtureRequest) -> None:
    """`pytest --update-golden` writes it; review the diff."""
    new = renewed()
    golden(request, "update.md", changes.markdown(OLD, new, changes.findings(new)[0]))


def test_the_first_lock_is_the_golden_file(request: pytest.FixtureRequest) -> None:
    golden(request, "update-first.md", changes.markdown(None, OLD, []))


def test_only_a_guest_package_changed(request: pytest.FixtureRequest) -> None:
    golden(request, "update-guest.md", changes.markdown(OLD, replace(OLD, guest=renewed().guest), []))


def test_nothing_changed_is_reported() -> None:
    assert changes.markdown(OLD, lock.parse(lock.render(OLD), "x"), []) == changes.NOTHING


def test_grades_below_the_policy_are_reported() -> None:
    weak = renewed().weak({"docker": Grade.CORROBORATED})
    text = changes.markdown(OLD, renewed(), [], weak)
    section = text.partition("### Push will refuse this lock\n")[2].split("\n### ")[0]
    assert section.count("is first use, and the policy asks for corroborated or better") == len(Platform)
    assert "Push will refuse" not in changes.markdown(OLD, renewed(), [])


def test_bytes_replaced_under_the_same_version_stand_out() -> None:
    first: Artifact = OLD.artifacts[0]
    new = replace(OLD, artifacts=(replace(first, digest=digest("replaced")), *OLD.artifacts[1:]))
    text = changes.markdown(OLD, new, [])
    assert "The same version, other bytes: find out why" in text
    assert first.digest.text in text
    assert digest("replaced").text in text


def test_unknown_sizes_make_no_false_sums() -> None:
    new = replace(OLD, artifacts=(replace(OLD.artifacts[0], size=None), *OLD.artifacts[1:]))
    row = next(line for line in changes.markdown(OLD, new, []).splitlines() if line.startswith("| linux/amd64"))
    assert "1 files of unknown size" in row
    assert "not known" in row


@pytest.mark.parametrize(
    ("version", "link"),
    [("29.7.2", "moby/moby/releases/tag/docker-v29.7.2"), ("28.5.2", "moby/moby/releases/tag/v28.5.2")],
)
def test_docker_changed_how_it_names_its_tags(version: str, link: str) -> None:
    new = replace(OLD, versions={**VERSIONS, "docker": version}, date="2026-12-01")
    assert link in changes.markdown(OLD, new, [])


def test_a_distributions_version_has_no_link() -> None:
    new = replace(OLD, embedded={"docker": {"runc": "1.1.5+ds1"}})
    row = next(line for line in changes.markdown(OLD, new, []).splitlines() if "1.1.5+ds1" in line)
    assert "http" not in row


def test_a_version_of_k3ss_fork_is_linked_in_the_fork() -> None:
    old = replace(OLD, embedded={"k3s": {"containerd": "v2.1.4"}})
    row = next(
        line
        for line in changes.markdown(
            old, replace(OLD, embedded={"k3s": {"containerd": "v2.1.5-k3s1"}}), []
        ).splitlines()
        if "v2.1.5-k3s1" in line
    )
    assert "github.com/k3s-io/containerd/releases/tag/v2.1.5-k3s1" in row
    assert "compare" not in row


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    wide = 0
    for line in changes.markdown(OLD, renewed(), ["a | b"]).splitlines():
        if not line.startswith("|"):
            wide = 0
            continue
        cells = len(re.split(r"(?<!\\)\|", line))
        assert wide in (0, cells), line
        wide = cells


def test_complete_adds_sizes_and_versions_and_the_date_of_a_change() -> None:
    unknown = replace(OLD, artifacts=(replace(OLD.artifacts[0], size=None), *OLD.artifacts[1:]), embedded={})
    sizes = {file.digest: file.size or 0 for file in OLD.all_files}
    assert changes.complete(OLD, sizes, TOLD, date(2030, 1, 1)) == OLD
    made = changes.complete(unknown, sizes, TOLD, date(2030, 1, 1))
    assert made == replace(OLD, date="2030-01-01")


def written(folder: Path, name: str, content: Lock) -> str:
    (folder / name).write_text(lock.render(content), encoding="utf-8")
    return str(folder / name)


def test_two_lock_files_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path, "old.yaml", OLD), written(tmp_path, "new.yaml", renewed())
    assert cli.main(["update", "--diff", *files]) == 0
    printed = capsys.readouterr().out
    assert printed == (GOLDEN / "update.md").read_text(encoding="utf-8")
    assert cli.main(["update", "--diff", *files, "--output", str(tmp_path / "body.md")]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "body.md").read_text(encoding="utf-8") == printed


def test_the_same_lock_twice_says_that_nothing_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, "lock.yaml", OLD)
    assert cli.main(["update", "--diff", file, file]) == 0
    assert capsys.readouterr().out == changes.NOTHING


def test_a_lock_of_broken_versions_is_shown_and_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The embedded docker client of TOLD is new enough: without it the rule uses known releases.
    broken = replace(
        OLD, embedded={}, versions={**VERSIONS, "docker": "29.1.0", "k3s": "v1.30.2+k3s1", "kubectl": "v1.30.2"}
    )
    files = written(tmp_path, "old.yaml", OLD), written(tmp_path, "new.yaml", broken)
    assert cli.main(["update", "--diff", *files]) == 6
    shown = capsys.readouterr()
    assert "cri-dockerd-api-floor" in shown.out
    assert "exit code: 6" in shown.err


def test_a_missing_lock_is_an_error_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["update", "--diff", str(tmp_path / "no.yaml"), str(tmp_path / "no.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


class Vendors(Upstream):
    """Vendors whose files have versions inside, and a checkout with the base image in its cache."""

    def __init__(self, folder: Path, url: str, client: httpx.Client, site: Site) -> None:
        super().__init__(folder, url, client)
        self.site = site
        self.intent = replace(self.intent, base=site.image)
        versions.write(site.intent_path, self.intent)
        self.docker("28.5.2")
        self.run = replace(site.run(), client=client)

    def docker(self, version: str, text: str = "1.3.3") -> None:
        origin.publish(self.folder, "docker", version, {p: test_embedded.docker(p, runc=text) for p in Platform})


@pytest.fixture
def vendors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendors]:
    """Without apt and a registry: their files are in the cache."""
    with closing(Site(tmp_path / "site")) as site:
        monkeypatch.setattr(resolve.System, "base", lambda _: site.lock.base)
        monkeypatch.setattr(resolve.System, "packages", lambda *_: (site.lock.packages, site.lock.guest))
        port = free_ports()
        (tmp_path / "origin").mkdir()
        with origin.serve(tmp_path / "origin", port), transport.make_client() as client:
            made = Vendors(tmp_path / "origin", f"http://127.0.0.1:{port}", client, site)
            made.run.lock_path.unlink()
            yield made


def test_update_resolves_fetches_reads_and_writes(vendors: Vendors) -> None:
    run = vendors.run
    assert run.update().startswith("## A new lock\n")
    assert run.lock.embedded["docker"]["runc"] == "1.3.3"
    vendors.docker("28.10.0", "1.3.4")
    text = run.update()
    assert text.startswith("## docker 28.5.2 → 28.10.0\n")
    assert "| docker | runc | 1.3.3 | 1.3.4 |" in text
    assert "https://github.com/moby/moby/compare/v28.5.2...v28.10.0" in text
    assert run.lock.embedded["docker"]["runc"] == "1.3.4"
    run.fetch(offline=True)  # all of it was fetched


def test_update_of_an_unchanged_upstream_leaves_the_lock_byte_for_byte(vendors: Vendors) -> None:
    vendors.run.update()
    before = vendors.run.lock_path.stat(), vendors.run.lock_path.read_bytes()
    assert vendors.run.update() == changes.NOTHING
    assert (vendors.run.lock_path.stat().st_mtime_ns, vendors.run.lock_path.read_bytes()) == (
        before[0].st_mtime_ns,
        before[1],
    )


def test_resolve_keeps_what_is_known_of_unchanged_files(vendors: Vendors) -> None:
    vendors.run.update()
    assert vendors.run.resolve(check=True) is False
    vendors.docker("28.10.0", "1.3.4")
    assert vendors.run.resolve(check=False) is True
    assert "docker" not in vendors.run.lock.embedded


def test_a_failed_update_does_not_change_the_lock(vendors: Vendors) -> None:
    vendors.run.update()
    before = vendors.run.lock_path.read_bytes()
    archives = {
        Platform.AMD64: test_embedded.docker(Platform.AMD64, runc="1.3.4"),
        Platform.ARM64: test_embedded.docker(Platform.ARM64, runc="1.3.5"),
    }
    origin.publish(vendors.folder, "docker", "28.10.0", archives)
    with pytest.raises(Incompatible, match="the same runc"):
        vendors.run.update()
    assert vendors.run.lock_path.read_bytes() == before


def test_versions_in_the_binaries_can_refuse_a_lock(vendors: Vendors) -> None:
    vendors.docker("29.1.0")
    vendors.run.update()
    old = {p: go_binary("v0.29.2", modules={"github.com/docker/docker": "v24.0.7"}) for p in Platform}
    origin.publish(vendors.folder, "buildx", "0.29.2", old)
    with pytest.raises(Incompatible, match="buildx-api"):
        vendors.run.update()
    assert vendors.run.lock.versions["buildx"] == "0.29.1"
