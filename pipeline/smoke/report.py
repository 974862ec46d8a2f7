"""The reports of smoke: JUnit XML for machines, a table for people."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.log import Log, seconds
from pipeline.core.records import SmokeReport, State, TierReport, write_text


def junit(reports: Sequence[SmokeReport]) -> str:
    """JUnit XML: a suite for each platform and tier, a case for each check; a tier that did not run is skipped."""
    top = ET.Element("testsuites", name="smoke")
    for report in reports:
        for tier in report.tiers:
            failures = sum(check.state == State.FAILED for check in tier.checks)
            left = sum(check.state == State.NOT_RUN for check in tier.checks)
            skipped = int(tier.state == State.NOT_RUN)
            suite = ET.SubElement(
                top,
                "testsuite",
                name=f"{report.platform} {tier.tier}",
                tests=str(len(tier.checks) + skipped),
                failures=str(failures),
                skipped=str(skipped + left),
                time=f"{tier.seconds:.2f}",
            )
            for check in tier.checks:
                case = ET.SubElement(
                    suite,
                    "testcase",
                    classname=f"{report.platform}.{tier.tier}",
                    name=check.name,
                    time=f"{check.seconds:.2f}",
                )
                if check.state == State.FAILED:
                    ET.SubElement(case, "failure", message=_clean(check.detail))
                elif check.state == State.NOT_RUN:
                    ET.SubElement(case, "skipped", message=_clean(check.detail))
                else:
                    ET.SubElement(case, "system-out").text = _clean(check.detail)
            if skipped:
                case = ET.SubElement(suite, "testcase", classname=f"{report.platform}.{tier.tier}", name=tier.tier)
                ET.SubElement(case, "skipped", message=_clean(tier.reason))
    ET.indent(top)
    return ET.tostring(top, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    """XML 1.0 allows no control characters; a container's output may hold some."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


def write(reports: Sequence[SmokeReport], folder: Path) -> None:
    """Write junit.xml into a folder."""
    write_text(folder / "junit.xml", junit(reports))


def _summary(tier: TierReport) -> str:
    """How many checks there were; where a tier has parts, how each ended."""
    parts = [f"{step} {state}" for step, state in tier.steps.items()]
    return ", ".join([f"{len(tier.checks)} checks", *parts])


def show(reports: Sequence[SmokeReport], log: Log) -> None:
    """A row for each platform and tier."""
    rows = [
        [
            report.platform.value,
            tier.tier.value,
            tier.state.value,
            seconds(tier.seconds) if tier.checks else "",
            tier.where,
            tier.reason or _summary(tier),
        ]
        for report in reports
        for tier in report.tiers
    ]
    log.table("smoke", ["platform", "tier", "state", "time", "ran on", ""], rows)
