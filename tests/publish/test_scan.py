"""The vulnerability gate: what stops a release, what does not, and a list whose entries expire."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import IntentError, VerificationFailed
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.core.records import ScanReport, require_scanned
from pipeline.publish import scan
from tests.helpers.examples import digest
from tests.helpers.images import make

LOG = Log(quiet=True)
TODAY = date(2026, 11, 25)


def match(
    id: str = "GHSA-1111-2222-3333",
    severity: str = "High",
    *,
    fix: tuple[str, ...] = ("1.2.3",),
    package: str = "golang.org/x/net",
    aliases: tuple[str, ...] = ("CVE-2026-1111",),
) -> dict[str, Any]:
    """A match as grype writes it, with the fields that are read."""
    return {
        "vulnerability": {
            "id": id,
            "dataSource": f"https://github.com/advisories/{id}",
            "namespace": "github:language:go",
            "severity": severity,
            "fix": {"versions": list(fix), "state": "fixed" if fix else "not-fixed"},
        },
        "relatedVulnerabilities": [{"id": alias} for alias in aliases],
        "matchDetails": [],
        "artifact": {"name": package, "version": "v0.1.0", "type": "go-module"},
    }


SCANNER = """\
import json, pathlib, sys
folder, file = pathlib.Path(sys.argv[1].removeprefix("oci-dir:")), pathlib.Path(sys.argv[-1])
(described,) = json.loads((folder / "index.json").read_text())["manifests"]
manifest = json.loads((folder / "blobs" / described["digest"].replace(":", "/")).read_text())
assert manifest["layers"]
report = json.loads((pathlib.Path(__file__).parent / "report.json").read_text())
report["source"] = {"target": {"manifestDigest": described["digest"], **report["source"]}}
file.write_text(json.dumps(report))
"""


def grype(
    *matches: dict[str, Any],
    age: timedelta = timedelta(hours=5),
    valid: bool = True,
    name: str = "grype",
    **target: str,
) -> str:
    """A report as grype writes it, with the fields that are read; `age`: of its database."""
    built = (datetime.now(UTC) - age).isoformat(timespec="seconds").replace("+00:00", "Z")
    status = {"schemaVersion": "v6.1.9", "built": built, "valid": valid}
    described = {"name": name, "version": "0.121.3", "db": {"status": status}}
    return json.dumps({"matches": matches, "descriptor": described, "source": target})


class Scene:
    """A built image, and a scanner that finds what the test says."""

    def __init__(self, folder: Path) -> None:
        self.dist = folder / "dist"
        self.image = make(self.dist, "scanned")
        self._scanner = folder / "scanner.py"
        self._scanner.write_text(SCANNER)
        self.allowed = folder / "allowed.yaml"
        self.finds()

    def finds(self, *matches: dict[str, Any], **descriptor: Any) -> None:
        """Have it report these from now on."""
        self.writes(grype(*matches, **descriptor))

    def writes(self, text: str) -> None:
        self._scanner.with_name("report.json").write_text(text)

    def scan(self, *scanner: str, log: Log = LOG) -> tuple[ScanReport, ...]:
        return scan.run(self.image, self.dist, scanner or self.scanner, self.allowed, log)

    @property
    def scanner(self) -> tuple[str, ...]:
        return sys.executable, str(self._scanner)

    def recorded(self) -> list[ScanReport]:
        return [ScanReport.read(self.dist, platform) for platform in self.image.platforms]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def allow(folder: Path, text: str) -> Path:
    path = folder / "allowed.yaml"
    path.write_text(text)
    return path


def soon(days: int = 30) -> str:
    return (datetime.now(UTC).date() + timedelta(days=days)).isoformat()


@pytest.mark.parametrize(
    "finding",
    [
        match(severity="Medium"),
        match(severity="Negligible"),
        match(fix=()),
        match(severity="Critical", fix=()),
    ],
)
def test_what_is_not_grave_or_has_no_fix_does_not_stop_a_release(scene: Scene, finding: dict[str, Any]) -> None:
    scene.finds(finding)
    reports = scene.scan()
    assert scene.recorded() == [*reports]
    for report, (platform, built) in zip(reports, scene.image.platforms.items(), strict=True):
        assert (report.platform, report.digest, report.index) == (platform, built.digest, scene.image.digest)
        assert (report.by, report.findings, report.refused) == ("grype 0.121.3", 1, ())
        grave = finding["vulnerability"]["severity"] in ("High", "Critical")
        assert len(report.unfixed) == grave
    require_scanned(scene.image, reports)


@pytest.mark.parametrize("severity", ["High", "Critical", "Apocalyptic"])
def test_a_grave_finding_with_a_fix_stops_it(scene: Scene, severity: str) -> None:
    scene.finds(match(severity=severity), match("GO-2026-1", "Low"))
    with pytest.raises(VerificationFailed) as refused:
        scene.scan()
    assert "GHSA-1111-2222-3333" in str(refused.value)
    assert "fixed in 1.2.3" in str(refused.value)
    assert "GO-2026-1" not in str(refused.value)
    # both platforms were scanned before it was refused, and no later stage takes it
    assert [len(report.refused) for report in scene.recorded()] == [1, 1]
    with pytest.raises(VerificationFailed, match="GHSA-1111"):
        require_scanned(scene.image, scene.recorded())
    scene.finds()
    scene.scan()
    require_scanned(scene.image, scene.recorded())


@pytest.mark.parametrize("named", ["GHSA-1111-2222-3333", "CVE-2026-1111"])
def test_a_finding_on_the_list_does_not_stop_it_under_any_of_its_names(scene: Scene, named: str) -> None:
    scene.allowed.write_text(f"- id: {named}\n  expires: {soon()}\n  reason: the code is not reached\n")
    scene.finds(match())
    assert [len(report.allowed) for report in scene.scan()] == [1, 1]


def test_an_entry_about_one_package_is_about_no_other(scene: Scene) -> None:
    scene.allowed.write_text(f"- id: CVE-2026-1111\n  package: stdlib\n  expires: {soon()}\n  reason: not there\n")
    scene.finds(match(package="stdlib"))
    scene.scan()
    scene.finds(match())
    with pytest.raises(VerificationFailed):
        scene.scan()


@pytest.mark.parametrize(
    ("text", "expected_part"),
    [
        ("- {id: CVE-1, reason: x, expires: 2026-11-24}", "CVE-1 has expired on 2026-11-24"),
        ("- {id: CVE-1, reason: x, expires: 2027-11-24}", "is allowed until 2027-11-24, which is too long"),
        ("- {id: CVE-1, reason: x, expires: soon}", "expires is not a date: soon"),
        ("- {id: CVE-1, expires: 2026-12-24}", "it has no reason"),
        ("- {id: CVE-1, reason: x, expires: 2026-12-24, pakage: y}", "there is no pakage"),
        ("- CVE-1", "it is not a mapping"),
        ("id: CVE-1", "not a list"),
        ("- {id: [", "not YAML"),
    ],
)
def test_a_list_that_needs_a_look_is_refused(tmp_path: Path, text: str, expected_part: str) -> None:
    with pytest.raises(IntentError) as refused:
        scan.read_allowed(allow(tmp_path, text), TODAY)
    assert expected_part in str(refused.value)


def test_the_last_day_counts(tmp_path: Path) -> None:
    (entry,) = scan.read_allowed(allow(tmp_path, "- {id: CVE-1, reason: x, expires: 2026-11-25}"), TODAY)
    assert entry.id == "CVE-1"
    assert scan.read_allowed(tmp_path / "none.yaml", TODAY) == ()


def test_an_entry_that_is_not_needed_any_more_is_told(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    scene.allowed.write_text(f"- id: CVE-2026-9\n  expires: {soon()}\n  reason: x\n")
    scene.scan(log=Log())
    printed = capsys.readouterr()
    assert "CVE-2026-9 is on the list" in printed.out + printed.err


def test_an_old_or_broken_report_says_nothing(scene: Scene) -> None:
    for changes in ({"age": timedelta(days=6)}, {"valid": False}):
        scene.finds(**changes)
        with pytest.raises(VerificationFailed, match="database is too old"):
            scene.scan()
    for text in ('{"source": {}}', '{"matches": 1, "descriptor": {}, "source": {}}'):
        scene.writes(text)
        with pytest.raises(VerificationFailed, match="report cannot be read"):
            scene.scan()
    assert not list((scene.dist / "scan").glob("amd64.json"))


def test_a_report_about_something_else_says_nothing(scene: Scene) -> None:
    scene.finds(manifestDigest=digest("another").text)
    with pytest.raises(VerificationFailed, match="reports about another image") as failure:
        scene.scan()
    assert scene.image.platforms[Platform.AMD64].digest.text in str(failure.value)


def test_a_scanner_that_is_not_there_or_fails(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(IntentError, match="there is no no-such-scanner") as absent:
        scene.scan("no-such-scanner")
    assert "--scanner PROGRAM" in str(absent.value)
    with pytest.raises(VerificationFailed, match="could not scan the image") as failure:
        scene.scan(sys.executable, "-c", "raise SystemExit('no database')")
    assert "exit code 1: no database" in str(failure.value)
    with pytest.raises(VerificationFailed, match="could not scan the image"):
        scene.scan(sys.executable, "-c", "pass")  # says nothing, writes nothing
    assert [path.name for path in scene.dist.iterdir() if path.name.startswith("scan-")] == []


def test_the_stub_of_a_rehearsal_counts_for_nothing_else(scene: Scene) -> None:
    stub = (sys.executable, "-m", "pipeline.rehearsal.scanner")
    with pytest.raises(VerificationFailed, match="a stub scanned the image"):
        scene.scan(*stub)
    scene.image = replace(scene.image, rehearsed=True)
    assert [report.by for report in scene.scan(*stub)] == ["stub scanner 0", "stub scanner 0"]
