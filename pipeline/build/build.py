"""Stage `build`: makes one image index for all platforms, and one for each variant, of the locked files and rootfs/.

The result is an OCI layout in dist/image/, which is smoked, pushed and verified byte for byte. Nothing is downloaded
here and nothing of a non-native platform runs: the base image and all files come verified from the cache. A variant is
another target of the same Dockerfile, built in the same call: the image's layers, and one more on top.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from python_on_whales.exceptions import DockerException

from pipeline.build import bake, context
from pipeline.build.progress import Solve
from pipeline.core import cache as cached
from pipeline.core.errors import BuildFailed, DigestMismatch
from pipeline.core.log import Log, size
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import IMAGE, LAYOUT, BuiltPlatform, Image, Variant, write_text
from pipeline.engine.engine import Engine
from pipeline.inputs.lock import RENEW, Lock
from pipeline.inputs.versions import Intent
from pipeline.oci import layout as layouts
from pipeline.oci.index import by_platform

BAKE_FILE = "docker-bake.json"

Annotations = Mapping[Variant, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Inputs and folders of a build."""

    intent: Intent
    lock: Lock
    root: Path  # the repository, buildx's build context
    dist: Path
    cache: Path  # filled by `fetch`
    rehearsed: bool  # contains stubs

    def partial(self, variant: Variant) -> Path:
        """Return where buildx exports a variant to; it is renamed when it is complete."""
        return variant.below(self.dist) / f"{LAYOUT}.partial"

    def relative(self, path: Path) -> PurePosixPath:
        """Return a path relative to the repository, as buildx gets it."""
        return PurePosixPath(os.path.relpath(path, self.root))

    @property
    def context(self) -> Path:
        """The folder of the build context."""
        return self.dist / "context"


def plan(job: Job) -> tuple[str, Annotations]:
    """Return the bake file's text and the annotations of each image. Pure."""
    intent, lock = job.intent, job.lock
    annotations = {
        variant: bake.describe(intent, lock, variant, lock_digest=lock.digest, rehearsed=job.rehearsed)
        for variant in lock.variants
    }
    outputs = {variant: job.relative(job.partial(variant)) for variant in annotations}
    return bake.render(intent, lock, annotations, context=job.relative(job.context), outputs=outputs), annotations


def run(job: Job, start: Callable[[], Engine], log: Log, *, cold: bool = False) -> Mapping[Variant, Image]:
    """Build all platforms and variants in one call of buildx, unless dist/ has the result of these inputs.

    A variant that the lock has no files for is left out with a warning (`push` refuses). `start` is called only when
    there is something to build. `cold`: ignore the builder's cache. Raises BuildFailed with the failing step and its
    last lines; UpstreamError, DigestMismatch, IntentError for an incomplete cache.
    """
    for variant in sorted({*job.intent.variants} - {*job.lock.variants}):
        log.warn(f"without {variant}: the lock lacks its files for {', '.join(job.intent.platforms)}; {RENEW}")
    text, annotations = plan(job)
    inputs = inputs_of(job.root, text)
    known = {variant: already_built(variant.below(job.dist), inputs) for variant in annotations}
    images = {variant: image for variant, image in known.items() if image is not None}
    if len(images) == len(known):
        names = " and ".join(f"{image.digest}{name.suffix and f' ({name})'}" for name, image in images.items())
        log.say(f"nothing to build: {names} was built from exactly these inputs")
        return images
    engine = start()
    context.prepare(job.intent, job.lock, job.cache, job.context, log)
    write_text(job.dist / BAKE_FILE, text)
    for variant in annotations:
        shutil.rmtree(job.partial(variant), ignore_errors=True)
    solve = _bake(job, list(annotations), engine, log, cold=cold)
    images = {}
    for variant in annotations:
        digest, platforms = _read_layout(job.partial(variant))
        images[variant] = Image(
            digest=digest,
            inputs=inputs,
            lock=job.lock.digest,
            platforms=platforms,
            annotations=annotations[variant],
            rehearsed=job.rehearsed,
            variant=variant,
        )
    for image in images.values():
        image.require_layers_of(images[Variant.IMAGE])
    shutil.rmtree(job.context)
    for image in images.values():
        _keep(job, image)
    log.say(f"{solve.ran} steps run, {solve.cached} from the cache")
    for name, took in solve.slowest:
        log.say(f"slowest: {took:.1f} s  {name}")
    for variant, image in images.items():
        for platform, built in image.platforms.items():
            log.say(f"{platform}{variant.suffix}: {built.digest}  {size(built.size)} compressed")
    return images


