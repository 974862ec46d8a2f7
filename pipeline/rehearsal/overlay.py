"""A rehearsed image with this checkout's rootfs/ and a k3s on top, without building all of it.

For tests of the image and for measuring an edit of it. Smoke in the rehearsal boots the exact bytes of a release.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from python_on_whales import DockerClient

from pipeline.core.names import Digest

# As the Dockerfile's stages `own` and `system-images`. The old byte code must go, since Python does not check it.
_DOCKERFILE = r"""
FROM {base}
RUN --network=none --mount=type=bind,target=/in <<"EOF"
set -eu
rm -rf /usr/local/lib/dind-k3s
cp -R /in/rootfs/. /
find /usr/local/lib/dind-k3s -type d -exec chmod 0755 {{}} +
find /usr/local/lib/dind-k3s -type f -exec chmod 0644 {{}} +
chmod 0755 /usr/local/bin/* /usr/local/sbin/* /usr/local/lib/dind-k3s/run-*
if [ -e /in/k3s ]; then
  install -m 0755 /in/k3s /usr/local/bin/k3s
  python3 - /usr/share/dind-k3s/manifest.json "{version}" <<"END"
import json, sys
entries = json.load(open(sys.argv[1]))
[entry] = [entry for entry in entries if entry["component"] == "k3s"]
entry["version"] = sys.argv[2]
json.dump(entries, open(sys.argv[1], "w"))
END
fi
python3 -m compileall -q --invalidation-mode unchecked-hash /usr/local/lib/dind-k3s
mkdir -p /usr/share/dind-k3s/images
cp -R /in/images /usr/share/dind-k3s/
rmdir --ignore-fail-on-non-empty /usr/share/dind-k3s/images
EOF
"""


@dataclass(frozen=True, kw_only=True)
class K3s:
    """A k3s to replace the image's: the program, its version, and for the variant airgap its system images."""

    program: bytes
    version: str
    images: Path | None = None


def build(client: DockerClient, base: str, name: str, root: Path, folder: Path, k3s: K3s | None = None) -> None:
    """Build the image in the engine. `root`: the checkout; `folder`: an empty one, for the context."""
    shutil.copytree(root / "rootfs", folder / "rootfs", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "images").mkdir()
    if k3s is not None:
        (folder / "k3s").write_bytes(k3s.program)
        if k3s.images is not None:
            shutil.copyfile(k3s.images, folder / "images" / k3s.images.name)
            (folder / "images/SHA256SUMS").write_text(f"{Digest.of_file(k3s.images).hex}  {k3s.images.name}\n")
    (folder / "Dockerfile").write_text(_DOCKERFILE.format(base=base, version=k3s.version if k3s else ""))
    client.buildx.build(folder, tags=[name], load=True, progress=False)
