"""What the user set of k3s, as k3s reads it (pkg/configfilearg/parser.go): files, then arguments; the last one wins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dind_k3s import plain_yaml
from dind_k3s.k3s_command import role_and_flags
from dind_k3s.plan import Mistake
from dind_k3s.root import KUBECONFIG, RUN, at

OURS = f"{RUN}/k3s/config.yaml"
FILES = ("/etc/rancher/k3s/config.yaml", "/app/k3s/config.yaml")  # the user's, after ours
SHORT = {"d": "data-dir", "o": "write-kubeconfig", "c": "config", "t": "token", "s": "server"}
SWITCHES = ("cluster-init", "disable-agent", "disable-helm-controller")  # flags that need no value
LISTS = ("disable",)  # settings whose flags k3s adds up, instead of taking the last one


def has_token(env: Mapping[str, str]) -> bool:
    """Whether there is a token to join a cluster with."""
    return any(env.get(name) for name in ("K3S_TOKEN", "K3S_TOKEN_FILE")) or bool(given(env, "token", "token-file"))


def joins(env: Mapping[str, str]) -> str:
    """The address of the cluster that this node joins; empty for a server that makes one.

    k3s heeds K3S_URL in a server only if there is a token, too (pkg/cluster/managed.go). Testcontainers sets it without
    one, to the server's own address.
    """
    url = given(env, "server").get("server", "")
    if not url and (role_and_flags(env)[0] == "agent" or has_token(env)):
        url = env.get("K3S_URL", "")
    return url


def pairs(args: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Position, long name and value of each flag; of a flag without `=`, the next argument counts as its value."""
    for number, (arg, following) in enumerate(zip(args, [*args, ""][1:], strict=True)):
        name, has_value, value = arg.lstrip("-").partition("=")
        name = SHORT.get(name, name)
        if arg.startswith("-"):
            yield number, name, value if has_value else "true" if name in SWITCHES else following


def files(env: Mapping[str, str]) -> list[str]:
    """The user's files in k3s's order: each config.yaml, which need not be there, then its folder's files by name.

    run-k3s links them in the same order. The file of --config comes last.
    """
    named = [value for _, name, value in pairs(role_and_flags(env)[1]) if name == "config"]
    found: list[str] = []
    for main in (*FILES, *named[-1:]):
        entries = sorted(path.name for path in at(f"{main}.d").glob("*") if not path.is_dir())
        found += [main, *(f"{main}.d/{name}" for name in entries if name.lower().endswith((".yaml", ".yml")))]
    return found


def given(env: Mapping[str, str], *names: str, ours: bool = False) -> dict[str, str]:
    """Those of the settings that the user gave, with their values; `ours`: or that our own file has.

    The values of a list are separated by commas.
    """
    found: dict[str, str] = {}
    for file in (*([OURS] if ours else []), *files(env)):
        try:
            values = plain_yaml.parse(at(file).read_text(), file)
        except (OSError, ValueError, Mistake):
            continue  # k3s itself reports what is wrong with it
        for name in names:
            if isinstance(values, dict) and values.get(name):
                value = values[name]
                found[name] = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    for _, name, value in pairs(role_and_flags(env)[1]):
        if name in names:
            found[name] = f"{found[name]},{value}" if name in LISTS and name in found else value
    return found


def kubeconfig(env: Mapping[str, str]) -> str:
    """Return where k3s writes the administrator's kubeconfig."""
    name = "write-kubeconfig"
    return given(env, name).get(name) or env.get("K3S_KUBECONFIG_OUTPUT") or KUBECONFIG
