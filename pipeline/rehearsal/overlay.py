"""A rehearsed image with this checkout's rootfs/ and stand-in k3s put over it, without a build of the whole.

For tests of the image and for measuring an edit of it. The exact bytes that a release would publish are what the
rehearsal's own smoke boots.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from python_on_whales import DockerClient

from pipeline.platforms import Platform
from pipeline.rehearsal import standin_build

# As the Dockerfile's stage `own` does it. Byte code in there is never checked, so none of the old one may stay.
_DOCKERFILE = r"""
FROM {base}
RUN --network=none --mount=type=bind,target=/in <<"EOF"
set -eu
rm -rf /usr/local/lib/dind-k3s
cp -R /in/rootfs/. /
find /usr/local/lib/dind-k3s -type d -exec chmod 0755 {{}} +
find /usr/local/lib/dind-k3s -type f -exec chmod 0644 {{}} +
chmod 0755 /usr/local/bin/* /usr/local/sbin/* /usr/local/lib/dind-k3s/run-*
install -m 0755 /in/k3s /usr/local/bin/k3s
python3 -m compileall -q --invalidation-mode unchecked-hash /usr/local/lib/dind-k3s
EOF
"""


def build(
    client: DockerClient, base: str, name: str, root: Path, folder: Path, *, k3s: str, platform: Platform
) -> None:
    """Build it in the engine. `root`: the checkout; `folder`: an empty one for the context; `k3s`: its version."""
    shutil.copytree(root / "rootfs", folder / "rootfs", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "k3s").write_bytes(standin_build.build(k3s, platform.value))
    (folder / "Dockerfile").write_text(_DOCKERFILE.format(base=base))
    client.buildx.build(folder, tags=[name], load=True, progress=False)
