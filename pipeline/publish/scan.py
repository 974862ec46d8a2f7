"""Stage `scan`: is there a known vulnerability with a fix in the image, which has not been reviewed yet?

The scanner is grype, which reads the built bytes (a release installs it; it is no part of this project). Its report
is checked against the list of allowed findings, and against the age of its database: an old one finds nothing new.
Format: https://github.com/anchore/grype/blob/main/grype/presenter/models/document.go

    dist/scan/amd64.json         ScanReport: what push goes by
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
STAND_IN = "stand-in"  # how a scanner names itself that knows nothing; only a rehearsed image may go by it
_SEVERITIES = ("unknown", "negligible", "low", "medium", "high", "critical")
_LONGEST = timedelta(days=90)  # that a finding may be allowed for before it is reviewed again
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
        """Every id that it goes by: GHSA-…, CVE-…, GO-…"""
        return self.aliases | {self.id}

    def __str__(self) -> str:
        fix = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no fix yet"
        return f"{self.id} ({self.severity}) in {self.package} {self.version}, {fix}: {self.url}"


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """A finding that was reviewed."""

    id: str
    package: str  # empty: in any
    expires: date
    reason: str

    def covers(self, finding: Finding) -> bool:
        """Whether it is about that finding."""
        return self.id in finding.names and self.package in ("", finding.package)


def read_allowed(path: Path, today: date) -> tuple[Allowed, ...]:
    """The list. Raises IntentError for what is not complete, has expired, or is allowed for too long."""
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
            f"{path} needs a look",
            expected=f"id, reason, expires (a day within {_LONGEST.days} days), and package if it is about one alone",
            found="; ".join(mistakes),
            next_step="is the finding still there? Then give it a new day and say why, else delete the entry",
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
        raise ValueError(f"expires is no day: {entry['expires']}") from None
    if expires < today:
        raise ValueError(f"{entry['id']} has expired on {expires}")
    if expires > today + _LONGEST:
        raise ValueError(f"{entry['id']} is allowed until {expires}, which is too long")
    return Allowed(id=entry["id"], package=entry.get("package", ""), expires=expires, reason=entry["reason"])


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is read of grype's report."""

    manifest: Digest  # what it is about
    scanner: str
    version: str
    database: datetime
    findings: tuple[Finding, ...]


def read_report(path: Path, now: datetime) -> Report:
    """What the scanner found. Raises VerificationFailed for a report that is broken or of an old database."""
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
            next_step="another version of grype may write it otherwise: look at the file",
        ) from None
    if status.get("valid") is False or old:
        raise VerificationFailed(
            "the scanner's database is too old to say anything",
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
    """Scan every platform and write dist/scan/; refuse an image with a grave finding that has a fix.

    `scanner`: the command that takes `oci-dir:FOLDER --output json --file FILE`. `least`: the severity from which on a
    finding is grave. One that is on the list does not stop a release, nor one that has no fix yet: nothing could be
    done about it but to stop releasing. Raises VerificationFailed with every finding that does, or when there is no
    scan to go by; IntentError for a list that needs a look and a scanner that is not there; DigestMismatch when the
    layout has changed.
    """
    if least not in _SEVERITIES:
        raise IntentError(f"{least} is not a severity", expected=", ".join(_SEVERITIES))
    allowed = read_allowed(allowed_path, datetime.now(UTC).date())
    built = layout.read(dist / LAYOUT, image.digest)
    reports: list[ScanReport] = []
    needed: set[Allowed] = set()
    for platform, one in image.platforms.items():
        raw = dist / SCAN / f"{platform.architecture}.grype.json"
        with _alone(built, one.digest, dist) as folder:
            _scan(scanner, folder, raw)
        scanned = read_report(raw, datetime.now(UTC))
        _require_about(scanned, image, platform, raw)
        needed |= {entry for entry in allowed for finding in scanned.findings if entry.covers(finding)}
        grave = [finding for finding in scanned.findings if _rank(finding.severity) >= _rank(least)]
        covered = {finding: entry for finding in grave for entry in allowed if entry.covers(finding)}
        others = [finding for finding in grave if finding not in covered]
        report = ScanReport(
            platform=platform,
            index=image.digest,
            digest=one.digest,
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
    """Refuse to begin without the scanner's program. Raises IntentError."""
    if shutil.which(scanner[0]) is None:
        raise IntentError(
            f"there is no {scanner[0]}",
            expected="grype, or a scanner that writes its report as grype does",
            next_step="install it (https://github.com/anchore/grype#installation), or name it: --scanner PROGRAM",
        )


@contextmanager
def _alone(built: layout.Layout, manifest: Digest, dist: Path) -> Iterator[Path]:
    """A layout of one platform with the same blobs.

    Of a layout with an index, releases of grype scan nothing or what they take for the first platform
    (anchore/stereoscope, pkg/image/oci/directory_provider.go); of this one all of them scan that manifest.
    """
    with TemporaryDirectory(dir=dist, prefix="scan-") as name:
        folder = Path(name)
        (folder / "blobs").symlink_to(os.path.relpath(dist / LAYOUT / "blobs", folder))
        layout.write_top(folder, built.part(manifest).descriptor)
        yield folder


def _scan(scanner: Sequence[str], folder: Path, report: Path) -> None:
    """Run the scanner; its report is there when it is whole. Raises IntentError, VerificationFailed."""
    report.parent.mkdir(parents=True, exist_ok=True)
    made = folder / "report.json"
    command = [*scanner, f"oci-dir:{folder}", "--output", "json", "--file", str(made)]
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
    if done.returncode != 0 or not made.exists():
        raise VerificationFailed(
            f"{scanner[0]} could not scan the image",
            expected="exit code 0 and a report",
            found=f"exit code {done.returncode}: " + "\n    ".join(done.stderr.strip().splitlines()[-5:]),
            next_step="it needs its database of vulnerabilities, from the network: run it again, nox -s scan",
        )
    write_text(report, made.read_text(encoding="utf-8"))


def _require_about(found: Report, image: Image, platform: Platform, path: Path) -> None:
    """Refuse a report about something else, or of a scanner that knows nothing."""
    expected = image.platforms[platform].digest
    if found.manifest != expected:
        raise VerificationFailed(
            "the scanner reports about another image",
            expected=expected.text,
            found=found.manifest.text,
            where=str(path),
        )
    if found.scanner == STAND_IN and not image.rehearsed:
        raise VerificationFailed(
            "a stand-in scanned the image, which knows no vulnerability",
            expected="grype",
            where=str(path),
            next_step="nox -s scan -- --scanner PROGRAM",
        )


def _refuse(reports: Sequence[ScanReport], least: str) -> None:
    if refused := _sorted({text for report in reports for text in report.refused}):
        raise VerificationFailed(
            "the image has vulnerabilities that are fixed elsewhere",
            expected=f"none of severity {least} or above that has a fix",
            found="\n    ".join(refused),
            next_step="nox -s update takes newer versions; what cannot be reached is allowed for a while, "
            f"with the reason, in {ALLOWED}",
        )


def _sorted(findings: Iterable[object]) -> tuple[str, ...]:
    return tuple(sorted({str(each) for each in findings}))


def _rank(severity: str) -> int:
    """A severity that a newer grype may have invented counts as the gravest."""
    return _SEVERITIES.index(severity if severity in _SEVERITIES else _SEVERITIES[-1])
