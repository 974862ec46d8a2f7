"""Where files are. Tests put another root in front; programs inside the image have none."""

from __future__ import annotations

import os
from pathlib import Path

RUN = "/run/dind-k3s"
# The administrator's, for our programs and for kubectl inside. Where k3s is to write its own elsewhere, it is a link to
# the one that k3s always writes for itself.
KUBECONFIG = "/app/k3s/k3s.yaml"


def at(path: str) -> Path:
    """The file that has this absolute path in the container."""
    return Path(os.environ.get("DIND_K3S_TEST_ROOT", "/")) / path.lstrip("/")


def first_process() -> Path:
    """The container's first process in /proc. It is not 1 with `--pid host`, nor with `--init`."""
    return Path(f"/proc/{facts().get('pid', '1')}")


def facts() -> dict[str, str]:
    """What the start steps noted (`note` in say.sh); empty before there are any."""
    try:
        lines = at(f"{RUN}/facts").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)
