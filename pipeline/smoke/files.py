"""Tier `files`: the image's content, read from its layers; nothing executed, no engine.

Every ELF file is for the platform, every component's binary contains the locked version, single-file components are
the locked bytes, scripts have their interpreters, and the image's config is as documented.
"""

from __future__ import annotations

import functools
import json
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.components import AIRGAP_FOLDER, COMPONENTS, DOCKER
from pipeline.core.log import size
from pipeline.core.stub import MARKER, marked
from pipeline.inspect import elf
from pipeline.oci import docker_archive
from pipeline.oci.index import Document
from pipeline.oci.layers import FileSystem
from pipeline.smoke import contents
from pipeline.smoke.contents import File, Subject
from pipeline.smoke.record import Recorder

# Also in docker's archive; the lock has the archive's version, so theirs are only logged.
_OF_DOCKER = tuple(program.path for program in DOCKER.programs if program.purl.startswith("golang/"))
_MANIFEST = "usr/share/dind-k3s/manifest.json"
# Files below these paths are ours: manifest.json lists them, and `dind-k3s verify` checks them.
_LISTED = ("usr/local/", "etc/supervisord.conf", f"{AIRGAP_FOLDER}/")
_VOLUMES = ("/app/k3s", "/var/lib/docker")
_NEEDED = ("pause", "coredns")  # system images that every pod and every cluster needs

# Files that Debian's packages install with set-uid or set-gid bits; any other must be reviewed before a release.
_PRIVILEGED = {
    *("usr/bin/chage", "usr/bin/chfn", "usr/bin/chsh", "usr/bin/expiry", "usr/bin/fusermount3", "usr/bin/gpasswd"),
    *("usr/bin/mount", "usr/bin/newgrp", "usr/bin/passwd", "usr/bin/ssh-agent", "usr/bin/su", "usr/bin/umount"),
    *("usr/lib/openssh/ssh-keysign", "usr/lib/dbus-1.0/dbus-daemon-launch-helper", "usr/sbin/unix_chkpwd"),
}


def binaries(component: str) -> tuple[str, ...]:
    """Return the files whose version must be the locked one."""
    return tuple(program.path for program in COMPONENTS[component].programs if program.own_version)


def run(subject: Subject, recorder: Recorder) -> None:
    """Run all checks of the tier for one platform."""
    config = subject.layout.config(subject.built.digest)
    airgap = subject.airgap
    archive = f"{AIRGAP_FOLDER}/{PurePosixPath(airgap.path).name}" if airgap else ""
    versions = {path: subject.lock.versions[component] for component in COMPONENTS for path in binaries(component)}
    wanted = contents.Wanted(
        versions={**versions, **dict.fromkeys(_OF_DOCKER, "")}, texts=(_MANIFEST, archive), hashed=_LISTED
    )
    files: FileSystem[File] | None = None
    with recorder.check("read the layers") as note:
        layers = subject.layout.layers(subject.built.digest)
        files = contents.read(layers, config["rootfs"]["diff_ids"], wanted)
        note(
            f"{len(files.entries)} paths, {size(files.size)}, in {len(layers)} layers of "
            f"{size(sum(layer.size for layer in layers))}; every byte has the digest of the manifest and the config"
        )
    if files is None:
        return
    checks = _Checks(subject=subject, files=files, config=config, archive=archive)
    for name, check in checks.by_name():
        with recorder.check(name) as note:
            note(check())


