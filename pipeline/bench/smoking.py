"""`bench smoke`: the time of each tier on each platform, out of the reports that the last smoke has left in dist/.

Nothing is run: what the checks took was measured when they decided whether the image is released.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.bench import plot, report
from pipeline.bench.sizing import lock_of
from pipeline.core import records
from pipeline.core.errors import IntentError
from pipeline.core.log import seconds
from pipeline.core.records import SmokeReport, State, Tier, Variant

if TYPE_CHECKING:
    from pipeline.workflow import Run

SLOWEST = 12  # checks that the page names


def main(run: Run, *, write: bool, check: bool) -> dict[str, Any]:
    """Read, print, compare or write. Raises IntentError when the built image was not smoked, Slower."""
    image = records.Image.read(run.dist)
    own = lock_of(run, image)
    reports = {}
    for variant in Variant:
        folder = variant.below(run.dist)
        if (folder / records.IMAGE).exists():
            made = records.Image.read(folder)
            found = [SmokeReport.read(folder, platform) for platform in made.platforms]
            if any(one.index != made.digest for one in found):
                raise IntentError(
                    f"{folder / records.SMOKE} is about another image than was built", next_step="nox -s smoke"
                )
            reports[variant] = found
    document = describe(reports, image)
    document["versions"] = {name: own.versions[name] for name in ("docker", "k3s")}
    document = report.stored(document)
    files = {"md": render(document), "svg": draw(document)}
    report.finish("smoke", document, files, run.root, run.log, write=write, check_=check)
    return document


def describe(reports: Mapping[Variant, Sequence[SmokeReport]], image: records.Image) -> dict[str, Any]:
    """Everything that a reader needs to judge it."""
    tiers = [
        {
            "variant": variant.value,
            "platform": one.platform.value,
            "tier": tier.tier.value,
            "state": tier.state.value,
            "where": tier.where,
            "reason": tier.reason,
            "seconds": round(tier.seconds, 2),
            "checks": [[check.name, round(check.seconds, 2)] for check in tier.checks],
        }
        for variant, them in reports.items()
        for one in them
        for tier in one.tiers
    ]
    return {
        "rehearsed": image.rehearsed,
        "image": image.annotations.get("org.opencontainers.image.version", ""),
        "machine": report.machine(),
        "targets": targets(tiers),
        "tiers": tiers,
    }


def targets(tiers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Failures; and what a virtual engine costs beside how much slower than natively it has measured itself to be."""
    failed = sum(tier["state"] == State.FAILED for tier in tiers)
    found = [report.target("tiers that failed", [failed], 0)]
    boots = [
        tier for tier in tiers if tier["tier"] == Tier.BOOT and tier["variant"] == Variant.IMAGE and tier["checks"]
    ]
    native = [tier for tier in boots if tier["where"].startswith("native")]
    for tier in boots:
        slower = re.search(r"(\d+(?:\.\d+)?)× slower", tier["where"])
        if slower and native:
            ratio = tier["seconds"] / native[0]["seconds"] / float(slower[1])
            name = f"boot, {tier['platform']} on a virtual engine beside native, in parts of how much slower that is"
            found.append(report.target(name, [ratio], 1.0))
    return found


def _name(tier: Mapping[str, Any]) -> str:
    suffix = Variant(tier["variant"]).suffix.replace("-", " ")
    return f"{tier['platform'].removeprefix('linux/')}{suffix}, {tier['tier']}"


def _ran(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [tier for tier in document["tiers"] if tier["checks"]]


def draw(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/smoke.svg: a bar for each tier that ran, its slowest checks by name."""
    rows = []
    for tier in _ran(document):
        ordered = sorted(tier["checks"], key=lambda check: -check[1])
        named = {check[0] for check in ordered[:2] if check[1] >= 5}
        parts: dict[str, float] = {}
        for name, value in tier["checks"]:
            key = name if name in named else "other checks"
            parts[key] = parts.get(key, 0.0) + value
        rows.append(plot.Row(name=_name(tier), parts=parts))
    return plot.bars("Smoke: time of each tier", rows, "s")


def render(document: Mapping[str, Any]) -> str:
    """docs/benchmarks/smoke.md."""
    ran = _ran(document)
    whole = sum(tier["seconds"] for tier in ran)
    top = max(ran, key=lambda tier: float(tier["seconds"]), default=None)
    slow = sorted(((value, _name(tier), name) for tier in ran for name, value in tier["checks"]), reverse=True)[
        :SLOWEST
    ]
    rows = [
        [
            tier["platform"] + Variant(tier["variant"]).suffix,
            tier["tier"],
            tier["state"],
            seconds(tier["seconds"]) if tier["checks"] else "",
            len(tier["checks"]) or "",
            tier["where"] if tier["checks"] else tier["reason"],
        ]
        for tier in document["tiers"]
    ]
    lines = [
        "# Benchmark: smoke",
        "",
        f"Written by `{report.command('smoke', document)}`, out of the reports of the last smoke in dist/, on the "
        "machine that it ran on; every figure: [smoke.json](smoke.json). What the tiers are: "
        "[docs/smoke.md](../smoke.md).",
        "",
        f"The image {document['image']}; one run, as it was when it decided on the release.",
        "",
        *report.machine_lines(document),
        "",
        *report.targets_table(document["targets"]),
        "",
        "![time of each tier](smoke.svg)",
        "",
        *report.table(["platform", "tier", "state", "time", "checks", "where, or why not"], rows),
        "",
    ]
    if top is not None and whole:
        lines += [
            f"All checks together take {seconds(whole)}. {_name(top)} is {top['seconds'] / whole:.0%} of it. The limit "
            "is what the emulation of a whole machine costs: the same checks take the native time wherever a machine "
            "of that platform is at hand (`--engine`), and nothing else waits for "
            "them but the release.",
            "",
        ]
    lines += [
        "## The slowest checks",
        "",
        *report.table(["check", "of", "time"], [[n, t, seconds(v)] for v, t, n in slow]),
    ]
    return "\n".join(lines) + "\n"
