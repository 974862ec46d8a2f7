"""Stage `scan`: refuse an image with a known vulnerability that has a fix and was not reviewed.

The scanner is grype, which reads the built bytes (a release installs it; this project does not include it). Its report
is checked against the list of allowed findings, and against the age of its database.
Format: https://github.com/anchore/grype/blob/main/grype/presenter/models/document.go

    dist/scan/amd64.json         ScanReport: required by push
    dist/scan/amd64.grype.json   the scanner's own report
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pipeline.core.errors import IntentError, VerificationFailed
from pipeline.core.log import Log
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import LAYOUT, OLDEST_DATABASE, SCAN, Image, ScanReport, require_scanned, write_text
from pipeline.oci import layout

ALLOWED = ".github/allowed-vulnerabilities.yaml"
STUB = "stub scanner"  # name of a scanner without a database; only for a rehearsed image
_SEVERITIES = ("unknown", "negligible", "low", "medium", "high", "critical")
_LONGEST = timedelta(days=90)  # that a finding can be allowed before it must be reviewed again
_PATIENCE = 900.0  # seconds for one platform; the first run downloads the database, some hundred megabytes


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One vulnerability in one package."""

    id: str
    aliases: frozenset[str]
    severity: str
    package: str
    version: str
    fixed_in: tuple[str, ...]  # empty: there is no fix yet
    url: str

    @property
    def names(self) -> frozenset[str]:
        """All its ids: GHSA-…, CVE-…, GO-…"""
        return self.aliases | {self.id}

    def __str__(self) -> str:
        fix = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no fix yet"
        return f"{self.id} ({self.severity}) in {self.package} {self.version}, {fix}: {self.url}"


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """A finding that was reviewed."""

    id: str
    package: str  # empty: any
    expires: date
    reason: str

    def covers(self, finding: Finding) -> bool:
        """Return whether it allows that finding."""
        return self.id in finding.names and self.package in ("", finding.package)


def read_allowed(path: Path, today: date) -> tuple[Allowed, ...]:
    """Read the list. Raises IntentError for entries that are incomplete, expired, or valid for too long."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader) or []
    except FileNotFoundError:
        return ()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise IntentError(f"{path} is not YAML", found=str(error)) from None
    if not isinstance(data, list):
        raise IntentError(f"{path} is not a list of findings", found=type(data).__name__)
    mistakes: list[str] = []
    allowed: list[Allowed] = []
    for count, entry in enumerate(data, 1):
        try:
            allowed.append(_entry(entry, today))
        except ValueError as error:
            mistakes.append(f"entry {count}: {error}")
    if mistakes:
        raise IntentError(
            f"{path} must be reviewed",
            expected=f"id, reason, expires (a day within {_LONGEST.days} days), and package if it is about one only",
            found="; ".join(mistakes),
            next_step="does the scan still report it? Then enter a new day and the reason, else delete the entry",
        )
    return tuple(allowed)


def _entry(entry: object, today: date) -> Allowed:
    if not isinstance(entry, dict):
        raise ValueError("it is not a mapping")
    if unknown := entry.keys() - {"id", "package", "expires", "reason"}:
        raise ValueError(f"there is no {', '.join(sorted(unknown))}")
    if missing := [key for key in ("id", "expires", "reason") if not entry.get(key)]:
        raise ValueError(f"it has no {', '.join(missing)}")
    try:
        expires = date.fromisoformat(entry["expires"])
    except ValueError:
        raise ValueError(f"expires is not a date: {entry['expires']}") from None
    if expires < today:
        raise ValueError(f"{entry['id']} has expired on {expires}")
    if expires > today + _LONGEST:
        raise ValueError(f"{entry['id']} is allowed until {expires}, which is too long")
    return Allowed(id=entry["id"], package=entry.get("package", ""), expires=expires, reason=entry["reason"])


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report of grype, as far as it is used."""

    manifest: Digest  # that was scanned
    scanner: str
    version: str
    database: datetime
    findings: tuple[Finding, ...]


