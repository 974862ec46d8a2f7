"""Stage `rollback`: point the moving tags back at an older release. Nothing is deleted, nothing is built.

A tag that never moves stays where it is, so the release that is taken back can still be had by its own name. The next
release moves the moving tags on, as ever: tag.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.core.annotations import KEY, variant_of
from pipeline.core.errors import IntentError, RegistryError
from pipeline.core.log import Log
from pipeline.core.names import INDEX, Digest, ImageName
from pipeline.oci.registry import Manifest, Registry
from pipeline.publish.tag import moving_tags


@dataclass(frozen=True, kw_only=True)
class Move:
    """One tag in one repository."""

    registry: Registry
    tag: str
    before: Digest

    def __str__(self) -> str:
        return f"{self.registry.name}:{self.tag}"


def run(
    names: Sequence[ImageName],
    target: str,
    registry_for: Callable[[ImageName], Registry],
    log: Log,
    *,
    dry_run: bool,
) -> tuple[Move, ...]:
    """Move, in every repository, the moving tags that `target` would have had as the newest release.

    `target`: a tag that never moves (`k3s-…-r1`) or a digest; a variant (`k3s-…-r1-airgap`) has moving tags of its own.
    Every repository must hold it, with the same digest, before any tag moves. Raises IntentError for a target that is
    no release, RegistryError.
    """
    registries = [registry_for(name) for name in names]
    found = [(registry, _release(registry, target)) for registry in registries]
    digests = {manifest.digest for _, manifest in found}
    if len(digests) != 1:
        raise RegistryError(
            f"{target} is not the same image everywhere",
            expected="one digest",
            found=", ".join(f"{registry.name}: {manifest.digest}" for registry, manifest in found),
            next_step="name the right one by its digest, and find out who tagged the other",
        )
    moves = [move for registry, manifest in found for move in _moves(registry, manifest)]
    for move in moves:
        if not dry_run:
            manifest = next(manifest for registry, manifest in found if registry is move.registry)
            move.registry.tag(move.tag, manifest.raw, INDEX)
        log.say(f"{move}: {'would be moved' if dry_run else 'moved'} from {move.before.short}… back to {target}")
    if not moves:
        log.say(f"nothing to do: the moving tags are at {target} already")
    return tuple(moves)


def _release(registry: Registry, target: str) -> Manifest:
    found = registry.manifest(target)
    if found is None:
        raise RegistryError(
            f"{registry.name} has no {target}",
            expected="a release that every repository of versions.yaml holds",
            next_step=f"its releases: {', '.join(_releases(registry)) or 'none'}",
        )
    if found.media_type != INDEX or not _versions(found):
        raise IntentError(
            f"{target} is not a release of this project",
            expected=f"an index whose annotations have {KEY}.k3s and {KEY}.docker",
            found=found.media_type,
            where=str(registry.name),
        )
    return found


def _releases(registry: Registry) -> list[str]:
    """The newest tags that never move, as names sort."""
    return [tag for tag in registry.tags() if tag.startswith("k3s-")][-5:]


def _versions(manifest: Manifest) -> Mapping[str, str]:
    """k3s and docker, as the image says itself; empty when it does not."""
    said = json.loads(manifest.raw).get("annotations") or {}
    found = {component: said.get(f"{KEY}.{component}", "") for component in ("k3s", "docker")}
    return found if all(found.values()) else {}


def _moves(registry: Registry, manifest: Manifest) -> list[Move]:
    """Its moving tags that are there and elsewhere; one that is not there was never moved by a release."""
    moves = []
    suffix = variant_of(json.loads(manifest.raw)["annotations"]).suffix
    for tag in (f"{tag}{suffix}" for tag in moving_tags(_versions(manifest))):
        before = registry.manifest(tag)
        if before is not None and before.digest != manifest.digest:
            moves.append(Move(registry=registry, tag=tag, before=before.digest))
    return moves
