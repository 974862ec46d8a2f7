"""restore FILE|- [--timeout SECONDS]: the cluster as it was in a snapshot.

The file is read and checked as a whole before anything is touched. k3s is stopped, the state swapped, k3s started
again; when the cluster is not ready in time (120 s), the state before is put back. That one is also kept as a snapshot.
Without a running container, on its volume alone, the state is swapped and the next start uses it:

    docker run --rm -v k3s:/app/k3s IMAGE restore /app/k3s/snapshots/…
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO

from dind_k3s import archive, etcd, programs, snapshot, versions, volume
from dind_k3s.plan import Mistake, refuse

USAGE = "usage: restore FILE|- [--timeout SECONDS]"
TIMEOUT = 120.0


def forget_agent_certificates() -> None:
    """Those of another cluster; k3s fetches its agent's from its server at each start."""
    for pattern in ("*.crt", "*.key", "*.kubeconfig"):
        for path in (volume.k3s_folder() / "agent").glob(pattern):
            path.unlink()


def refuse_other_ranges(unpacked: Path, name: str) -> None:
    """Both daemons were started with those of the cluster that is here; only a start changes that."""
    theirs, ours = (folder / volume.RANGES for folder in (unpacked, volume.k3s_folder()))
    has, here = (file.read_text().strip() if file.exists() else "" for file in (theirs, ours))
    if has and here and has != here:
        raise Mistake(
            f"{name} has other address ranges ({has}) than this cluster ({here}): restore it while no container runs,"
            " docker run --rm -v k3s:/app/k3s IMAGE restore FILE"
        )


def refuse_other_members() -> None:
    """They would go on with the state before, as a majority, and this server without them."""
    try:
        members = etcd.Etcd().members()
    except (OSError, ValueError):  # no etcd, or it does not run
        return
    if len(members) > 1:
        raise Mistake(
            f"etcd has {len(members)} members ({', '.join(member['name'] for member in members)}). Stop all of these"
            " servers, restore on the volume of one (docker run --rm -v k3s:/app/k3s IMAGE restore FILE), start it, and"
            " let the others join it with new volumes"
        )


def run(source: IO[bytes], name: str, timeout: float) -> list[str]:
    """Return what to log."""
    programs.refuse_external_datastore()
    inside = programs.running()
    if inside:
        programs.refuse_without_server()
        refuse_other_members()
    with volume.temporary() as unpacked:
        # Read to its end before the lock: a `snapshot -` at the other end of a pipe wants it, too.
        contents = archive.unpack(source, name, unpacked)
        if (database := unpacked / volume.DATABASE).exists():
            snapshot.check_database(database, f"the datastore in {name}")
        if (unpacked / volume.ETCD).is_dir():
            (unpacked / volume.ETCD_SNAPSHOT).touch()  # other members, and another address: the next start's matter
        with volume.only_one(inside=inside):
            return replace(contents, unpacked, name, timeout, inside=inside)


def replace(contents: archive.Contents, unpacked: Path, name: str, timeout: float, *, inside: bool) -> list[str]:
    """Swap the states; return what to log."""
    was, now = contents.versions.get("k3s", ""), versions.installed("k3s")
    # On the volume alone no k3s will run now; the next start asks the same question with its own version.
    why = versions.refusal("k3s", was, now) if inside else ""
    if why and now not in versions.allowed(os.environ):
        raise Mistake(f"{name}: {why}. {versions.ALLOW}={now} restores it nevertheless")
    if inside:
        refuse_other_ranges(unpacked, name)
    versions.write_stamp(unpacked / ".dind-k3s", {"k3s": now if inside else was})
    if not (address := unpacked / volume.ADDRESS).exists():  # archives of earlier images
        address.write_text("unknown\n")
    swap = volume.Swap()
    messages: list[str] = []
    both = ["k3s", "network"] if inside else []  # network compares addresses when it starts
    try:
        with programs.stopped(*both):
            if swap.undo():
                messages.append("a restore that was interrupted is undone first")
            messages.append(snapshot.keep_before_loss("restore"))
            forget_agent_certificates()
            swap.prepare(unpacked)
            swap.do()
        if inside and (problem := programs.cluster_ready(timeout)):
            raise Mistake(f"{name}: {problem}; the cluster before it is put back")
    except BaseException:
        if swap.is_done:
            with programs.stopped(*both):
                swap.undo()
        raise
    swap.keep()
    after = "is ready" if inside else "is what the next start finds"
    return [*messages, f"the cluster of {contents.created} (k3s {was or 'unknown'}) {after}"]


def parse(arguments: list[str]) -> tuple[str, float]:
    words = [word for argument in arguments for word in argument.split("=", 1)]
    timeout = TIMEOUT
    if "--timeout" in words:
        position = words.index("--timeout")
        try:
            timeout = float(words[position + 1])
        except (IndexError, ValueError):
            raise Mistake(f"--timeout needs a number of seconds; {USAGE}") from None
        del words[position : position + 2]
    if len(words) != 1 or (words[0].startswith("-") and words[0] != "-"):
        raise Mistake(USAGE)
    return words[0], timeout


def main() -> int:
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    programs.end_by_exceptions()
    try:
        name, timeout = parse(sys.argv[1:])
        if name == "-":
            lines = run(sys.stdin.buffer, "stdin", timeout)
        else:
            with Path(name).open("rb") as source:
                lines = run(source, name, timeout)
    except Mistake as mistake:
        return refuse(mistake)
    except OSError as error:
        print(f"dind-k3s: error: {error.filename or 'restore'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dind-k3s: error: interrupted; the cluster is the one before", file=sys.stderr)
        return 130
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
