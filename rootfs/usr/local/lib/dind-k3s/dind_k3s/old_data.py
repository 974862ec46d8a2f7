"""old-data PID: remove the programs that earlier versions of k3s unpacked into <data-dir>/data, some 250 MB each.

k3s itself removes none (k3s: cmd/k3s/main.go). keeper.py runs this when the k3s with that process id is ready: then no
way back to `previous` is needed any more. Kept are the folders of the running k3s, of `current`, and those to which the
links of the CNI plugins lead: after a move to an earlier version, these are three.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

HASH = re.compile(r"[0-9a-f]{64}")


def remove_others(running: Path) -> list[str]:
    """Remove the folders beside the one of this program, which is <data-dir>/data/HASH/bin/k3s; their names."""
    data = running.parents[2]
    links = [link.readlink() for link in (data / "current", *(data / "cni").glob("*")) if link.is_symlink()]
    kept = {*HASH.findall(" ".join(map(str, [running, *links])))}
    removed = []
    for folder in sorted(data.iterdir()):
        if HASH.fullmatch(folder.name.removesuffix("-tmp")) and folder.name not in kept:
            shutil.rmtree(folder)
            removed.append(folder.name)
    previous = data / "previous"
    if previous.is_symlink() and not previous.exists():
        previous.unlink()
    return removed


def main() -> int:
    try:
        running = Path(f"/proc/{int(sys.argv[1])}/exe").readlink()
        if HASH.fullmatch(running.parts[-3]):
            for name in remove_others(running):
                print(f"[dind-k3s] k3s: removed the programs of an earlier version ({name[:8]}…)", flush=True)
    except FileNotFoundError:
        pass  # it has just ended
    except OSError as error:
        print(f"[dind-k3s] k3s: cannot remove the programs of earlier versions: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