def read_report(path: Path, now: datetime) -> Report:
    """Read the scanner's report. Raises VerificationFailed if it is broken or of an old database."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        by = data["descriptor"]
        status = by["db"]["status"]
        report = Report(
            manifest=Digest(data["source"]["target"]["manifestDigest"]),
            scanner=by["name"],
            version=by["version"],
            database=datetime.fromisoformat(status["built"]),
            findings=tuple(_finding(match) for match in data["matches"]),
        )
        old = now - report.database > OLDEST_DATABASE
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerificationFailed(
            "the scanner's report cannot be read",
            expected="the output of grype --output json",
            found=f"{type(error).__name__}: {error}",
            where=str(path),
            next_step="another version of grype may use another format: look at the file",
        ) from None
    if status.get("valid") is False or old:
        raise VerificationFailed(
            "the scanner's database is too old",
            expected=f"one that is valid and younger than {OLDEST_DATABASE.days} days",
            found=f"built {report.database:%Y-%m-%d}, valid: {status.get('valid')}",
            where=str(path),
            next_step="grype db update, then scan again",
        )
    return report


def _finding(match: Mapping[str, Any]) -> Finding:
    vulnerability, artifact = match["vulnerability"], match["artifact"]
    fix = vulnerability.get("fix") or {}
    return Finding(
        id=vulnerability["id"],
        aliases=frozenset(other["id"] for other in match.get("relatedVulnerabilities") or ()),
        severity=str(vulnerability.get("severity") or "unknown").lower(),
        package=artifact["name"],
        version=artifact["version"],
        fixed_in=tuple(fix.get("versions") or ()) if fix.get("state") == "fixed" else (),
        url=vulnerability.get("dataSource") or "",
    )


def run(
    image: Image,
    dist: Path,
    scanner: Sequence[str],
    allowed_path: Path,
    log: Log,
    *,
    least: str = "high",
) -> tuple[ScanReport, ...]:
    """Scan every platform and write dist/scan/; refuse an image with a severe finding that has a fix.

    `scanner`: a command with the options `oci-dir:FOLDER --output json --file FILE`. `least`: the lowest severity that
    counts as severe. Findings on the list, and those without a fix, do not stop a release. Raises VerificationFailed
    with every finding that does, or if the scan failed; IntentError for an invalid list or a missing scanner;
    DigestMismatch if the layout has changed.
    """
    if least not in _SEVERITIES:
        raise IntentError(f"{least} is not a severity", expected=", ".join(_SEVERITIES))
    allowed = read_allowed(allowed_path, datetime.now(UTC).date())
    files = layout.read(dist / LAYOUT, image.digest)
    reports: list[ScanReport] = []
    needed: set[Allowed] = set()
    for platform, built in image.platforms.items():
        raw = dist / SCAN / f"{platform.architecture}.grype.json"
        with _single_platform(files, built.digest, dist) as folder:
            _scan(scanner, folder, raw)
        scanned = read_report(raw, datetime.now(UTC))
        _require_about(scanned, image, platform, raw)
        needed |= {entry for entry in allowed for finding in scanned.findings if entry.covers(finding)}
        severe = [finding for finding in scanned.findings if _rank(finding.severity) >= _rank(least)]
        covered = {finding: entry for finding in severe for entry in allowed if entry.covers(finding)}
        others = [finding for finding in severe if finding not in covered]
        report = ScanReport(
            platform=platform,
            index=image.digest,
            digest=built.digest,
            by=f"{scanned.scanner} {scanned.version}",
            database=scanned.database,
            findings=len(scanned.findings),
            refused=_sorted(finding for finding in others if finding.fixed_in),
            allowed=_sorted(covered),
            unfixed=_sorted(finding for finding in others if not finding.fixed_in),
        )
        report.write(dist)
        reports.append(report)
        log.say(f"{platform}: {report.findings} findings of {report.by}, database of {report.database:%Y-%m-%d}")
        for finding, entry in covered.items():
            log.say(f"{finding.id} in {finding.package} is allowed until {entry.expires}: {entry.reason}")
        for text in report.unfixed:
            log.say(text)
    for entry in allowed:
        if entry not in needed:
            log.warn(f"{entry.id} is on the list of {allowed_path.name} and in no report: delete the entry")
    _refuse(reports, least)
    require_scanned(image, reports)
    return tuple(reports)


def require_scanner(scanner: Sequence[str]) -> None:
    """Raise IntentError if the scanner's program is missing."""
    if shutil.which(scanner[0]) is None:
        raise IntentError(
            f"there is no {scanner[0]}",
            expected="grype, or a scanner that writes its report as grype does",
            next_step="install it (https://github.com/anchore/grype#installation), or name it: --scanner PROGRAM",
        )


