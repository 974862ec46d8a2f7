"""Stage `build`: the locked files and rootfs/ become one image index for all platforms, and one for each variant.

The result is an OCI layout in dist/image/: those very bytes are smoked, pushed and verified. Nothing is downloaded
here and nothing of a foreign platform runs: the base image and every file come verified from the cache. A variant is
another target of the same Dockerfile, built in the same call: the image's very layers, and one more on top.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from python_on_whales.exceptions import DockerException

from pipeline.build import bake
from pipeline.build.progress import Solve
from pipeline.components import AIRGAP, COMPONENTS, owner
from pipeline.core import cache as cached
from pipeline.core.errors import BuildFailed, DigestMismatch
from pipeline.core.log import Log, size
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.records import IMAGE, LAYOUT, BuiltPlatform, Image, Variant, write_json, write_text
from pipeline.engine.engine import Engine
from pipeline.fetch import base
from pipeline.inputs.lock import RENEW, Artifact, Lock
from pipeline.inputs.versions import Intent
from pipeline.inspect import embedded
from pipeline.oci import layout as layouts
from pipeline.oci.index import by_platform

BAKE_FILE = "docker-bake.json"

Said = Mapping[Variant, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is built, out of what, and where it goes."""

    intent: Intent
    lock: Lock
    root: Path  # the repository, buildx's build context
    dist: Path
    cache: Path  # what `fetch` filled
    rehearsed: bool  # made of stand-ins

    def partial(self, variant: Variant) -> Path:
        """Return where buildx exports a variant to; it is renamed when it is whole."""
        return variant.below(self.dist) / f"{LAYOUT}.partial"

    def relative(self, path: Path) -> PurePosixPath:
        """Return a path as buildx gets it: seen from the repository."""
        return PurePosixPath(os.path.relpath(path, self.root))


def plan(job: Job) -> tuple[str, Said]:
    """Return the bake file's text and the annotations of each image. Pure but for the two paths' relation."""
    lock = job.lock
    epoch = int(datetime.fromisoformat(lock.date).replace(tzinfo=UTC).timestamp())
    annotations = {
        variant: bake.describe(job.intent, lock, variant, lock_digest=lock.digest, rehearsed=job.rehearsed)
        for variant in lock.variants
    }
    text = bake.render(
        platforms=job.intent.platforms,
        annotations=annotations,
        base=lock.base.digest,
        context=job.relative(job.dist / "context"),
        outputs={variant: job.relative(job.partial(variant)) for variant in annotations},
        epoch=epoch,
    )
    return text, annotations


