"""A real k3s and its system images, as the arguments of a rehearsal instead of stubs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import IntentError, UpstreamError
from pipeline.core.log import Log
from pipeline.core.platforms import Platform
from pipeline.core.records import Variant
from pipeline.engine import engine
from pipeline.inspect import elf
from pipeline.rehearsal import pause
from pipeline.smoke.booted import BootOptions

_VERSION = r"v1\.\d+\.\d+(-rc\d+)?\+k3s\d+"  # of k3s's releases


@dataclass(frozen=True, kw_only=True)
class Real:
    """Real files instead of stubs, by platform."""

    k3s: Mapping[Platform, Path] = field(default_factory=dict)
    images: Mapping[Platform, Path] = field(default_factory=dict)  # k3s's archives of system images

    @classmethod
    def of(cls, k3s: Sequence[str], images: Sequence[str]) -> Real:
        """Parse the arguments of --k3s and --images. Raises IntentError."""
        real = cls(k3s=_files("k3s", k3s), images=_files("images", images))
        if alone := [platform for platform in real.images if platform not in real.k3s]:
            raise IntentError(
                f"--images {alone[0]}=… needs the k3s of those images", next_step=f"add --k3s {alone[0]}=…"
            )
        return real

    def options(self, chosen: engine.Engine, variant: Variant, folder: Path, log: Log) -> BootOptions:
        """Return the options for a real k3s that can pull nothing.

        With an archive: its system images, which the variant airgap contains. Without one, and on a virtual engine,
        which would take many minutes to unpack them: a pause image and no add-ons.
        """
        assert chosen.platform is not None
        if chosen.platform not in self.k3s:
            return BootOptions()
        patience = 3.0  # for a real control plane on a small machine; the stub answers within a second
        archive = self.images.get(chosen.platform)
        if archive is not None and not chosen.virtual:
            files = ((archive, f"/app/images/{archive.name}"),) if variant is Variant.IMAGE else ()
            return BootOptions(extra_files=files, patience=patience)
        log.say(f"no system images for {chosen.description}: the pause image is {pause.NAME}, add-ons are disabled")
        return BootOptions(
            extra_files=((folder / "pause" / f"{chosen.platform.architecture}.tar", "/app/images/pause.tar"),),
            extra_environment={"K3S_ARGS": pause.K3S_ARGS},
            patience=patience,
        )


def version(files: Mapping[Platform, Path]) -> str:
    """Return the version in real k3s binaries. Raises UpstreamError if there is none, or several."""
    stated = {path: elf.stated_version(path.read_bytes(), _VERSION) for path in files.values()}
    (version, *others) = {*stated.values()}
    if version is None or others:
        raise UpstreamError(
            "the given k3s binaries do not state one version",
            expected="a version like v1.37.1+k3s1 in Go's build information, the same in all",
            found=", ".join(f"{path}: {text or 'none'}" for path, text in stated.items()),
            next_step="use the files of one release: k3s and k3s-arm64",
        )
    return version


def _files(option: str, arguments: Sequence[str]) -> dict[Platform, Path]:
    """Return the files of `PLATFORM=PATH` arguments. Raises IntentError."""
    files = {}
    for text in arguments:
        platform, _, path = text.partition("=")
        if platform not in list(Platform) or not Path(path).is_file():
            raise IntentError(
                f"--{option} {text} cannot be used",
                expected=f"PLATFORM=PATH, e.g. linux/amd64=./{option}, with a file at that path",
                found=f"platform {platform!r}, path {path!r}",
            )
        files[Platform(platform)] = Path(path).resolve()
    return files