def _keep(job: Job, image: Image) -> None:
    """Move an exported image to its final place and write its record; link blobs that the image has, too."""
    folder = image.variant.below(job.dist)
    layout = folder / LAYOUT
    shutil.rmtree(layout, ignore_errors=True)
    job.partial(image.variant).rename(layout)
    if image.variant is not Variant.IMAGE:
        for blob in (layout / "blobs" / "sha256").iterdir():
            same = job.dist / LAYOUT / "blobs" / "sha256" / blob.name
            if same.exists() and not same.samefile(blob):
                blob.unlink()
                cached.link(same, blob)
    image.write(folder)


def _bake(job: Job, variants: Sequence[Variant], engine: Engine, log: Log, *, cold: bool) -> Solve:
    """Run buildx on the bake file and log each step as it ends. Raises BuildFailed."""
    bake_file = str(job.relative(job.dist / BAKE_FILE))
    names = [variant.value for variant in variants]
    log.command(["docker", "buildx", "bake", *(["--no-cache"] if cold else []), "--file", bake_file, *names])
    solve = Solve()
    # buildx resolves relative paths against its working directory, for which python-on-whales has no parameter.
    with contextlib.chdir(job.root):
        try:
            lines = engine.docker.buildx.bake(
                names,
                files=bake_file,
                builder=engine.builder,
                cache=not cold,
                progress="rawjson",  # type: ignore[arg-type]  # passed on; missing in the type hint
                stream_logs=True,
                metadata_file=str(job.dist / "metadata.json"),
                # dist/ may be outside of the working directory, which buildx refuses (python-on-whales has no --allow:
                # gabrieldemarmiesse/python-on-whales#722).
                variables={"BUILDX_BAKE_ENTITLEMENTS_FS": "0", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"},
            )
            for line in lines:
                for ended in solve.feed(str(line)):
                    log.say(ended)
        except DockerException as error:
            step, tail = solve.failure()
            raise BuildFailed(
                f"the build failed in: {step}",
                found="\n    ".join(tail[-20:]) or str(error.stderr or "no output"),
                where=str(job.dist / BAKE_FILE),
                next_step="fix that step of the Dockerfile and run `nox -s build` again; the other steps are cached",
            ) from None
    return solve


def inputs_of(root: Path, bake_text: str) -> Digest:
    """Return the digest of all inputs of the image: bake file (with the lock's digest), Dockerfile, rootfs/."""
    state = hashlib.sha256(bake_text.encode())
    rootfs = (path for path in (root / "rootfs").rglob("*") if "__pycache__" not in path.parts)  # as in .dockerignore
    files = [root / "Dockerfile", root / ".dockerignore", *sorted(rootfs)]
    for path in files:
        mode = path.lstat().st_mode
        state.update(f"\0{path.relative_to(root)}\0{mode:o}\0".encode())
        if path.is_symlink():
            state.update(str(path.readlink()).encode())
        elif path.is_file():
            state.update(path.read_bytes())
    return Digest(f"sha256:{state.hexdigest()}")


def already_built(dist: Path, inputs: Digest) -> Image | None:
    """Return a folder's image if it was made from these inputs and its layout is complete (by sizes; smoke hashes)."""
    if not (dist / IMAGE).exists():
        return None
    image = Image.read(dist)
    if image.inputs != inputs:
        return None
    try:
        digest, platforms = _read_layout(dist / LAYOUT)
    except (OSError, ValueError, KeyError, DigestMismatch):
        return None
    return image if digest == image.digest and platforms == image.platforms else None


def _read_layout(folder: Path) -> tuple[Digest, Mapping[Platform, BuiltPlatform]]:
    """Return the index digest and the platforms of an OCI layout that buildx wrote.

    Raises DigestMismatch when it is not complete; OSError, ValueError or KeyError when it is invalid.
    """
    top = json.loads((folder / "index.json").read_text(encoding="utf-8"))["manifests"][0]
    whole = layouts.read(folder, Digest(top["digest"]))
    platforms = {
        Platform(platform): BuiltPlatform.of(Digest(entry["digest"]), whole.document(Digest(entry["digest"])))
        for platform, entry in by_platform(whole.document(whole.index.digest)).items()
    }
    return whole.index.digest, platforms
