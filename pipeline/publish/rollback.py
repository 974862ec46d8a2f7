"""Stage `rollback`: point the moving tags back at an older release. Nothing is deleted, nothing is built.

Fixed tags do not change, so the withdrawn release is still available by its fixed tag. The next release moves the
moving tags again: tag.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pipeline.core.annotations import KEY, variant_of, versions_of
from pipeline.core.errors import IntentError, RegistryError
from pipeline.core.log import Log
from pipeline.core.names import INDEX, ImageName
from pipeline.oci.registry import Manifest, Registry
from pipeline.publish.tag import moving_tags


def run(
    names: Sequence[ImageName],
    target: str,
    registry_for: Callable[[ImageName], Registry],
    log: Log,
    *,
    dry_run: bool,
) -> tuple[str, ...]:
    """Move, in every repository, the moving tags that `target` would have had as the newest release; return them.

    `target`: a fixed tag (`k3s-…-r1`) or a digest; a variant (`k3s-…-r1-airgap`) has its own moving tags. Every
    repository must have it, with the same digest, before any tag moves. Raises IntentError for a target that is not a
    release, RegistryError.
    """
    releases = [(registry, _release(registry, target)) for registry in map(registry_for, names)]
    if len({manifest.digest for _, manifest in releases}) != 1:
        raise RegistryError(
            f"{target} is not the same image everywhere",
            expected="one digest",
            found=", ".join(f"{registry.name}: {manifest.digest}" for registry, manifest in releases),
            next_step="name the right one by its digest, and find out who tagged the other",
        )
    # All are known before the first one is made: a repository that cannot be read leaves the others as they are.
    moves = [move for registry, manifest in releases for move in _moves(registry, manifest)]
    for registry, tag, before, manifest in moves:
        if not dry_run:
            registry.tag(tag, manifest.raw, INDEX)
        done = "would be moved" if dry_run else "moved"
        log.say(f"{registry.name}:{tag}: {done} from {before.digest.short}… back to {target}")
    if not moves:
        log.say(f"nothing to do: the moving tags are at {target} already")
    return tuple(f"{registry.name}:{tag}" for registry, tag, _, _ in moves)


def _moves(registry: Registry, manifest: Manifest) -> Iterator[tuple[Registry, str, Manifest, Manifest]]:
    """Yield the moving tags of a release that point elsewhere: repository, tag, where it points, the release."""
    suffix = variant_of(manifest.annotations).suffix
    for tag in (f"{tag}{suffix}" for tag in moving_tags(versions_of(manifest.annotations))):
        before = registry.manifest(tag)
        if before is not None and before.digest != manifest.digest:
            yield registry, tag, before, manifest


def _release(registry: Registry, target: str) -> Manifest:
    manifest = registry.manifest(target)
    if manifest is None:
        newest = [tag for tag in registry.tags() if tag.startswith("k3s-")][-5:]  # fixed tags, by name
        raise RegistryError(
            f"{registry.name} has no {target}",
            expected="a release that every repository of versions.yaml holds",
            next_step=f"its releases: {', '.join(newest) or 'none'}",
        )
    if manifest.media_type != INDEX or not versions_of(manifest.annotations):
        raise IntentError(
            f"{target} is not a release of this project",
            expected=f"an index whose annotations have {KEY}.k3s and {KEY}.docker",
            found=manifest.media_type,
            where=str(registry.name),
        )
    return manifest
