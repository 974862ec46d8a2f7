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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import yaml

from pipeline.core.errors import IntentError, VerificationFailed
from pipeline.core.log import Log
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
    names: frozenset[str]  # all its ids: GHSA-…, CVE-…, GO-…
    severity: str
    package: str
    has_fix: bool
    text: str  # for a report

    @classmethod
    def of(cls, match: Mapping[str, Any]) -> Self:
        """Read a match of grype's report. Raises KeyError, TypeError, AttributeError."""
        vulnerability, artifact = match["vulnerability"], match["artifact"]
        fix = vulnerability.get("fix") or {}
        fixed_in = tuple(fix.get("versions") or ()) if fix.get("state") == "fixed" else ()
        state = f"fixed in {', '.join(fixed_in)}" if fixed_in else "no fix yet"
        severity = str(vulnerability.get("severity") or "unknown").lower()
        name = f"{vulnerability['id']} ({severity}) in {artifact['name']} {artifact['version']}"
        return cls(
            id=vulnerability["id"],
            names=frozenset(entry["id"] for entry in (vulnerability, *(match.get("relatedVulnerabilities") or ()))),
            severity=severity,
            package=artifact["name"],
            has_fix=bool(fixed_in),
            text=f"{name}, {state}: {vulnerability.get('dataSource') or ''}",
        )


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


def _read_report(path: Path, image: Image, platform: Platform) -> tuple[str, datetime, list[Finding]]:
    """Return the scanner with its version, the time of its database, and the findings of its report.

    Raises VerificationFailed if it is broken, about another image, of an old database, or of the stub scanner.
    """
    expected, where = image.platforms[platform].digest.text, str(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        scanner, scanned = data["descriptor"], str(data["source"]["target"]["manifestDigest"])
        status = scanner["db"]["status"]
        by, database = f"{scanner['name']} {scanner['version']}", datetime.fromisoformat(status["built"])
        findings = [Finding.of(match) for match in data["matches"]]
        is_old = status.get("valid") is False or datetime.now(UTC) - database > OLDEST_DATABASE
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationFailed(
            "the scanner's report cannot be read",
            expected="the output of grype --output json",
            found=f"{type(error).__name__}: {error}",
            where=where,
            next_step="another version of grype may use another format: look at the file",
        ) from None
    if is_old:
        raise VerificationFailed(
            "the scanner's database is too old",
            expected=f"one that is valid and younger than {OLDEST_DATABASE.days} days",
            found=f"built {database:%Y-%m-%d}, valid: {status.get('valid')}",
            where=where,
            next_step="grype db update, then scan again",
        )
    if scanned != expected:
        raise VerificationFailed(
            "the scanner reports about another image", expected=expected, found=scanned, where=where
        )
    if scanner["name"] == STUB and not image.rehearsed:
        raise VerificationFailed(
            "a stub scanned the image, which has no database of vulnerabilities",
            expected="grype",
            where=where,
            next_step="nox -s scan -- --scanner PROGRAM",
        )
    return by, database, findings


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
        _scan(scanner, files.part(built.digest), dist, raw)
        by, database, findings = _read_report(raw, image, platform)
        needed |= {entry for entry in allowed for finding in findings if entry.covers(finding)}
        severe = [finding for finding in findings if _rank(finding.severity) >= _rank(least)]
        covered = {finding: entry for finding in severe for entry in allowed if entry.covers(finding)}
        others = [finding for finding in severe if finding not in covered]
        report = ScanReport(
            platform=platform,
            index=image.digest,
            digest=built.digest,
            by=by,
            database=database,
            findings=len(findings),
            refused=_texts(finding for finding in others if finding.has_fix),
            allowed=_texts(covered),
            unfixed=_texts(finding for finding in others if not finding.has_fix),
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
    if refused := sorted({text for report in reports for text in report.refused}):
        raise VerificationFailed(
            "the image has vulnerabilities that are fixed elsewhere",
            expected=f"none of severity {least} or above with a fix",
            found="\n    ".join(refused),
            next_step="nox -s update takes newer versions; what is not fixed by them can be allowed for a while, "
            f"with the reason, in {ALLOWED}",
        )
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


def _scan(scanner: Sequence[str], manifest: layout.Part, dist: Path, report: Path) -> None:
    """Run the scanner on one platform and write its report. Raises IntentError, VerificationFailed."""
    require_scanner(scanner)
    # A layout of one platform with the same blobs: in one with an index, some releases of grype scan nothing or another
    # platform (anchore/stereoscope, pkg/image/oci/directory_provider.go).
    with TemporaryDirectory(dir=dist, prefix="scan-") as name:
        folder = Path(name)
        (folder / "blobs").symlink_to(os.path.relpath(dist / LAYOUT / "blobs", folder))
        layout.write_top(folder, manifest.descriptor)
        output = folder / "report.json"
        _run([*scanner, f"oci-dir:{folder}", "--output", "json", "--file", str(output)], output)
        write_text(report, output.read_text(encoding="utf-8"))


def _run(command: Sequence[str], output: Path) -> None:
    """Run the scanner, which must write the file `output`. Raises IntentError, VerificationFailed."""
    scanner = command[0]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_PATIENCE
        )
    except OSError as error:
        raise IntentError(f"{scanner} cannot be run", found=str(error), next_step="--scanner PROGRAM") from None
    except subprocess.TimeoutExpired:
        raise VerificationFailed(
            f"{scanner} timed out", expected=f"within {_PATIENCE:.0f} s", next_step="nox -s scan"
        ) from None
    if done.returncode != 0 or not output.exists():
        raise VerificationFailed(
            f"{scanner} could not scan the image",
            expected="exit code 0 and a report",
            found=f"exit code {done.returncode}: " + "\n    ".join(done.stderr.strip().splitlines()[-5:]),
            next_step="it needs its database of vulnerabilities, from the network: run it again, nox -s scan",
        )


def _texts(findings: Iterable[Finding]) -> tuple[str, ...]:
    return tuple(sorted({finding.text for finding in findings}))


def _rank(severity: str) -> int:
    """Return the rank of a severity; an unknown one counts as the highest."""
    return _SEVERITIES.index(severity if severity in _SEVERITIES else _SEVERITIES[-1])
