"""Stage `build`: the locked files and rootfs/ become one image index for all platforms.

The result is an OCI layout in dist/image/: those very bytes are smoked, pushed and verified. Nothing is downloaded
here and nothing of a foreign platform runs: the base image and every file come verified from the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from python_on_whales.exceptions import DockerException

from pipeline import bake, base
from pipeline import cache as cached
from pipeline import layout as layouts
from pipeline.engine import Engine
from pipeline.errors import BuildFailed, DigestMismatch
from pipeline.lock import Artifact, Lock
from pipeline.log import Log, size
from pipeline.oci import REFERENCE_TYPE, Digest
from pipeline.platforms import Platform
from pipeline.release import IMAGE, LAYOUT, BuiltPlatform, Image, write_json, write_text
from pipeline.solve import Solve
from pipeline.versions import COMPONENTS, Intent

BAKE_FILE = "docker-bake.json"

# Name of each component's file in the build context; the Dockerfile unpacks or copies it from there.
_IN_CONTEXT = {"docker": "docker.tgz", "buildx": "buildx", "compose": "compose", "k3s": "k3s", "kubectl": "kubectl"}

# All five are under one licence, each in its own repository's LICENSE file.
_LICENSES = dict.fromkeys(COMPONENTS, "Apache-2.0")


def plan(intent: Intent, lock: Lock, *, root: Path, dist: Path, rehearsed: bool) -> tuple[str, dict[str, str]]:
    """The bake file's text, and what the image will say of itself. Pure but for the two paths' relation."""
    epoch = int(datetime.fromisoformat(lock.date).replace(tzinfo=UTC).timestamp())
    said = bake.describe(intent, lock, lock_digest=lock.digest, created=f"{lock.date}T00:00:00Z", rehearsed=rehearsed)
    relative = PurePosixPath(os.path.relpath(dist, root))
    text = bake.render(
        platforms=intent.platforms,
        said=said,
        base=lock.base.digest,
        context=relative / "context",
        output=relative / f"{LAYOUT}.partial",
        epoch=epoch,
    )
    return text, said


def run(
    intent: Intent,
    lock: Lock,
    *,
    root: Path,
    dist: Path,
    cache: Path,
    engine: Engine,
    log: Log,
    rehearsed: bool,
    cold: bool = False,
) -> Image:
    """Build all platforms in one call of buildx, unless dist/ holds the image of exactly these inputs already.

    `root`: the repository, buildx's build context. `cache`: what `fetch` filled. `cold`: take nothing from the
    builder's cache. Raises BuildFailed with the failing
    step and its last lines; DigestMismatch and IntentError when the cache is not complete.
    """
    text, said = plan(intent, lock, root=root, dist=dist, rehearsed=rehearsed)
    inputs = inputs_of(root, text)
    if (known := _already_built(dist, inputs)) is not None:
        log.say(f"nothing to build: {known.digest} was built from exactly these inputs")
        return known
    context = prepare(intent, lock, dist=dist, cache=cache, log=log)
    write_text(dist / BAKE_FILE, text)
    solve = _bake(root, dist, engine, log, cold=cold)
    layout, partial = dist / LAYOUT, dist / f"{LAYOUT}.partial"
    shutil.rmtree(layout, ignore_errors=True)
    partial.rename(layout)
    shutil.rmtree(context)
    digest, built = _read_layout(layout)
    image = Image(
        digest=digest,
        inputs=inputs,
        lock=lock.digest,
        platforms=built,
        annotations=said,
        rehearsed=rehearsed,
    )
    image.write(dist)
    log.say(f"{solve.ran} steps run, {solve.cached} from the cache")
    for name, took in solve.slowest:
        log.say(f"slowest: {took:.1f} s  {name}")
    for platform, one in built.items():
        log.say(f"{platform}: {one.digest}  {size(one.size)} compressed")
    return image


def prepare(intent: Intent, lock: Lock, *, dist: Path, cache: Path, log: Log) -> Path:
    """Put the build context together out of the cache alone; returns its folder. Raises as `run`."""
    context = dist / "context"
    with log.step("put the build context together"):
        shutil.rmtree(context, ignore_errors=True)
        for platform in intent.platforms:
            _stage_files(lock.files(platform), cache, context / "artifacts" / platform.architecture)
        base.write_layout(lock.base.digest, intent.platforms, cache, context / "base")
    return context


def _bake(root: Path, dist: Path, engine: Engine, log: Log, *, cold: bool) -> Solve:
    """Hand the file to buildx and tell each step as it ends. Raises BuildFailed."""
    solve = Solve()
    partial = dist / f"{LAYOUT}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    bake_file = PurePosixPath(os.path.relpath(dist / BAKE_FILE, root))
    log.command(["docker", "buildx", "bake", *(["--no-cache"] if cold else []), "--file", str(bake_file), bake.TARGET])
    # buildx resolves relative paths against its working directory, and python-on-whales has no parameter for that.
    before = Path.cwd()
    os.chdir(root)
    try:
        lines = engine.docker.buildx.bake(
            bake.TARGET,
            files=str(bake_file),
            builder=engine.builder,
            cache=not cold,
            progress="rawjson",  # type: ignore[arg-type]  # passed on as it is; the hint does not know it
            stream_logs=True,
            metadata_file=str(dist / "metadata.json"),
            # All paths lie below the working directory but for dist/, which users may put elsewhere
            # (python-on-whales has no --allow: gabrieldemarmiesse/python-on-whales#722).
            variables={"BUILDX_BAKE_ENTITLEMENTS_FS": "0", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"},
        )
        for line in lines:
            for told in solve.feed(str(line)):
                log.say(told)
    except DockerException as error:
        step, tail = solve.failure()
        raise BuildFailed(
            f"the build failed in: {step}",
            found="\n    ".join(tail[-20:]) or str(error.stderr or "no output"),
            where=str(dist / BAKE_FILE),
            next_step="mend that step of the Dockerfile and run `nox -s build` again; what went well is cached",
        ) from None
    finally:
        os.chdir(before)
    return solve


def _stage_files(artifacts: tuple[Artifact, ...], cache: Path, folder: Path) -> None:
    """Link one platform's files out of the cache under the names that the Dockerfile expects, with their manifest."""
    (folder / "packages").mkdir(parents=True)
    manifest = []
    for artifact in artifacts:
        source = cached.require(cache, artifact.digest)
        name = _IN_CONTEXT.get(artifact.component) or f"packages/{PurePosixPath(artifact.path).name}"
        cached.link(source, folder / name)
        if artifact.component in _IN_CONTEXT:
            manifest.append(
                {
                    "component": artifact.component,
                    "version": artifact.version,
                    "sha256": artifact.digest.hex,
                    "url": artifact.url,
                    "licence": _LICENSES[artifact.component],
                }
            )
    write_json(folder / "manifest.json", manifest)


