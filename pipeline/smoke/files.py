"""Tier `files`: the image's content read out of its layers, nothing executed, no engine.

Every ELF file is of the platform, every component's binary names the locked version, single-file components are the
locked bytes, scripts have their interpreters, and the image's config is what users rely on.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from pipeline.layout import Layout
from pipeline.lock import Lock
from pipeline.oci import Digest
from pipeline.platforms import Platform
from pipeline.rehearsal.standin_build import MARKER
from pipeline.smoke import elf
from pipeline.smoke.record import Recorder

_PLUGINS = "usr/local/libexec/docker/cli-plugins"

# Component → the files whose version must be the locked one.
BINARIES = {
    "docker": ("usr/local/bin/dockerd", "usr/local/bin/docker"),
    "buildx": (f"{_PLUGINS}/docker-buildx",),
    "compose": (f"{_PLUGINS}/docker-compose",),
    "k3s": ("usr/local/bin/k3s",),
    "kubectl": ("usr/local/bin/kubectl",),
}
# They come out of docker's archive; the lock names the archive, so their own versions are only told.
_BESIDE = (
    "usr/local/bin/containerd",
    "usr/local/bin/runc",
    "usr/local/bin/ctr",
    "usr/local/bin/containerd-shim-runc-v2",
)
# Components that are one file each: the image must hold the locked bytes.
_ONE_FILE = ("buildx", "compose", "k3s", "kubectl")
_MANIFEST = "usr/share/dind-k3s/manifest.json"
_VOLUMES = ("/app/k3s", "/var/lib/docker")


@dataclass
class Content:
    """What was seen in the layers; paths without a leading slash."""

    names: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)
    machines: dict[str, int] = field(default_factory=dict)  # ELF files → e_machine
    shebangs: dict[str, str] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)  # the files that checks look into

    def remove(self, path: str) -> None:
        """A whiteout: the path and all below it are gone."""
        for gone in [name for name in self.names if name == path or name.startswith(f"{path}/")]:
            self.names.discard(gone)
            for table in (self.links, self.machines, self.shebangs, self.data):
                cast("dict[str, object]", table).pop(gone, None)

    def has(self, path: str) -> bool:
        """Whether a path exists, through links of folders and files."""
        seen = 0
        parts, at = path.strip("/").split("/"), ""
        while parts:
            at = posixpath.join(at, parts.pop(0))
            if at in self.links:
                seen += 1
                if seen > 20:
                    return False
                target = self.links[at]
                at = target.strip("/") if target.startswith("/") else posixpath.join(posixpath.dirname(at), target)
                parts = [*posixpath.normpath(at).split("/"), *parts]
                at = ""
        return at in self.names


def read(layers: list[Path]) -> Content:
    """Walk gzip-compressed layers, lowest first, once. Raises tarfile.TarError and OSError for broken ones."""
    wanted = {path for paths in BINARIES.values() for path in paths} | {*_BESIDE, _MANIFEST}
    content = Content()
    for layer in layers:
        with gzip.open(layer) as plain, tarfile.open(fileobj=cast("IO[bytes]", plain), mode="r|") as archive:
            for member in archive:
                path = posixpath.normpath(member.name).strip("/")
                folder, name = posixpath.split(path)
                if name == ".wh..wh..opq":
                    content.remove(folder)
                    continue
                if name.startswith(".wh."):
                    content.remove(posixpath.join(folder, name.removeprefix(".wh.")))
                    continue
                content.names.add(path)
                if member.issym():
                    content.links[path] = member.linkname
                elif member.islnk():
                    content.links[path] = "/" + posixpath.normpath(member.linkname).strip("/")
                elif member.isfile():
                    _look(content, path, archive.extractfile(member), whole=path in wanted)
    return content


def _look(content: Content, path: str, stream: IO[bytes] | None, *, whole: bool) -> None:
    assert stream is not None
    for table in (content.links, content.machines, content.shebangs):
        cast("dict[str, object]", table).pop(path, None)
    head = stream.read(-1 if whole else 128)
    if (machine := elf.machine(head[:20])) is not None:
        content.machines[path] = machine
    elif head[:2] == b"#!":
        content.shebangs[path] = head[2:128].split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    if whole:
        content.data[path] = head


def run(
    platform: Platform, lock: Lock, layout: Layout, manifest: Digest, recorder: Recorder, *, rehearsed: bool
) -> None:
    """All checks of the tier for one platform."""
    blobs = {part.digest: part.path for part in layout}
    document = json.loads(blobs[manifest].read_bytes())
    content: Content | None = None
    with recorder.check("read the layers") as told:
        content = read([blobs[Digest(layer["digest"])] for layer in document["layers"]])
        told(f"{len(content.names)} paths, {len(content.machines)} ELF files, in {len(document['layers'])} layers")
    if content is None:
        return
    with recorder.check("architecture") as told:
        told(_architecture(platform, content))
    for component in BINARIES:
        with recorder.check(component) as told:
            told(_component(component, platform, lock, content, rehearsed=rehearsed))
    with recorder.check("containerd and runc") as told:
        told(", ".join(_beside(content)))
    with recorder.check("manifest.json") as told:
        told(_manifest(platform, lock, content))
    with recorder.check("scripts") as told:
        told(_scripts(content))
    with recorder.check("config") as told:
        config = json.loads(blobs[Digest(document["config"]["digest"])].read_bytes())
        told(_config(platform, config))


def _need(true: object, sentence: str) -> None:
    if not true:
        raise AssertionError(sentence)


def _architecture(platform: Platform, content: Content) -> str:
    want = platform.names.elf_machine
    wrong = [
        f"/{path} is for {elf.machine_name(machine)}" for path, machine in content.machines.items() if machine != want
    ]
    _need(not wrong, f"{len(wrong)} files are of another architecture: {'; '.join(sorted(wrong)[:3])}")
    _need(content.machines, "there is no ELF file at all")
    return f"all {len(content.machines)} ELF files are for {platform}"


def _component(component: str, platform: Platform, lock: Lock, content: Content, *, rehearsed: bool) -> str:
    version = lock.versions[component]
    evidence = ""
    for path in BINARIES[component]:
        data = content.data.get(path)
        _need(data is not None, f"/{path} is missing")
        assert data is not None
        if component == "k3s" and data[:2] == b"#!":
            _need(rehearsed, "k3s is a stand-in, and this image is not a rehearsal's")
            # Beside a real k3s of another platform it carries that version with its own mark behind.
            marked = version if version.endswith("+standin") else f"{version}+standin"
            said = f"{MARKER} {marked} {platform}"
            _need(said.encode() in data, f"/{path} is a stand-in, but not «{said}»")
            evidence = f"a stand-in that says so: {said}"
        else:
            found = elf.version_evidence(data, version)
            _need(path in content.machines, f"/{path} is not an executable (truncated?): {len(data)} bytes")
            _need(found, f"/{path} does not name version {version}{_other(data)}")
            evidence = found or ""
        if component in _ONE_FILE:
            locked = next(file for file in lock.artifacts if (file.component, file.platform) == (component, platform))
            digest = hashlib.sha256(data).hexdigest()
            _need(digest == locked.digest.hex, f"/{path} has sha256 {digest}, the lock says {locked.digest.hex}")
            evidence += "; the locked bytes"
    return f"{version}: {evidence}"


def _other(data: bytes) -> str:
    build = elf.go_build(data)
    return f"; it was built as {build.path} {build.version}" if build else ""


def _beside(content: Content) -> Iterator[str]:
    for path in _BESIDE:
        data = content.data.get(path)
        _need(data is not None, f"/{path} is missing")
        build = elf.go_build(data or b"")
        said = [build.version.replace("(devel)", ""), build.go] if build else ["no build information"]
        yield f"{posixpath.basename(path)} ({', '.join(filter(None, said))})"


def _manifest(platform: Platform, lock: Lock, content: Content) -> str:
    entries: list[Mapping[str, Any]] = json.loads(content.data.get(_MANIFEST, b"[]"))
    _need(entries, f"/{_MANIFEST} is missing or empty")
    listed = {entry["component"]: entry for entry in entries}
    for file in lock.artifacts:
        if file.platform == platform:
            entry = listed.get(file.component, {})
            _need(
                (entry.get("version"), entry.get("sha256")) == (file.version, file.digest.hex),
                f"/{_MANIFEST} says {entry.get('version')} {entry.get('sha256')} of {file.component}, "
                f"the lock {file.version} {file.digest.hex}",
            )
    return f"{len(listed)} components, as in the lock"


def _scripts(content: Content) -> str:
    own = {path: line for path, line in content.shebangs.items() if path.startswith("usr/local/")}
    for path, line in own.items():
        words = line.split()
        interpreter = words[0]
        if interpreter.endswith("/env"):
            named = next((word for word in words[1:] if not word.startswith("-")), "")
            interpreter = f"/usr/bin/{named}"
        _need(content.has(interpreter), f"/{path} needs {interpreter}, which the image does not have")
    return f"{len(own)} scripts of ours have their interpreters"


def _config(platform: Platform, config: Mapping[str, Any]) -> str:
    _need(config["architecture"] == platform.architecture, f"the config says architecture {config['architecture']}")
    settings = config["config"]
    _need(settings.get("Entrypoint"), "there is no entrypoint")
    _need(settings.get("Healthcheck"), "there is no health check")
    missing = [volume for volume in _VOLUMES if volume not in (settings.get("Volumes") or {})]
    _need(not missing, f"no volume at {', '.join(missing)}")
    return f"entrypoint {' '.join(settings['Entrypoint'])}, health check, {len(settings['Volumes'])} volumes"