@contextmanager
def _single_platform(files: layout.Layout, manifest: Digest, dist: Path) -> Iterator[Path]:
    """Create a layout of one platform with the same blobs.

    In a layout with an index, some releases of grype scan nothing or another platform (anchore/stereoscope,
    pkg/image/oci/directory_provider.go).
    """
    with TemporaryDirectory(dir=dist, prefix="scan-") as name:
        folder = Path(name)
        (folder / "blobs").symlink_to(os.path.relpath(dist / LAYOUT / "blobs", folder))
        layout.write_top(folder, files.part(manifest).descriptor)
        yield folder


def _scan(scanner: Sequence[str], folder: Path, report: Path) -> None:
    """Run the scanner and write its report. Raises IntentError, VerificationFailed."""
    report.parent.mkdir(parents=True, exist_ok=True)
    output = folder / "report.json"
    command = [*scanner, f"oci-dir:{folder}", "--output", "json", "--file", str(output)]
    require_scanner(scanner)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_PATIENCE
        )
    except OSError as error:
        raise IntentError(f"{scanner[0]} cannot be run", found=str(error), next_step="--scanner PROGRAM") from None
    except subprocess.TimeoutExpired:
        raise VerificationFailed(
            f"{scanner[0]} timed out", expected=f"within {_PATIENCE:.0f} s", next_step="nox -s scan"
        ) from None
    if done.returncode != 0 or not output.exists():
        raise VerificationFailed(
            f"{scanner[0]} could not scan the image",
            expected="exit code 0 and a report",
            found=f"exit code {done.returncode}: " + "\n    ".join(done.stderr.strip().splitlines()[-5:]),
            next_step="it needs its database of vulnerabilities, from the network: run it again, nox -s scan",
        )
    write_text(report, output.read_text(encoding="utf-8"))


def _require_about(report: Report, image: Image, platform: Platform, path: Path) -> None:
    """Raise VerificationFailed for a report about another image, or of the stub scanner."""
    expected = image.platforms[platform].digest
    if report.manifest != expected:
        raise VerificationFailed(
            "the scanner reports about another image",
            expected=expected.text,
            found=report.manifest.text,
            where=str(path),
        )
    if report.scanner == STUB and not image.rehearsed:
        raise VerificationFailed(
            "a stub scanned the image, which has no database of vulnerabilities",
            expected="grype",
            where=str(path),
            next_step="nox -s scan -- --scanner PROGRAM",
        )


def _refuse(reports: Sequence[ScanReport], least: str) -> None:
    if refused := _sorted({text for report in reports for text in report.refused}):
        raise VerificationFailed(
            "the image has vulnerabilities that are fixed elsewhere",
            expected=f"none of severity {least} or above with a fix",
            found="\n    ".join(refused),
            next_step="nox -s update takes newer versions; what is not fixed by them can be allowed for a while, "
            f"with the reason, in {ALLOWED}",
        )


def _sorted(findings: Iterable[object]) -> tuple[str, ...]:
    return tuple(sorted(set(map(str, findings))))


def _rank(severity: str) -> int:
    """Return the rank of a severity; an unknown one counts as the highest."""
    return _SEVERITIES.index(severity if severity in _SEVERITIES else _SEVERITIES[-1])
