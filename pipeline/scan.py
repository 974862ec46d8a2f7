"""Stage `scan`: is there a known vulnerability with a fix in the image, which nobody has looked at yet?

The scanner is grype, which reads the built layout itself (a release installs it; it is no part of this project).
Here its report is held against the list of allowed findings, and against the age of its database: an old one finds
nothing new.
Format: https://github.com/anchore/grype/blob/main/grype/presenter/models/document.go
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import IntentError, VerificationFailed
from pipeline.log import Log

ALLOWED = ".github/allowed-vulnerabilities.yaml"
_SEVERITIES = ("unknown", "negligible", "low", "medium", "high", "critical")
_OLDEST_DATABASE = timedelta(days=5)  # as grype itself refuses by default
_LONGEST = timedelta(days=90)  # that a finding may be allowed for, so that somebody looks again


@dataclass(frozen=True, kw_only=True)
class Found:
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
    """A finding that somebody has looked at."""

    id: str
    package: str  # empty: in any
    expires: date
    reason: str

    def covers(self, found: Found) -> bool:
        """Whether it is about that finding."""
        return self.id in found.names and self.package in ("", found.package)


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


def read_report(path: Path, now: datetime) -> tuple[Found, ...]:
    """What grype found. Raises VerificationFailed for a report that is broken or of an old database."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        status = data["descriptor"]["db"]["status"]
        built = datetime.fromisoformat(status["built"])
        found = tuple(_found(match) for match in data["matches"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerificationFailed(
            "there is no report of the scanner to go by",
            expected="the output of grype -o json",
            found=f"{type(error).__name__}: {error}",
            where=str(path),
            next_step="grype oci-dir:dist/image --platform linux/amd64 -o json --file FILE, then: nox -s scan -- FILE",
        ) from None
    if status.get("valid") is False or now - built > _OLDEST_DATABASE:
        raise VerificationFailed(
            "the scanner's database is too old to say anything",
            expected=f"one that is valid and younger than {_OLDEST_DATABASE.days} days",
            found=f"built {built:%Y-%m-%d}, valid: {status.get('valid')}",
            where=str(path),
            next_step="grype db update, then scan again",
        )
    return found


def _found(match: Mapping[str, Any]) -> Found:
    vulnerability, artifact = match["vulnerability"], match["artifact"]
    fix = vulnerability.get("fix") or {}
    return Found(
        id=vulnerability["id"],
        aliases=frozenset(other["id"] for other in match.get("relatedVulnerabilities") or ()),
        severity=str(vulnerability.get("severity") or "unknown").lower(),
        package=artifact["name"],
        version=artifact["version"],
        fixed_in=tuple(fix.get("versions") or ()) if fix.get("state") == "fixed" else (),
        url=vulnerability.get("dataSource") or "",
    )


def run(reports: Sequence[Path], allowed_path: Path, log: Log, *, least: str = "high") -> None:
    """Refuse an image with a finding of that severity or above that has a fix and is not on the list.

    What has no fix is told and does not stop a release: nothing could be done about it but to stop releasing.
    Raises VerificationFailed with every such finding; IntentError for a list that needs a look.
    """
    if least not in _SEVERITIES:
        raise IntentError(f"{least} is not a severity", expected=", ".join(_SEVERITIES))
    now = datetime.now(UTC)
    allowed = read_allowed(allowed_path, now.date())
    found = {str(one): one for report in reports for one in read_report(report, now)}
    grave = [one for one in found.values() if _SEVERITIES.index(_known(one.severity)) >= _SEVERITIES.index(least)]
    log.say(f"{len(found)} findings, {len(grave)} of them {least} or above")
    refused = [*_refused(grave, allowed, log)]
    for entry in allowed:
        if not any(entry.covers(one) for one in found.values()):
            log.warn(f"{entry.id} is on the list of {allowed_path.name} and in no report: delete the entry")
    if refused:
        raise VerificationFailed(
            "the image has vulnerabilities that are fixed elsewhere",
            expected=f"none of severity {least} or above that has a fix",
            found="\n    ".join(map(str, sorted(refused, key=str))),
            next_step="nox -s update brings newer versions; what cannot be reached is allowed for a while, "
            f"with the reason, in {ALLOWED}",
        )


def _known(severity: str) -> str:
    """A severity that a newer grype may have invented counts as the gravest."""
    return severity if severity in _SEVERITIES else _SEVERITIES[-1]


def _refused(grave: Sequence[Found], allowed: Sequence[Allowed], log: Log) -> Iterator[Found]:
    for one in grave:
        entry = next((entry for entry in allowed if entry.covers(one)), None)
        if entry is not None:
            log.say(f"{one.id} in {one.package} is allowed until {entry.expires}: {entry.reason}")
        elif one.fixed_in:
            yield one
        else:
            log.say(f"{one}")
