"""The vulnerability gate: what stops a release, what does not, and a list whose entries expire."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline import scan
from pipeline.errors import IntentError, VerificationFailed
from pipeline.log import Log

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


def report(folder: Path, *matches: dict[str, Any], age: timedelta = timedelta(hours=5), valid: bool = True) -> Path:
    path = folder / "grype.json"
    built = (datetime.now(UTC) - age).isoformat(timespec="seconds").replace("+00:00", "Z")
    status = {"schemaVersion": "v6.1.9", "built": built, "valid": valid}
    described = {"name": "grype", "version": "0.121.3", "db": {"status": status}}
    path.write_text(json.dumps({"matches": matches, "descriptor": described}))
    return path


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
def test_what_is_not_grave_or_has_no_fix_does_not_stop_a_release(tmp_path: Path, finding: dict[str, Any]) -> None:
    scan.run([report(tmp_path, finding)], tmp_path / "none.yaml", LOG)


@pytest.mark.parametrize("severity", ["High", "Critical", "Apocalyptic"])
def test_a_grave_finding_with_a_fix_stops_it(tmp_path: Path, severity: str) -> None:
    with pytest.raises(VerificationFailed) as refused:
        scan.run([report(tmp_path, match(severity=severity), match("GO-2026-1", "Low"))], tmp_path / "none.yaml", LOG)
    assert "GHSA-1111-2222-3333" in str(refused.value)
    assert "fixed in 1.2.3" in str(refused.value)
    assert "GO-2026-1" not in str(refused.value)


@pytest.mark.parametrize("named", ["GHSA-1111-2222-3333", "CVE-2026-1111"])
def test_a_finding_on_the_list_does_not_stop_it_under_any_of_its_names(tmp_path: Path, named: str) -> None:
    listed = allow(tmp_path, f"- id: {named}\n  expires: {soon()}\n  reason: the code is not reached\n")
    scan.run([report(tmp_path, match())], listed, LOG)


def test_an_entry_about_one_package_is_about_no_other(tmp_path: Path) -> None:
    text = f"- id: CVE-2026-1111\n  package: stdlib\n  expires: {soon()}\n  reason: not reached there\n"
    scan.run([report(tmp_path, match(package="stdlib"))], allow(tmp_path, text), LOG)
    with pytest.raises(VerificationFailed):
        scan.run([report(tmp_path, match())], allow(tmp_path, text), LOG)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- {id: CVE-1, reason: x, expires: 2026-11-24}", "CVE-1 has expired on 2026-11-24"),
        ("- {id: CVE-1, reason: x, expires: 2027-11-24}", "is allowed until 2027-11-24, which is too long"),
        ("- {id: CVE-1, reason: x, expires: soon}", "expires is no day: soon"),
        ("- {id: CVE-1, expires: 2026-12-24}", "it has no reason"),
        ("- {id: CVE-1, reason: x, expires: 2026-12-24, pakage: y}", "there is no pakage"),
        ("- CVE-1", "it is not a mapping"),
        ("id: CVE-1", "not a list"),
        ("- {id: [", "not YAML"),
    ],
)
def test_a_list_that_needs_a_look_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(IntentError) as refused:
        scan.read_allowed(allow(tmp_path, text), TODAY)
    assert told in str(refused.value)


def test_the_last_day_counts(tmp_path: Path) -> None:
    (entry,) = scan.read_allowed(allow(tmp_path, "- {id: CVE-1, reason: x, expires: 2026-11-25}"), TODAY)
    assert entry.id == "CVE-1"
    assert scan.read_allowed(tmp_path / "none.yaml", TODAY) == ()


def test_an_entry_that_is_not_needed_any_more_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = allow(tmp_path, f"- id: CVE-2026-9\n  expires: {soon()}\n  reason: x\n")
    scan.run([report(tmp_path)], listed, Log())
    printed = capsys.readouterr()
    assert "CVE-2026-9 is on the list" in printed.out + printed.err


def test_an_old_or_broken_report_says_nothing(tmp_path: Path) -> None:
    for path in (report(tmp_path, age=timedelta(days=6)), report(tmp_path, valid=False)):
        with pytest.raises(VerificationFailed, match="too old to say anything"):
            scan.run([path], tmp_path / "none.yaml", LOG)
    for text in ("", "{}", '{"matches": 1, "descriptor": {}}', "[]"):
        path.write_text(text)
        with pytest.raises(VerificationFailed, match="no report of the scanner"):
            scan.run([path], tmp_path / "none.yaml", LOG)
    with pytest.raises(VerificationFailed, match="no report of the scanner"):
        scan.run([tmp_path / "nothing.json"], tmp_path / "none.yaml", LOG)
