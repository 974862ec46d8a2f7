"""The summary table of a smoke."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.log import Log, seconds
from pipeline.core.records import SmokeReport, TierReport


def show(reports: Sequence[SmokeReport], log: Log) -> None:
    """Log a row for each platform and tier."""
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


def _summary(tier: TierReport) -> str:
    """Return the number of checks and, where a tier has parts, the state of each."""
    parts = [f"{step} {state}" for step, state in tier.steps.items()]
    return ", ".join([f"{len(tier.checks)} checks", *parts])