def run(job: Job, engine: Callable[[], Engine], log: Log, *, cold: bool = False) -> Mapping[Variant, Image]:
    """Build all platforms and variants in one call of buildx, unless dist/ holds what these inputs give.

    A variant that the lock has no files for is left out with a warning; `push` does not. `engine` is called when there
    is something to build, because an engine may have to be started. `cold`: take nothing from the builder's cache.
    Raises BuildFailed with the failing step and its last lines; DigestMismatch and IntentError when the cache is not
    complete.
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
    chosen = engine()
    context = prepare(job, log)
    write_text(job.dist / BAKE_FILE, text)
    for variant in annotations:
        shutil.rmtree(job.partial(variant), ignore_errors=True)
    solve = _bake(job, list(annotations), chosen, log, cold=cold)
    images = {variant: _image(job, variant, inputs, annotations[variant]) for variant in annotations}
    for image in images.values():
        image.require_layers_of(images[Variant.IMAGE])
    shutil.rmtree(context)
    for image in images.values():
        _keep(job, image)
    log.say(f"{solve.ran} steps run, {solve.cached} from the cache")
    for name, took in solve.slowest:
        log.say(f"slowest: {took:.1f} s  {name}")
    for variant, image in images.items():
        for platform, built in image.platforms.items():
            log.say(f"{platform}{variant.suffix}: {built.digest}  {size(built.size)} compressed")
    return images


def _image(job: Job, variant: Variant, inputs: Digest, annotations: Mapping[str, str]) -> Image:
    """Return the record of what buildx has exported."""
    digest, platforms = _read_layout(job.partial(variant))
    return Image(
        digest=digest,
        inputs=inputs,
        lock=job.lock.digest,
        platforms=platforms,
        annotations=annotations,
        rehearsed=job.rehearsed,
        variant=variant,
    )


def _keep(job: Job, image: Image) -> None:
    """Put an exported image in its place, with its record; blobs that the image has too become one file."""
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


def prepare(job: Job, log: Log) -> Path:
    """Put the build context together out of the cache alone; returns its folder. Raises as `run`."""
    intent, lock, cache, context = job.intent, job.lock, job.cache, job.dist / "context"
    with log.step("put the build context together"):
        shutil.rmtree(context, ignore_errors=True)
        for platform in Platform:
            # The Dockerfile mounts the build platform's, and fails with an error message when it is empty.
            (context / "artifacts" / platform.architecture / "packages").mkdir(parents=True)
        # Read from the very bytes and not from the lock, where it may be missing: it is no part of the lock's digest.
        inside = embedded.of_lock(lock, cache, log)
        for platform in intent.platforms:
            folder = context / "artifacts" / platform.architecture
            _stage_files(lock.files(platform), cache, folder)
            _stage_files([file for file in lock.airgap if file.platform == platform], cache, folder / Variant.AIRGAP)
            for variant in lock.variants:
                content = manifest(intent, lock, platform, variant, inside)
                write_json(variant.below(folder) / "manifest.json", content)
        base.write_layout(lock.base.digest, intent.platforms, cache, context / "base")
    return context


def _bake(job: Job, variants: Sequence[Variant], engine: Engine, log: Log, *, cold: bool) -> Solve:
    """Hand the file to buildx and log each step as it ends. Raises BuildFailed."""
    bake_file = str(job.relative(job.dist / BAKE_FILE))
    names = [variant.value for variant in variants]
    log.command(["docker", "buildx", "bake", *(["--no-cache"] if cold else []), "--file", bake_file, *names])
    solve = Solve()
    # buildx resolves relative paths against its working directory, and python-on-whales has no parameter for that.
    with contextlib.chdir(job.root):
        try:
            lines = engine.docker.buildx.bake(
                names,
                files=bake_file,
                builder=engine.builder,
                cache=not cold,
                progress="rawjson",  # type: ignore[arg-type]  # passed on as it is; the hint does not know it
                stream_logs=True,
                metadata_file=str(job.dist / "metadata.json"),
                # All paths are below the working directory but for dist/, which users may put elsewhere
                # (python-on-whales has no --allow: gabrieldemarmiesse/python-on-whales#722).
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
                next_step="mend that step of the Dockerfile and run `nox -s build` again; what went well is cached",
            ) from None
    return solve


def _stage_files(artifacts: Sequence[Artifact], cache: Path, folder: Path) -> None:
    """Link one platform's files out of the cache under the names that the Dockerfile expects."""
    for artifact in artifacts:
        file = PurePosixPath(artifact.path).name
        name = f"packages/{file}"
        if artifact.component == AIRGAP:
            name = file
        elif artifact.component in COMPONENTS:
            name = COMPONENTS[artifact.component].context_name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cached.link(cached.require(cache, artifact.digest), folder / name)


def manifest(
    intent: Intent, lock: Lock, platform: Platform, variant: Variant, inside: embedded.Embedded
) -> list[dict[str, object]]:
    """/usr/share/dind-k3s/manifest.json but for the files' digests, which the Dockerfile adds. Pure."""
    ours: dict[str, object] = {
        "component": "dind-k3s",
        "version": lock.version,
        "url": intent.source,
        "licence": intent.licenses,
        "built": lock.date,
    }
    files = [*lock.files(platform), *(lock.airgap if variant is Variant.AIRGAP else ())]
    theirs: list[dict[str, object]] = [
        {
            "component": artifact.component,
            "version": artifact.version,
            "sha256": artifact.digest.hex,
            "url": artifact.url,
            "licence": owner(artifact.component).licence,
            "embedded": dict(inside.get(artifact.component, {})),
        }
        for artifact in files
        if artifact.component in (*COMPONENTS, AIRGAP) and artifact.platform == platform
    ]
    return [ours, *theirs]


def inputs_of(root: Path, bake_text: str) -> Digest:
    """The digest of everything that decides the image: the bake file (with the lock in it), Dockerfile, rootfs/."""
    state = hashlib.sha256(bake_text.encode())
    own = (path for path in (root / "rootfs").rglob("*") if "__pycache__" not in path.parts)  # as .dockerignore says
    files = [root / "Dockerfile", root / ".dockerignore", *sorted(own)]
    for path in files:
        mode = path.lstat().st_mode
        state.update(f"\0{path.relative_to(root)}\0{mode:o}\0".encode())
        if path.is_symlink():
            state.update(str(path.readlink()).encode())
        elif path.is_file():
            state.update(path.read_bytes())
    return Digest(f"sha256:{state.hexdigest()}")


def already_built(dist: Path, inputs: Digest) -> Image | None:
    """A folder's image if it was made from these inputs and its layout is whole (sizes, not bytes: smoke hashes)."""
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
    """The index digest and the platforms of an OCI layout that buildx wrote.

    Raises DigestMismatch when it is not whole; OSError, ValueError or KeyError when it is no layout.
    """
    top = json.loads((folder / "index.json").read_text(encoding="utf-8"))["manifests"][0]
    whole = layouts.read(folder, Digest(top["digest"]))
    platforms = {
        Platform(platform): BuiltPlatform.of(Digest(entry["digest"]), whole.document(Digest(entry["digest"])))
        for platform, entry in by_platform(whole.document(whole.index.digest)).items()
    }
    return whole.index.digest, platforms
