"""guard check|commit: which versions may use these volumes, asked before anything in them is touched.

check   puts back what an interrupted restore left, and refuses older versions and skipped minors of k3s, which
        Kubernetes cannot undo (k3s-io/k3s#7537)
commit  runs when every other step of the start went well: keeps a snapshot of the datastore before another k3s changes
        it, and writes down who uses the volumes from now on
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from dind_k3s import k3s_command, variables, versions, volume
from dind_k3s.plan import Mistake, asked, refuse
from dind_k3s.root import RUN, at, facts

# There when `commit` will have something to do.
TAKES_OVER = f"{RUN}/takes-over"
COMPONENTS = {"docker": "/var/lib/docker", "k3s": volume.K3S}


def folder(component: str) -> Path:
    """Where the volume's stamp is."""
    return volume.ours() if component == "k3s" else at(facts().get("data", COMPONENTS["docker"])) / ".dind-k3s"


def components(env: Mapping[str, str]) -> list[str]:
    """Those that are going to run. An agent has no datastore, and its server decides on versions."""
    without_k3s = asked(env, "K3S_DISABLE") or k3s_command.role_and_flags(env)[0] == "agent"
    return ["docker"] if without_k3s else ["docker", "k3s"]


def way_back(was: str) -> str:
    """The newest snapshot that k3s of an earlier version left."""
    found = sorted(at(volume.SNAPSHOTS).glob("before-upgrade-*.tar.gz"), key=lambda path: path.stat().st_mtime)
    if not found:
        return ""
    return f", go back to what was before {was} (docker run --rm -v … IMAGE restore {found[-1]})"


def check(env: Mapping[str, str]) -> list[str]:
    """Return what to log. Raises Mistake with every refusal."""
    if mistakes := variables.mistakes(env):  # the next steps go by them, and may write to the host
        raise Mistake(*mistakes)
    messages = []
    volume.remove_temporary()
    if volume.Swap().undo():
        messages.append("a restore or reset was interrupted: the cluster before it is back")
    for component in components(env):
        now = versions.installed(component)
        was = versions.read_stamp(folder(component)).get(component, "")
        if was != now:
            at(TAKES_OVER).touch()
        if not was or was == now:
            messages.append(f"{component} {now}" + ("" if was else ", first on its volume"))
            continue
        why = versions.refusal(component, was, now)
        if not why:
            messages.append(f"{component} {now} after {was}")
        elif now in versions.allowed(env):
            messages.append(f"warning: {why}; {versions.ALLOW} allows it")
        else:
            back = way_back(was) if component == "k3s" else ""
            mistakes.append(
                f"{why} ({COMPONENTS[component]}). Use an image with {component} {was} or a version that may follow it,"
                f" give it another volume{back}, or take the risk with {versions.ALLOW}={now}"
            )
    if mistakes:
        raise Mistake(*mistakes)
    return messages


def commit(env: Mapping[str, str]) -> list[str]:
    """Return what to log; nothing when nothing changes."""
    messages = []
    for component in components(env):
        at_home = folder(component)
        now = versions.installed(component)
        was = versions.read_stamp(at_home).get(component, "")
        if was == now:
            continue
        if component == "k3s" and volume.has_cluster():
            messages.append(keep(was or "unknown", now, lenient=now in versions.allowed(env)))
        versions.write_stamp(at_home, {component: now})
    return messages


def keep(was: str, now: str, *, lenient: bool) -> str:
    from dind_k3s import snapshot  # 50 ms, which only the start after an upgrade needs

    try:
        path = snapshot.keep_before("upgrade", {"k3s": was})
    except Mistake as mistake:
        if lenient:
            return f"warning: no snapshot before the upgrade to {now}: {mistake}"
        raise Mistake(
            f"no snapshot can be made before k3s {now} takes over from {was}: {mistake}. {versions.ALLOW}={now}"
            " continues without one"
        ) from None
    return f"the cluster of k3s {was} is kept in {path}; `restore` takes it"


def main() -> int:
    try:
        messages = check(os.environ) if sys.argv[1:] == ["check"] else commit(os.environ)
    except Mistake as mistake:
        return refuse(mistake)
    except OSError as error:
        print(f"dind-k3s: error: {error.filename or 'a volume'} cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    print("; ".join(messages), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
