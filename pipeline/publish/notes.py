"""Release notes, from the records in dist/ and the locks of two releases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.core.log import seconds, size
from pipeline.core.markdown import folded, table
from pipeline.core.records import LAYOUT, Image, Release, SmokeReport, State, Tier, Variant
from pipeline.inputs import changes
from pipeline.inputs.lock import Lock
from pipeline.oci import layout
from pipeline.oci.index import Document

_LONGEST = 60  # characters of a layer's command


def markdown(images: Mapping[Variant, Image], dist: Path, old: Lock | None, new: Lock) -> str:
    """Return the release notes: tags, components, sizes, boot results, changes, and how to verify it.

    `old`: the lock of the previous release; None: the first one. Raises IntentError if a record is missing,
    DigestMismatch if the layout is incomplete.
    """
    parts = [
        f"# k3s {new.versions['k3s']}, docker {new.versions['docker']}",
        *(_names(image, Release.read(variant.below(dist), image.digest)) for variant, image in images.items()),
        "## What is in it",
        _components(old, new),
        "## How big it is, and how it booted",
        _platforms(images, dist),
        *(_layers(images[Variant.IMAGE], dist)),
        _check(images[Variant.IMAGE], Release.read(dist, images[Variant.IMAGE].digest)),
    ]
    if old is not None:
        # One level down: there the changes are a page, here a part of one.
        changed = changes.markdown(old, new, ()).replace("\n### ", "\n#### ").replace("## ", "### ", 1)
        parts += ["## What changed since the release before", changed.strip()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _names(image: Image, release: Release) -> str:
    title = "The image" if image.variant is Variant.IMAGE else f"The variant {image.variant}"
    names = "\n".join(f"- `{reference}`" for reference in release.tagged) or "- no tag yet"
    return f"{title} is `{image.digest}`:\n\n{names}"


def _components(old: Lock | None, new: Lock) -> str:
    rows = []
    for name, version in sorted(new.versions.items()):
        before = old.versions.get(name) if old else None
        inside = ", ".join(f"{program} {embedded}" for program, embedded in sorted(new.embedded.get(name, {}).items()))
        rows.append([name, version, "the same" if before == version else before or "—", inside or "—"])
    rows.append(["Debian packages", str(len({file.component for file in new.packages})), "", f"on {new.base.image}"])
    return table(["component", "version", "before", "with"], rows)


def _platforms(images: Mapping[Variant, Image], dist: Path) -> str:
    rows = []
    for variant, image in images.items():
        for platform, built in image.platforms.items():
            report = SmokeReport.read(variant.below(dist), platform)
            rows.append([f"{platform}{variant.suffix}", f"`{built.digest}`", size(built.size), _boot(report)])
    return table(["platform", "manifest", "to pull", "boot"], rows)


def _boot(report: SmokeReport) -> str:
    for tier in report.tiers:
        if tier.tier is Tier.BOOT:
            if tier.state is State.NOT_RUN:
                return f"not run: {tier.reason}"
            return f"{tier.state} in {seconds(tier.seconds)} ({tier.where})"
    return "not run"


def _layers(image: Image, dist: Path) -> Iterator[str]:
    """Yield a folded table of each platform's layers, the lowest first."""
    files = layout.read(dist / LAYOUT, image.digest)
    for platform, built in image.platforms.items():
        layers = files.layers(built.digest)
        commands = _commands(files.config(built.digest), len(layers))
        rows = [
            [command[:_LONGEST], size(layer.size), f"`{layer.digest}`"]
            for command, layer in zip(commands, layers, strict=True)
        ]
        text = table(["layer", "compressed", "digest"], rows)
        yield folded(f"Layers of {platform}: {size(built.size)}", text)


def _commands(config: Document, count: int) -> list[str]:
    """Return the command of each layer from the config's history; if that is shorter, the first entries are empty."""
    texts = [
        f"{entry.get('comment') or ''} {entry.get('created_by', '')}"
        for entry in config.get("history", ())
        if not entry.get("empty_layer")
    ]
    cleaned = [" ".join(text.replace("buildkit.dockerfile.v0", "").split()) for text in texts][-count:]
    return [*[""] * (count - len(cleaned)), *cleaned]


def _check(image: Image, release: Release) -> str:
    name = release.pushed[0] if release.pushed else "IMAGE"
    return f"""## Check it

    nox -s verify -- {name}@{image.digest}

in a checkout of this tag downloads every byte without credentials and holds digests, signatures and SBOMs against each
other; with cosign and gh alone: [docs/verify.md](docs/verify.md). `nox -s reproduce -- {name}@{image.digest}` builds it
again from its lock, and ends with the same manifests."""
