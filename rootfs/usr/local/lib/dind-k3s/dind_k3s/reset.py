"""reset cluster|images|all [--yes]: start over without a new container.

  cluster  objects, certificates, tokens, volumes of pods and pods go; images, config.yaml and server/manifests stay.
           A snapshot of the cluster is kept in /app/k3s/snapshots
  images   containers that are not pods', images that no pod uses, and the build cache go; volumes stay
  all      everything in both volumes but config.yaml goes

It asks when there is a terminal, and needs --yes when there is none. `cluster` also works without a running container,
on its volume alone: docker run --rm -v k3s:/app/k3s IMAGE reset cluster --yes
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dind_k3s import mounts, pod_network, programs, snapshot, versions, volume
from dind_k3s.plan import Mistake, asked, refuse
from dind_k3s.root import at, facts

USAGE = "usage: reset cluster|images|all [--yes]"
GOES = {
    "cluster": "all objects of the cluster, its certificates and tokens, its pods and their volumes",
    "images": "all containers that are not pods', all images that no pod uses, and the build cache",
    "all": "the cluster with its snapshots, and all images, containers and volumes",
}
POD = "io.kubernetes.pod.uid"
LIMIT = 120.0


def docker(*arguments: str) -> list[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Mistake(f"docker {' '.join(arguments[:2])}: {done.stderr.strip()}")
    return done.stdout.split()


def remove_containers(*, pods: bool, others: bool) -> None:
    of_pods = set(docker("ps", "--all", "--quiet", "--filter", f"label={POD}"))
    every = set(docker("ps", "--all", "--quiet"))
    chosen = (of_pods if pods else set()) | (every - of_pods if others else set())
    if chosen:
        docker("rm", "--force", "--volumes", *sorted(chosen))


def remove(*paths: Path) -> list[str]:
    """Remove files and trees, all that is possible of them; a line for each thing that could not be."""
    if not paths:
        return []
    command = ["rm", "--recursive", "--force", "--one-file-system", "--", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines()


def empty(folder: Path, *but: str) -> list[str]:
    """Remove what is in a folder, with the mounts on it; a line for each thing that could not be removed.

    All of it is moved aside first, which takes no time, so that an interruption leaves no part of it in its place.
    """
    if not folder.is_dir():
        return []
    mounts.unmount_inside(folder, *but)
    with contextlib.suppress(OSError):  # without room it is removed where it is
        aside = Path(tempfile.mkdtemp(dir=folder, prefix=".removed-"))
        for path in folder.iterdir():
            if path != aside and path.name not in but:
                with contextlib.suppress(OSError):
                    path.rename(aside / path.name)
    return remove(*(path for path in folder.iterdir() if path.name not in but))


def remove_cluster(*, inside: bool) -> list[str]:
    """Put an empty state in the cluster's place, at once; then remove what belonged to the old one.

    A line for each thing that could not be removed. None of them is in the way of a new cluster.
    """
    here, ours = volume.k3s_folder(), volume.ours()
    swap = volume.Swap()
    with volume.temporary() as new:
        if inside:  # both daemons go on with the ranges and the address that they were started with
            versions.write_stamp(new / ".dind-k3s", {"k3s": versions.installed("k3s")})
            for kept in (volume.RANGES, volume.ADDRESS):
                if (here / kept).exists():
                    shutil.copy2(here / kept, new / kept)
        swap.prepare(new)
    swap.do()
    swap.keep()
    problems = [*empty(here / "server", "manifests"), *empty(here / "agent", "etc"), *empty(ours / "kubelet")]
    problems += [*empty(here / "storage"), *([] if (here / "k3s.yaml").is_symlink() else remove(here / "k3s.yaml"))]
    if inside:
        problems += [*remove(*map(at, pod_network.FILES)), *pod_network.forget()]
    return problems


def reset_cluster(*, inside: bool) -> Iterator[str]:
    with programs.stopped(*(["k3s"] if inside else [])):
        volume.Swap().undo()
        yield snapshot.keep_before_loss("reset")
        if inside:
            remove_containers(pods=True, others=False)
        problems = remove_cluster(inside=inside)
    result = "the cluster is new and ready" if inside else "the next start makes a new cluster"
    yield from finish(problems, result, with_k3s=inside)


def finish(problems: list[str], result: str, *, with_k3s: bool) -> Iterator[str]:
    """Wait for the new cluster; the result. Raises Mistake when it is not ready, and for what could not be removed."""
    mistakes = []
    if with_k3s and (problem := programs.cluster_ready(LIMIT)):
        mistakes.append(f"the old cluster is gone, and the new one is not ready: {problem}")
    else:
        yield result
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        mistakes.append(f"this could not be removed: {'; '.join(problems[:3])}{more}")
    if mistakes:
        raise Mistake(*mistakes)


def load_again() -> None:
    """What is in /app/images is loaded once for each volume; now it is loaded again."""
    volume.remove(docker_ours() / "loaded")
    programs.start("preload")


def docker_ours() -> Path:
    return at(facts().get("data", "/var/lib/docker")) / ".dind-k3s"


def reset_images() -> Iterator[str]:
    remove_containers(pods=False, others=True)
    docker("image", "prune", "--all", "--force")
    docker("builder", "prune", "--all", "--force")
    load_again()
    yield f"{len(set(docker('image', 'ls', '--quiet')))} images are left, which pods use"


def reset_all() -> Iterator[str]:
    with_k3s = not asked(os.environ, "K3S_DISABLE")
    if with_k3s:
        programs.refuse_without_server()
    with programs.stopped(*(["k3s"] if with_k3s else [])):
        remove_containers(pods=True, others=True)
        with programs.stopped("dockerd"):
            problems = remove_cluster(inside=with_k3s)
            problems += empty(docker_ours().parent, ".dind-k3s", "lost+found")
            problems += empty(volume.k3s_folder() / "server/manifests", Path(volume.TRAEFIK_CONFIG).name)
            problems += remove(at(volume.SNAPSHOTS))
        load_again()
    result = "both volumes are as new" + (", and the cluster is ready" if with_k3s else "")
    yield from finish(problems, result, with_k3s=with_k3s)


def confirm(what: str) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Mistake(f"reset {what} removes {GOES[what]}: say --yes")
    if input(f"This removes {GOES[what]}. Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise Mistake("nothing was removed")


def run(what: str, *, sure: bool) -> Iterator[str]:
    """What was done, line by line."""
    inside = programs.running()
    if what != "cluster" and not inside:
        raise Mistake(f"reset {what} needs a running container: docker exec; or remove the volume itself")
    if what == "cluster" and inside:
        programs.refuse_without_server()
    if what != "images":
        programs.refuse_external_datastore()
    if not sure:
        confirm(what)
    with volume.only_one(inside=inside):
        if what == "cluster":
            yield from reset_cluster(inside=inside)
        else:
            yield from reset_images() if what == "images" else reset_all()


def main() -> int:
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    words = [word for word in arguments if word not in ("--yes", "-y")]
    if len(words) != 1 or words[0] not in GOES:
        # Also for those who meant the program of this name that resets a terminal.
        print(f"{USAGE}\n(for a terminal: /usr/bin/reset)", file=sys.stderr)
        return 2
    programs.end_by_exceptions()
    try:
        for line in run(words[0], sure=len(words) != len(arguments)):
            print(line, flush=True)
    except Mistake as mistake:
        return refuse(mistake)
    except OSError as error:
        print(f"dind-k3s: error: {error.filename or 'reset'}: {error.strerror}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, EOFError):
        print("dind-k3s: error: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
