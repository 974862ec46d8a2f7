"""What the daemons are started with: facts found by the start steps, the user's files and variables, our defaults.

Ours always gives way: a daemon.json of the user is merged over ours, a flag in DOCKER_ARGS takes our key of the same
meaning out, and k3s reads /app/k3s/config.yaml after ours. What would fail later is refused now: a flag that the
user's own daemon.json has too, quotes that are not closed, a folder in a file's place. Prints what is of note; exits 2
with a line for each mistake.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from dind_k3s import (
    authorities,
    clients,
    dockerd,
    forwarder,
    k3s,
    k3s_command,
    k3s_config,
    proxy,
    ranges,
    registries,
    user_files,
    variables,
)
from dind_k3s.plan import Mistake, Plan, asked, refuse, shown
from dind_k3s.root import RUN, at, facts
from dind_k3s.versions import Version, installed

MODES = {authorities.BUNDLE: 0o644, clients.SCRIPT: 0o755}
USER_CONFIG = """\
# Settings of k3s (https://docs.k3s.io/installation/configuration). Written once and yours from then on: what is said
# here wins over the image's own settings. Then: supervisorctl restart k3s
"""


def version_of(component: str) -> tuple[int, ...]:
    """Major, minor, patch; from the image's manifest or from the program itself."""
    version = Version.parse(installed(component))
    assert version is not None  # installed() refuses what cannot be read
    return version.major, version.minor, version.patch


def write(files: Mapping[str, str]) -> None:
    """Write what changed, with MODES, else for root alone; an empty text means no file. Raises OSError."""
    for name, text in files.items():
        path = at(name)
        # A variable need not be UTF-8, and its bytes are handed on as they are.
        data = text.encode(errors="surrogateescape")
        if not text and not name.endswith(".args"):
            path.unlink(missing_ok=True)
        elif not path.is_file() or path.read_bytes() != data:  # a full disk takes nothing, not even the same again
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=MODES.get(name, 0o600))
            path.write_bytes(data)


def check_k3s_files(env: Mapping[str, str]) -> list[str]:
    """What is wrong with the files that k3s reads at each start, and with the one that it writes."""
    mistakes = user_files.not_yaml(k3s_config.files(env))
    output = env.get("K3S_KUBECONFIG_OUTPUT", "")
    if output.startswith("/") and "\0" not in output and at(output).is_dir():
        mistakes.append(f"K3S_KUBECONFIG_OUTPUT is {shown(output)}, which is a folder; a file is expected")
    return mistakes


def link(links: Mapping[str, str]) -> None:
    """Make or renew links; a file in the place of one is the user's and stays."""
    for name, target in links.items():
        path = at(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()
        if not path.exists():
            path.symlink_to(at(target))


def run(env: Mapping[str, str], extra: Sequence[str]) -> list[str]:
    """Plan, then write; nothing is written when there is a mistake. Raises Mistake with all of them, OSError."""
    found = facts()
    profile = env.get("PROFILE") or "dev"
    plans = [Plan(messages=variables.unused(env)), clients.plan(env)]
    mistakes = variables.mistakes(env)
    settings: dict[str, object] = {}
    try:
        has_ranges = not asked(env, "K3S_DISABLE") and k3s_command.role_and_flags(env)[0] == "server"
        chosen, messages = ranges.choose(env, with_k3s=has_ranges)
        plans.append(Plan(messages=messages))
        found |= chosen
        plans.append(authorities.plan())
        made, settings = registries.plan()
        plans.append(made)
    except Mistake as mistake:
        mistakes += mistake.messages
    try:
        plans.append(dockerd.plan(env, extra, found, version_of("docker"), profile, settings))
    except Mistake as mistake:
        mistakes += mistake.messages
    if not asked(env, "K3S_DISABLE"):
        try:
            mistakes += check_k3s_files(env)
            plans.append(k3s.plan(env, found, version_of("k3s"), profile, version_of("docker")))
        except Mistake as mistake:
            mistakes += mistake.messages
    elif command := k3s_command.command():
        mistakes.append(f"K3S_DISABLE is set, so the container's command cannot be {command[0]}; leave one of them out")
    if mistakes:
        raise Mistake(*dict.fromkeys(mistakes))
    files = {name: text for plan in plans for name, text in plan.files.items()}
    if "dns" in found:
        files[f"{RUN}/dnsmasq.conf"] = forwarder.config(found["dns"])
    proxies = proxy.environment(env, found)
    files[f"{RUN}/environment"] = "".join(f"{name}={value}\0" for name, value in proxies.items())
    if proxies:
        messages = [f"proxies for both daemons; NO_PROXY is {proxies['NO_PROXY']}", *proxy.dead(proxies)]
        plans.append(Plan(messages=messages))
    write(files)
    link({name: target for plan in plans for name, target in plan.links.items()})
    user_config = at("/app/k3s/config.yaml")
    if not user_config.exists():
        write({"/app/k3s/config.yaml": USER_CONFIG})
    messages = [line for plan in plans for line in plan.messages]
    return [f"profile {profile}, storage driver {found.get('storage', 'not known')}", *messages]


def main() -> int:
    """Begin when the entrypoint writes a line; it writes none when a step before this one refused the start."""
    if not sys.stdin.readline():
        return 1
    try:
        messages = run(os.environ, sys.argv[1:])
    except Mistake as mistake:
        return refuse(mistake)
    except OSError as error:
        print(f"dind-k3s: error: {error.filename} cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    print("\n".join(shown(line, 1000) for line in messages))
    return 0


if __name__ == "__main__":
    sys.exit(main())