def _need(condition: object, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _none(problems: list[str]) -> None:
    """Raise AssertionError with the first three problems and the number of the others."""
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    _need(not problems, "; ".join(sorted(problems)[:3]) + more)


@dataclass(frozen=True, kw_only=True)
class _Checks:
    """The checks; each returns a detail for the report."""

    subject: Subject
    files: FileSystem[File]
    config: Document
    archive: str  # path of the system images, in the variant airgap

    def by_name(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Yield every check with its name, in their order."""
        yield "architecture", self._architecture
        for component in COMPONENTS:
            yield component, functools.partial(self._component, component)
        yield "containerd and runc", lambda: ", ".join(self._of_docker())
        if self.subject.airgap is not None:
            yield "system images", self._system_images
        yield "manifest.json", self._manifest
        yield "scripts", self._scripts
        yield "set-uid and set-gid files", self._privileged
        yield "config", self._config

    def _architecture(self) -> str:
        platform = self.subject.platform
        headers = {path: file.header for path, file in self.files.contents if file.header is not None}
        _none(
            [
                f"/{path} is for {elf.machine_name(header)}"
                for path, header in headers.items()
                if (header.machine, header.bits) != (platform.names.elf_machine, 64)
            ]
        )
        sizes = {path: self.files.entries[path].size for path in headers}
        _none(
            [
                f"/{path} is truncated: it has {sizes[path]} bytes, its section headers end at {header.end}"
                for path, header in headers.items()
                if sizes[path] < header.end
            ]
        )
        _need(headers, "there is no ELF file at all")
        return f"all {len(headers)} ELF files are for {platform} and whole"

    def _program(self, path: str) -> File:
        entry = self.files.entries.get(path)
        if entry is None or entry.content is None or not entry.content.is_whole:
            raise AssertionError(f"/{path} is missing" if entry is None else f"/{path} is not a regular file")
        _need(entry.mode & 0o111 == 0o111, f"/{path} may not be executed by everybody: its mode is {entry.mode:04o}")
        return entry.content

    def _component(self, component: str) -> str:
        version, platform = self.subject.lock.versions[component], self.subject.platform
        evidence = []
        for path in binaries(component):
            program = self._program(path)
            if component == "k3s" and program.text:
                _need(self.subject.image.rehearsed, "k3s is a stub, and this image is not a rehearsal's")
                # Next to a real k3s of another platform the stub has that version with a suffix.
                comment = f"{MARKER} {marked(version)} {platform}"
                _need(comment.encode() in program.text, f"/{path} is a stub k3s, but not '{comment}'")
                evidence.append(f"a stub, by its own comment: {comment}")
            else:
                size_of = self.files.entries[path].size
                _need(program.header, f"/{path} is not an executable (truncated?): {size_of} bytes")
                built = program.build
                other = f"; it was built as {built.path} {built.version}" if built else ""
                _need(program.evidence, f"/{path} does not name version {version}{other}")
                evidence.append(program.evidence or "")
            if COMPONENTS[component].is_one_file:
                key = (component, platform)
                locked = next(
                    file.digest.hex for file in self.subject.lock.artifacts if (file.component, file.platform) == key
                )
                _need(program.sha256 == locked, f"/{path} has sha256 {program.sha256}, the lock says {locked}")
                evidence.append("the locked bytes")
        return f"{version}: {'; '.join(dict.fromkeys(evidence))}"

    def _of_docker(self) -> Iterator[str]:
        for path in _OF_DOCKER:
            build = self._program(path).build
            stated = [build.version.replace("(devel)", ""), build.go] if build else ["no build information"]
            yield f"{posixpath.basename(path)} ({', '.join(filter(None, stated))})"

    def _system_images(self) -> str:
        """Check the locked archive: its images are for the platform, and include those that a cluster needs."""
        airgap, platform = self.subject.airgap, self.subject.platform
        file = self.files.content(self.archive)
        if airgap is None or file is None:
            raise AssertionError(f"/{self.archive} is missing")
        sha256, locked = file.sha256, airgap.digest.hex
        _need(sha256 == locked, f"/{self.archive} has sha256 {sha256}, the lock says {locked}")
        try:
            images = docker_archive.read(file.text)
        except ValueError as error:
            raise AssertionError(f"it is no archive of docker images: {error}") from None
        other = images.platforms - {platform.value}
        _need(not other, f"it has images for {', '.join(sorted(other))}")
        names = ", ".join(images.names)
        for needed in _NEEDED:
            has = any(needed in name for name in images.names)
            _need(has, f"it has no image called {needed}, only {names or 'none'}")
        return f"the locked bytes, {len(images.names)} images, all for {platform}: {names}"

    def _manifest(self) -> str:
        """Check that manifest.json lists the locked files, and every file of ours with its digest."""
        file = self.files.content(_MANIFEST)
        entries: list[Mapping[str, Any]] = json.loads(file.text) if file else []
        _need(entries, f"/{_MANIFEST} is missing or empty")
        listed = {entry["component"]: entry for entry in entries}
        for locked in filter(None, (*self.subject.lock.artifacts, self.subject.airgap)):
            if locked.platform == self.subject.platform:
                entry = listed.get(locked.component, {})
                _need(
                    (entry.get("version"), entry.get("sha256")) == (locked.version, locked.digest.hex),
                    f"/{_MANIFEST} says {entry.get('version')} {entry.get('sha256')} of {locked.component}, "
                    f"the lock {locked.version} {locked.digest.hex}",
                )
        digests: dict[str, str] = {}
        for name, entry in listed.items():
            missing = [key for key in ("version", "url", "licence", "files") if not entry.get(key)]
            _need(not missing, f"/{_MANIFEST} does not say the {', '.join(missing)} of {name}")
            digests |= entry["files"]
        wrong = [path for path, digest in digests.items() if self._sha256(path) != digest]
        _none([f"{path} is not what /{_MANIFEST} says" for path in wrong])
        actual = [f"/{path}" for path, file in self.files.contents if file.sha256 and path.startswith(_LISTED)]
        _none([f"{path} is not in /{_MANIFEST}" for path in actual if path not in digests])
        return f"{len(listed)} components as in the lock, {len(digests)} files as in the image"

    def _sha256(self, path: str) -> str:
        entry = self.files.find(path)
        return entry.content.sha256 if entry and entry.content else ""

    def _scripts(self) -> str:
        own = {
            path: file.shebang for path, file in self.files.contents if file.shebang and path.startswith("usr/local/")
        }
        for path, line in own.items():
            interpreter, *arguments = line.split()
            if interpreter.endswith("/env"):
                named = next((word for word in arguments if not word.startswith("-")), "")
                interpreter = f"/usr/bin/{named}"
            _need(self.files.find(interpreter), f"/{path} needs {interpreter}, which the image does not have")
        return f"{len(own)} scripts of ours have their interpreters"

    def _privileged(self) -> str:
        entries = self.files.entries
        modes = {path: entry.mode for path, entry in entries.items() if not entry.folder and entry.mode & 0o6000}
        _none([f"/{path} has the mode {mode:04o}" for path, mode in modes.items() if path not in _PRIVILEGED])
        return f"{len(modes)}, all known ones of Debian's packages"

    def _config(self) -> str:
        architecture, settings = self.config["architecture"], self.config["config"]
        _need(architecture == self.subject.platform.architecture, f"the config says architecture {architecture}")
        _need(settings.get("Entrypoint"), "there is no entrypoint")
        _need(settings.get("Healthcheck"), "there is no health check")
        commands = {"entrypoint": settings["Entrypoint"], "health check": settings["Healthcheck"]["Test"][1:]}
        for role, command in commands.items():
            if command and command[0].startswith("/"):
                entry = self.files.find(command[0])
                _need(entry and entry.mode & 0o111, f"the {role} {command[0]} is not there, or may not be executed")
        missing = [volume for volume in _VOLUMES if volume not in (settings.get("Volumes") or {})]
        _need(not missing, f"no volume at {', '.join(missing)}")
        return f"entrypoint {' '.join(settings['Entrypoint'])}, health check, {len(settings['Volumes'])} volumes"