def inputs_of(root: Path, bake_text: str) -> Digest:
    """The digest of everything that decides the image: the bake file (with the lock in it), Dockerfile, rootfs/."""
    state = hashlib.sha256(bake_text.encode())
    files = [root / "Dockerfile", root / ".dockerignore", *sorted((root / "rootfs").rglob("*"))]
    for path in files:
        mode = path.lstat().st_mode
        state.update(f"\0{path.relative_to(root)}\0{mode:o}\0".encode())
        if path.is_symlink():
            state.update(str(path.readlink()).encode())
        elif path.is_file():
            state.update(path.read_bytes())
    return Digest(f"sha256:{state.hexdigest()}")


def _already_built(dist: Path, inputs: Digest) -> Image | None:
    """The image in dist/ if it was made from these inputs and its layout is whole (sizes, not bytes: smoke hashes)."""
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
    manifests = {part.digest: json.loads(part.path.read_bytes()) for part in whole.manifests}
    platforms: dict[Platform, BuiltPlatform] = {}
    for entry in json.loads(whole.index.path.read_bytes())["manifests"]:
        if REFERENCE_TYPE in entry.get("annotations", {}):
            continue
        manifest = manifests[Digest(entry["digest"])]
        platforms[Platform(f"{entry['platform']['os']}/{entry['platform']['architecture']}")] = BuiltPlatform(
            digest=Digest(entry["digest"]),
            config=Digest(manifest["config"]["digest"]),
            size=sum(layer["size"] for layer in manifest["layers"]),
        )
    return whole.index.digest, platforms
