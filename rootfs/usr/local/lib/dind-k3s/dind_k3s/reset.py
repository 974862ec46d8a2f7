"""reset cluster|images|all [--yes]: begin anew without a new container.

  cluster  objects, certificates, tokens, volumes of pods and pods go; images, config.yaml and server/manifests stay.
           A snapshot of the cluster is kept in /app/k3s/snapshots
  images   containers that are not pods', images that no pod uses, and the build cache go; volumes stay
  all      everything in both volumes but config.yaml goes

It asks when there is a terminal, and needs --yes when there is none. `cluster` also works without a running container,
on its volume alone: docker run --rm -v k3s:/app/k3s IMAGE reset cluster --yes
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dind_k3s import programs, snapshot, versions, volume
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


def empty(folder: Path, *but: str) -> None:
    """Remove what is in a folder; mounts in it are let go first."""
    if not folder.is_dir():
        return
    inside = f"{folder.resolve()}/"
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(inside)), reverse=True):
        if mount[len(inside) :].split("/")[0] not in but:
            subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
    for path in folder.iterdir():
        if path.name not in but:
            volume.remove(path)


def remove_cluster() -> None:
    """The server last: until it is gone, k3s mends what is missing of the rest."""
    here = volume.k3s_folder()
    empty(here / "agent", "etc")
    empty(volume.ours() / "kubelet")
    empty(at("/var/lib/kubelet"))
    empty(here / "storage")
    empty(volume.ours() / "node")
    (here / "k3s.yaml").unlink(missing_ok=True)
    (volume.ours() / versions.STAMP).unlink(missing_ok=True)
    volume.remove(here / "server/token")  # a half-removed datastore is not to be opened with it
    empty(here / "server", "manifests")


def reset_cluster(*, inside: bool) -> list[str]:
    if inside:
        programs.stop("k3s")
    told = [snapshot.keep_before_loss("reset")]
    if inside:
        remove_containers(pods=True, others=False)
    remove_cluster()
    if inside:
        start_k3s()
        told.append("the cluster is new and ready")
    else:
        told.append("the next start makes a new cluster")
    return told


def start_k3s() -> None:
    versions.write_stamp(volume.ours(), {"k3s": versions.installed("k3s")})
    programs.start("k3s")
    if problem := programs.cluster_ready(LIMIT):
        raise Mistake(f"the new cluster is not ready: {problem}")


def load_again() -> None:
    """What lies in /app/images is loaded once for each volume; now that is once more."""
    volume.remove(docker_ours() / "loaded")
    programs.start("preload")


def docker_ours() -> Path:
    return at(facts().get("data", "/var/lib/docker")) / ".dind-k3s"


def reset_images() -> list[str]:
    remove_containers(pods=False, others=True)
    docker("image", "prune", "--all", "--force")
    docker("builder", "prune", "--all", "--force")
    load_again()
    return [f"{len(set(docker('image', 'ls', '--quiet')))} images are left, which pods use"]


def reset_all() -> list[str]:
    disabled = asked(os.environ, "K3S_DISABLE")
    if not disabled:
        programs.refuse_without_server()
    if not disabled:
        programs.stop("k3s")
    remove_containers(pods=True, others=True)
    programs.stop("dockerd")
    empty(docker_ours().parent, ".dind-k3s", "lost+found")
    remove_cluster()
    for name in ("manifests", "db"):
        volume.remove(volume.k3s_folder() / "server" / name)
    volume.remove(at(volume.SNAPSHOTS))
    programs.start("dockerd")
    load_again()
    if not disabled:
        start_k3s()
    return ["both volumes are as new" + ("" if disabled else ", and the cluster is ready")]


def confirm(what: str) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Mistake(f"reset {what} removes {GOES[what]}: say --yes")
    if input(f"This removes {GOES[what]}. Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise Mistake("nothing was removed")


def run(what: str, *, sure: bool) -> list[str]:
    inside = programs.running()
    if what != "cluster" and not inside:
        raise Mistake(f"reset {what} needs a running container: docker exec; or remove the volume itself")
    if what == "cluster" and inside:
        programs.refuse_without_server()
    if not sure:
        confirm(what)
    with volume.only_one(inside=inside):
        if what == "cluster":
            return reset_cluster(inside=inside)
        return reset_images() if what == "images" else reset_all()


def main() -> int:
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    words = [word for word in arguments if word not in ("--yes", "-y")]
    if len(words) != 1 or words[0] not in GOES:
        # Also whoever wanted the program of this name that mends a terminal.
        print(f"{USAGE}\n(for a terminal: /usr/bin/reset)", file=sys.stderr)
        return 2
    try:
        print("\n".join(run(words[0], sure=len(words) != len(arguments))))
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
