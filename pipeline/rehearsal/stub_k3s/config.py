"""The configuration of one server or agent: command line, config file and its fragments, environment.

As in k3s (docs.k3s.io/installation/configuration, pkg/configfilearg): the command line overrides the file, or adds to
it if a flag can be repeated; the file overrides the environment; `config.yaml.d/*.yaml` are read after the file in
alphabetical order, a later value replaces an earlier one, and `key+:` appends to it; an unknown key in a file is
skipped with a warning, an unknown flag is an error. K3S_CONFIG_FILE overrides --config.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any

from . import flags, kubelet
from .errors import Failure
from .process import say

DEFAULT_CONFIG = "/etc/rancher/k3s/config.yaml"

_COMMENT = re.compile(r"""("(?:[^"\\]|\\.)*"|'[^']*')|(?:^|\s)#.*""")  # or text in quotes, which has none
_PAIR = re.compile(r"([A-Za-z0-9][\w.+-]*):(?: +(.*))?")
_ITEM = re.compile(r" *- +(.*)")
_SCALAR = re.compile(r"""(".*")|'([^']*)'|([^-"'{}\[\]&*!|>%@`](?:(?!: )[^"'])*)""")

Settings = dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings that the server or the agent uses."""

    data_dir: Path
    kubelet_dir: Path
    resolv_conf: Path | None  # of pods; None: dockerd's own
    etc_dir: Path  # /etc/rancher
    node_name: str
    node_ip: str | None
    kubeconfig: Path
    kubeconfig_mode: int
    bind_address: str
    port: int
    tls_sans: tuple[str, ...]
    service_cidr: IPv4Network
    token: str  # without K10HASH::USER: in front; empty: the server makes one
    docker_socket: Path
    server: str  # URL, for an agent to join
    disabled: frozenset[str]
    kubelet: dict[str, Any]
    kubelet_refusal: str  # kubelet's error message about its flags and files, for its later start


def load(arguments: list[str], environment: Mapping[str, str], *, command: str = "server") -> Config:
    """Merge all sources into a Config. Raises Failure."""
    given = parse_arguments(arguments)
    named = environment.get("K3S_CONFIG_FILE") or (given.get("config") or [""])[-1]
    settings = read_files(Path(named or DEFAULT_CONFIG), must_exist=bool(named))
    for name, values in given.items():
        settings[name] = [*(settings.get(name, []) if flags.KINDS[name] == "list" else []), *values]
    for flag, variable in flags.VARIABLES.items():
        if flag not in settings and environment.get(variable):
            settings[flag] = [environment[variable]]
    require(settings, command)
    try:
        return build(settings, environment)
    except (OSError, ValueError) as error:
        raise Failure(f"invalid value for a flag: {error}") from None


def parse_arguments(arguments: list[str]) -> Settings:
    """Parse `--flag value`, `--flag=value` and `-f value`; flags can be repeated. Raises Failure."""
    settings: Settings = {}
    words = iter(arguments)
    for word in words:
        if not word.startswith("-") or word == "-":
            raise Failure(f"unexpected argument: {word}")
        name, has_value, value = word.lstrip("-").partition("=")
        kind = flags.KINDS.get(name)
        if kind is None:
            raise Failure(f"flag provided but not defined: -{name}")
        if not has_value:
            value = "true" if kind == "bool" else next(words, "")
            if value == "":
                raise Failure(f"flag needs an argument: -{name}")
        settings.setdefault(name, []).append(value)
    return settings


def read_files(path: Path, *, must_exist: bool) -> Settings:
    """Read the config file and the fragments in the folder `<file>.d`. Raises Failure."""
    paths = [path] if path.is_file() else []
    paths += sorted(entry for entry in Path(f"{path}.d").glob("*") if entry.suffix in (".yaml", ".yml"))
    if must_exist and not paths:
        raise Failure(f"the config file {path} does not exist")
    settings: Settings = {}
    for source in paths:
        try:
            text = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Failure(f"cannot read the config file {source}: {error}") from None
        for raw_key, values in parse_file(text, str(source)).items():
            key = raw_key.removesuffix("+")
            if key not in flags.KINDS:
                say(f"Unknown flag --{key} found in {source}, skipping", level="warning")
            else:
                settings[key] = [*settings.get(key, []), *values] if raw_key.endswith("+") else values
    return settings


def parse_file(text: str, where: str) -> Settings:
    """Parse the YAML that configurations use: keys with scalars, or lists of them, which stay text. Raises Failure.

    PyYAML would be slow: in a zipapp its 5,000 lines are compiled at each start, under emulation too.
    """
    settings: Settings = {}
    values: list[str] | None = None
    for number, raw in enumerate(text.splitlines(), start=1):
        line = _COMMENT.sub(r"\1", raw).rstrip()
        try:
            if pair := _PAIR.fullmatch(line):
                values = settings[pair[1]] = _values(pair[2] or "")
            elif (item := _ITEM.fullmatch(line)) and values is not None:
                values.append(_scalar(item[1]))
            elif line not in ("", "---"):
                raise ValueError
        except ValueError:
            reads = "expected `key: value`, `key: [value, value]` or `- value`, with text, numbers or booleans"
            raise Failure(f"{where}, line {number}: {reads}; found: {line.strip()}") from None
    return settings


def _values(text: str) -> list[str]:
    """Return the items of a list in brackets, or one scalar; none of an empty one."""
    if text.startswith("[") and text.endswith("]"):
        return [_scalar(item.strip()) for item in text[1:-1].split(",") if item.strip()]
    return [_scalar(text)] if text else []


def _scalar(text: str) -> str:
    match = _SCALAR.fullmatch(text)
    if match is None:
        raise ValueError
    return str(json.loads(match[1])) if match[1] else match[2] or match[3] or ""


def require(settings: Settings, command: str) -> None:
    """Raise Failure for settings with which k3s, or the stub, cannot start."""
    server, token = _last(settings, "server"), _last(settings, "token") or _last(settings, "token-file")
    # Without a token k3s makes a cluster all the same (pkg/cluster/managed.go).
    if command == "server" and server and token:
        raise Failure("the stub's server is the only one and cannot join another (--server, K3S_URL)")
    if command == "agent" and not (server and token):
        raise Failure(f"{'--token' if server else '--server'} is required")
    if _last(settings, "docker") != "true":
        raise Failure("the stub runs pods only in dockerd: set `docker: true` or --docker")


def build(settings: Settings, environment: Mapping[str, str]) -> Config:
    """Convert the merged settings. Raises ValueError; OSError for a token file that cannot be read."""
    data_dir = Path(_last(settings, "data-dir", "/var/lib/rancher/k3s")).absolute()
    etc_dir = Path(environment.get("DIND_K3S_STUB_ETC") or "/etc/rancher")
    file = _last(settings, "token-file")
    token = _last(settings, "token") or (Path(file).read_text(encoding="utf-8").strip() if file else "")
    kubelet_arguments = settings.get("kubelet-arg", [])
    kubelet_flags = dict(argument.lstrip("-").partition("=")[::2] for argument in kubelet_arguments)
    kubelet_settings, refusal = {}, ""
    try:
        kubelet_settings = kubelet.effective(kubelet_arguments, data_dir)
    except Failure as failure:
        refusal = str(failure)
    addresses = _all(settings, "node-ip") or _all(settings, "advertise-address")
    return Config(
        data_dir=data_dir,
        kubelet_dir=Path(kubelet_flags.get("root-dir") or "/var/lib/kubelet").absolute(),
        resolv_conf=Path(_last(settings, "resolv-conf")) if _last(settings, "resolv-conf") else None,
        etc_dir=etc_dir,
        node_name=_last(settings, "node-name", socket.gethostname()).lower(),
        node_ip=str(ip_address(addresses[0])) if addresses else None,
        kubeconfig=Path(_last(settings, "write-kubeconfig", str(etc_dir / "k3s/k3s.yaml"))).absolute(),
        kubeconfig_mode=int(_last(settings, "write-kubeconfig-mode", "0600"), 8),
        bind_address=_last(settings, "bind-address", "0.0.0.0"),
        port=int(_last(settings, "https-listen-port", "6443")),
        tls_sans=tuple(_all(settings, "tls-san")),
        service_cidr=IPv4Network([*_all(settings, "service-cidr"), "10.43.0.0/16"][0]),
        token=token.rpartition(":")[2],
        docker_socket=Path(environment.get("DOCKER_HOST", "").removeprefix("unix://") or "/var/run/docker.sock"),
        server=_last(settings, "server"),
        disabled=frozenset(_all(settings, "disable")),
        kubelet=kubelet_settings,
        kubelet_refusal=refusal,
    )


def _last(settings: Settings, name: str, default: str = "") -> str:
    return (settings.get(name) or [""])[-1] or default


def _all(settings: Settings, name: str) -> list[str]:
    return [part.strip() for value in settings.get(name, []) for part in value.split(",") if part.strip()]
