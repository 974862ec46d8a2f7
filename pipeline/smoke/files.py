"""Tier `files`: the image's content read out of its layers, nothing executed, no engine.

Every ELF file is of the platform, every component's binary names the locked version, single-file components are the
locked bytes, scripts have their interpreters, and the image's config is what users rely on.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pipeline.components import COMPONENTS, DOCKER
from pipeline.core.log import size
from pipeline.core.names import Digest
from pipeline.core.platforms import Platform
from pipeline.core.stub import MARKER, marked
from pipeline.inputs.lock import Artifact, Lock
from pipeline.inspect import elf
from pipeline.oci.layout import Layout
from pipeline.smoke import contents, system_images
from pipeline.smoke.contents import Content, Program
from pipeline.smoke.record import Recorder

# docker's archive holds them too; the lock names the archive, so their own versions are only logged.
_BESIDE = tuple(one.path for one in DOCKER.programs if one.purl.startswith("golang/"))
_MANIFEST = "usr/share/dind-k3s/manifest.json"
# What lies below these is ours, and `dind-k3s verify` knows it from the manifest.
_LISTED = ("usr/local/", "etc/supervisord.conf", f"{system_images.FOLDER}/")
_VOLUMES = ("/app/k3s", "/var/lib/docker")


# What Debian's packages install with set-uid or set-gid bits; anything else deserves a look before it is released.
_PRIVILEGED = {
    *("usr/bin/chage", "usr/bin/chfn", "usr/bin/chsh", "usr/bin/expiry", "usr/bin/fusermount3", "usr/bin/gpasswd"),
    *("usr/bin/mount", "usr/bin/newgrp", "usr/bin/passwd", "usr/bin/ssh-agent", "usr/bin/su", "usr/bin/umount"),
    *("usr/lib/openssh/ssh-keysign", "usr/lib/dbus-1.0/dbus-daemon-launch-helper", "usr/sbin/unix_chkpwd"),
}


def binaries(component: str) -> tuple[str, ...]:
    """Return the files whose version must be the locked one."""
    return tuple(one.path for one in COMPONENTS[component].programs if one.own_version)


def run(
    platform: Platform,
    lock: Lock,
    layout: Layout,
    manifest: Digest,
    recorder: Recorder,
    *,
    rehearsed: bool,
    airgap: Artifact | None = None,
) -> None:
    """All checks of the tier for one platform. `airgap`: the archive of system images that must be in it, too."""
    blobs = {part.digest: part.path for part in layout}
    document = json.loads(blobs[manifest].read_bytes())
    config = json.loads(blobs[Digest(document["config"]["digest"])].read_bytes())
    wanted = {path: lock.versions[component] for component in COMPONENTS for path in binaries(component)}
    wanted |= dict.fromkeys(_BESIDE, "")
    archive = f"{system_images.FOLDER}/{PurePosixPath(airgap.path).name}" if airgap else ""
    content: Content | None = None
    with recorder.check("read the layers") as told:
        layers = [Digest(layer["digest"]) for layer in document["layers"]]
        content = contents.read(
            [(layer, blobs[layer]) for layer in layers],
            config["rootfs"]["diff_ids"],
            wanted,
            (_MANIFEST, archive),
            _LISTED,
        )
        packed = sum(layer["size"] for layer in document["layers"])
        told(
            f"{len(content.entries)} paths, {size(content.size)}, in {len(layers)} layers of {size(packed)}; "
            "every byte has the digest of the manifest and the config"
        )
    if content is None:
        return
    with recorder.check("architecture") as told:
        told(_architecture(platform, content))
    for component in COMPONENTS:
        with recorder.check(component) as told:
            told(_component(component, platform, lock, content, rehearsed=rehearsed))
    with recorder.check("containerd and runc") as told:
        told(", ".join(_beside(content)))
    if airgap is not None:
        with recorder.check("system images") as told:
            told(_system_images(archive, airgap, content))
    with recorder.check("manifest.json") as told:
        told(_manifest([*lock.artifacts, *([airgap] if airgap else [])], platform, content))
    with recorder.check("scripts") as told:
        told(_scripts(content))
    with recorder.check("set-uid and set-gid files") as told:
        told(_privileged(content))
    with recorder.check("config") as told:
        told(_config(platform, config, content))


def _need(true: object, sentence: str) -> None:
    if not true:
        raise AssertionError(sentence)


def _some(sentences: list[str]) -> str:
    """The first three, and how many more there are."""
    more = f"; and {len(sentences) - 3} more" if len(sentences) > 3 else ""
    return "; ".join(sorted(sentences)[:3]) + more


def _architecture(platform: Platform, content: Content) -> str:
    want = (platform.names.elf_machine, 64)
    binaries = content.binaries
    wrong = [
        f"/{path} is for {elf.machine_name(header)}"
        for path, (_, header) in binaries.items()
        if (header.machine, header.bits) != want
    ]
    _need(not wrong, _some(wrong))
    short = [
        f"/{path} is truncated: it has {entry.size} bytes, its section headers end at {header.end}"
        for path, (entry, header) in binaries.items()
        if entry.size < header.end
    ]
    _need(not short, _some(short))
    _need(binaries, "there is no ELF file at all")
    return f"all {len(binaries)} ELF files are for {platform} and whole"


def _program(content: Content, path: str) -> Program:
    entry = content.entries.get(path)
    if entry is None or entry.program is None:
        raise AssertionError(f"/{path} is missing" if entry is None else f"/{path} is not a regular file")
    _need(entry.mode & 0o111 == 0o111, f"/{path} may not be executed by everybody: its mode is {entry.mode:04o}")
    return entry.program


def _component(component: str, platform: Platform, lock: Lock, content: Content, *, rehearsed: bool) -> str:
    version = lock.versions[component]
    evidence = []
    for path in binaries(component):
        program = _program(content, path)
        if component == "k3s" and program.text:
            _need(rehearsed, "k3s is a stub, and this image is not a rehearsal's")
            # Beside a real k3s of another platform it has that version with its own suffix.
            comment = f"{MARKER} {marked(version)} {platform}"
            _need(comment.encode() in program.text, f"/{path} is a stub k3s, but not '{comment}'")
            evidence.append(f"a stub that says so: {comment}")
        else:
            entry = content.entries[path]
            _need(entry.header, f"/{path} is not an executable (truncated?): {entry.size} bytes")
            _need(program.evidence, f"/{path} does not name version {version}{_other(program)}")
            evidence.append(program.evidence or "")
        if COMPONENTS[component].is_one_file:
            locked = next(file for file in lock.artifacts if (file.component, file.platform) == (component, platform))
            _need(
                program.sha256 == locked.digest.hex,
                f"/{path} has sha256 {program.sha256}, the lock says {locked.digest.hex}",
            )
            evidence.append("the locked bytes")
    return f"{version}: {'; '.join(dict.fromkeys(evidence))}"


def _other(program: Program) -> str:
    return f"; it was built as {program.build.path} {program.build.version}" if program.build else ""


def _beside(content: Content) -> Iterator[str]:
    for path in _BESIDE:
        build = _program(content, path).build
        said = [build.version.replace("(devel)", ""), build.go] if build else ["no build information"]
        yield f"{posixpath.basename(path)} ({', '.join(filter(None, said))})"


def _system_images(archive: str, airgap: Artifact, content: Content) -> str:
    """The locked archive, and images for the platform in it."""
    entry = content.entries.get(archive)
    if entry is None or entry.program is None:
        raise AssertionError(f"/{archive} is missing")
    found = entry.program.sha256
    _need(found == airgap.digest.hex, f"/{archive} has sha256 {found}, the lock says {airgap.digest.hex}")
    names = system_images.read(entry.program.text, airgap.platform)
    return f"the locked bytes, {len(names)} images, all for {airgap.platform}: {', '.join(names)}"


def _manifest(files: Sequence[Artifact], platform: Platform, content: Content) -> str:
    there = content.entries.get(_MANIFEST)
    entries: list[Mapping[str, Any]] = json.loads(there.program.text) if there and there.program else []
    _need(entries, f"/{_MANIFEST} is missing or empty")
    listed = {entry["component"]: entry for entry in entries}
    for file in files:
        if file.platform == platform:
            entry = listed.get(file.component, {})
            _need(
                (entry.get("version"), entry.get("sha256")) == (file.version, file.digest.hex),
                f"/{_MANIFEST} says {entry.get('version')} {entry.get('sha256')} of {file.component}, "
                f"the lock {file.version} {file.digest.hex}",
            )
    digests: dict[str, str] = {}
    for name, entry in listed.items():
        missing = [key for key in ("version", "url", "licence", "files") if not entry.get(key)]
        _need(not missing, f"/{_MANIFEST} does not say the {', '.join(missing)} of {name}")
        digests |= entry["files"]
    wrong = [
        path for path, digest in digests.items() if (found := content.find(path)) is None or found.sha256 != digest
    ]
    _need(not wrong, _some([f"{path} is not what /{_MANIFEST} says" for path in wrong]))
    ours = [f"/{path}" for path, entry in content.entries.items() if entry.sha256 and path.startswith(_LISTED)]
    strange = [f"{path} is not in /{_MANIFEST}" for path in ours if path not in digests]
    _need(not strange, _some(strange))
    return f"{len(listed)} components as in the lock, {len(digests)} files as in the image"


def _scripts(content: Content) -> str:
    own = {path: entry.shebang for path, entry in content.entries.items() if entry.shebang}
    own = {path: line for path, line in own.items() if path.startswith("usr/local/")}
    for path, line in own.items():
        words = line.split()
        interpreter = words[0]
        if interpreter.endswith("/env"):
            named = next((word for word in words[1:] if not word.startswith("-")), "")
            interpreter = f"/usr/bin/{named}"
        _need(content.find(interpreter), f"/{path} needs {interpreter}, which the image does not have")
    return f"{len(own)} scripts of ours have their interpreters"


def _privileged(content: Content) -> str:
    found = {path: entry.mode for path, entry in content.entries.items() if not entry.folder and entry.mode & 0o6000}
    strange = [f"/{path} has the mode {mode:04o}" for path, mode in found.items() if path not in _PRIVILEGED]
    _need(not strange, _some(strange))
    return f"{len(found)}, all known ones of Debian's packages"


def _config(platform: Platform, config: Mapping[str, Any], content: Content) -> str:
    _need(config["architecture"] == platform.architecture, f"the config says architecture {config['architecture']}")
    settings = config["config"]
    _need(settings.get("Entrypoint"), "there is no entrypoint")
    _need(settings.get("Healthcheck"), "there is no health check")
    for what, command in (
        ("entrypoint", settings["Entrypoint"]),
        ("health check", settings["Healthcheck"]["Test"][1:]),
    ):
        if command and command[0].startswith("/"):
            entry = content.find(command[0])
            _need(entry and entry.mode & 0o111, f"the {what} {command[0]} is not there, or may not be executed")
    missing = [volume for volume in _VOLUMES if volume not in (settings.get("Volumes") or {})]
    _need(not missing, f"no volume at {', '.join(missing)}")
    return f"entrypoint {' '.join(settings['Entrypoint'])}, health check, {len(settings['Volumes'])} volumes"
