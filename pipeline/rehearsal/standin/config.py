"""The configuration of one server or agent: command line, config file and its fragments, environment.

As in k3s (docs.k3s.io/installation/configuration, pkg/configfilearg): the command line beats the file, or adds to it
where a flag may come more than once, for the file becomes arguments in front; the file beats the environment;
`config.yaml.d/*.yaml` are read after the file in alphabetical order, a later value replaces an earlier one, and `key+:`
appends to it; an unknown key in a server's file is skipped with a warning, an unknown flag is an error. K3S_CONFIG_FILE
beats --config.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any

from . import flags, kubelet, miniyaml
from .about import VERSION
from .failure import Failure

DEFAULT_CONFIG = "/etc/rancher/k3s/config.yaml"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the server, or the agent, acts on."""

    data_dir: Path
    kubelet_dir: Path
    resolv_conf: Path | None  # what pods get; None: as k3s finds it
    etc_dir: Path  # /etc/rancher
    node_name: str
    node_ip: str | None
    node_labels: dict[str, str]
    kubeconfig: Path
    kubeconfig_mode: int
    bind_address: str
    port: int
    tls_sans: tuple[str, ...]
    service_cidr: IPv4Network
    cluster_cidr: IPv4Network
    token: str | None
    token_hash: str  # of the server's CA, from a full token
    docker_socket: Path
    warnings: tuple[str, ...] = ()
    agent: bool = True  # whether this server is a node too (k3s: --disable-agent)
    server: str = ""  # whom an agent joins
    disabled: frozenset[str] = frozenset()
    kubelet: dict[str, Any] = field(default_factory=dict)
    kubelet_refusal: str = ""  # what kubelet has against its flags and files; it starts long after they were read


Settings = dict[str, list[str]]


def load(
    arguments: list[str], environment: Mapping[str, str], *, command: str = "server", version: str = VERSION
) -> Config:
    """Merge all sources into a Config, or tell in one sentence what is wrong."""
    given = parse_arguments(arguments)
    warnings: list[str] = []
    named = environment.get("K3S_CONFIG_FILE") or (given.get("config") or [""])[-1]
    settings = read_files(Path(named or DEFAULT_CONFIG), must_exist=bool(named), warnings=warnings)
    for name, values in given.items():
        settings[name] = [*(settings.get(name, []) if flags.kind_of(name) == "list" else []), *values]
    check_known(settings, command, version)
    for flag, (_, variable) in flags.ACTED_ON.items():
        if variable and flag not in settings and environment.get(variable):
            settings[flag] = [environment[variable]]
    ignored = sorted(name for name in settings if name in flags.ACCEPTED)
    if ignored:
        warnings.append(f"accepted but not acted on, this is a stand-in: {', '.join(f'--{name}' for name in ignored)}")
    return build(settings, environment, tuple(warnings), command, version)


def check_known(settings: Settings, command: str, version: str) -> None:
    """Refuse what this version or this command does not have."""
    for name in settings:
        if not flags.knows(name, flags.numbers(version)):
            raise Failure(f"flag provided but not defined: -{name}; {version} does not have it")
        if command == "agent" and name not in flags.AGENT:
            raise Failure(f"flag provided but not defined: -{name}; k3s agent does not have it")


def parse_arguments(arguments: list[str]) -> Settings:
    """Read `--flag value`, `--flag=value` and `-f value`; the same flag may come again."""
    settings: Settings = {}
    words = iter(arguments)
    for word in words:
        if not word.startswith("-") or word == "-":
            raise Failure(f"unexpected argument: {word}")
        name, has_value, value = word.lstrip("-").partition("=")
        name = flags.SHORT.get(name, name)
        kind = flags.kind_of(name)
        if kind is None:
            raise Failure(f"flag provided but not defined: -{name}")
        if not has_value:
            value = "true" if kind == "bool" else next(words, "")
            if kind != "bool" and value == "":
                raise Failure(f"flag needs an argument: -{name}")
        settings.setdefault(name, []).append(value)
    return settings


def read_files(path: Path, *, must_exist: bool, warnings: list[str]) -> Settings:
    """Read the config file and the fragments in the folder `<file>.d`."""
    folder = Path(f"{path}.d")
    paths = [path] if path.is_file() else []
    if folder.is_dir():
        paths += sorted(entry for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    if must_exist and not paths:
        raise Failure(f"the config file {path} does not exist")
    settings: Settings = {}
    for source in paths:
        try:
            text = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Failure(f"cannot read the config file {source}: {error}") from None
        merge(settings, miniyaml.parse(text, str(source)), str(source), warnings)
    return settings


def merge(settings: Settings, values: Mapping[str, miniyaml.Value], where: str, warnings: list[str]) -> None:
    """Lay the values of one more file over those of the files before it."""
    for raw_key, value in values.items():
        append = raw_key.endswith("+")
        key = flags.SHORT.get(raw_key.rstrip("+"), raw_key.rstrip("+"))
        kind = flags.kind_of(key)
        if kind is None:
            warnings.append(f"Unknown flag --{key} found in {where}, skipping")
            continue
        new = value if isinstance(value, list) else [value] if value != "" else []
        if append and kind == "text" and key in settings:
            settings[key] = [",".join([*settings[key][-1:], *new])]
        else:
            settings[key] = [*settings.get(key, []), *new] if append else list(new)


def build(
    settings: Settings, environment: Mapping[str, str], warnings: tuple[str, ...], command: str, version: str
) -> Config:
    """Check the merged settings and give them their types."""

    def one(name: str, default: str = "") -> str:
        values = settings.get(name) or [""]
        return values[-1] or default

    def many(name: str) -> list[str]:
        return [part.strip() for value in settings.get(name, []) for part in value.split(",") if part.strip()]

    def yes(name: str) -> bool:
        value = one(name, "false").lower()
        if value not in ("true", "false", "1", "0", "yes", "no"):
            raise Failure(f'invalid value "{value}" for flag -{name}: expected true or false')
        return value in ("true", "1", "yes")

    if one("server") and command == "server":
        raise Failure("the stand-in's server is the only one and cannot join another (--server, K3S_URL)")
    if command == "agent" and not one("server"):
        raise Failure("--server is required")
    if command == "agent" and not one("token") and not one("token-file"):
        raise Failure("--token is required")
    if not yes("docker") and not yes("disable-agent"):
        raise Failure("the stand-in makes pods only with dockerd: set `docker: true` or give --docker")
    kubelet_flags = dict(argument.lstrip("-").partition("=")[::2] for argument in settings.get("kubelet-arg", []))
    data_dir = Path(one("data-dir", "/var/lib/rancher/k3s")).absolute()
    runs_pods = not yes("disable-agent")
    etc_dir = Path(environment.get("DIND_K3S_STANDIN_ETC") or "/etc/rancher")
    shared = token(one("token"), one("token-file"))
    kubelet_settings, kubelet_refusal = {}, ""
    if runs_pods:
        try:
            kubelet_settings = kubelet.effective(settings.get("kubelet-arg", []), data_dir, flags.numbers(version))
        except Failure as failure:
            kubelet_refusal = str(failure)
    node_ips = many("node-ip") or many("advertise-address")
    for address in node_ips:
        try:
            ip_address(address)
        except ValueError:
            raise Failure(f"not an IP address: {address} (--node-ip or --advertise-address)") from None
    return Config(
        data_dir=data_dir,
        kubelet_dir=Path(kubelet_flags.get("root-dir") or "/var/lib/kubelet").absolute(),
        resolv_conf=Path(one("resolv-conf")) if one("resolv-conf") else None,
        etc_dir=etc_dir,
        node_name=node_name(one("node-name", socket.gethostname())),
        node_ip=node_ips[0] if node_ips else None,
        node_labels=labels(many("node-label")),
        kubeconfig=Path(one("write-kubeconfig", str(etc_dir / "k3s/k3s.yaml"))).absolute(),
        kubeconfig_mode=mode(one("write-kubeconfig-mode", "0600")),
        bind_address=one("bind-address", "0.0.0.0"),
        port=port(one("https-listen-port", "6443")),
        tls_sans=tuple(many("tls-san")),
        service_cidr=network("service-cidr", [*many("service-cidr"), "10.43.0.0/16"][0]),
        cluster_cidr=network("cluster-cidr", [*many("cluster-cidr"), "10.42.0.0/16"][0]),
        token=shared.rpartition(":")[2] or None,
        token_hash=shared[3:].partition(":")[0] if shared.startswith("K10") else "",
        docker_socket=docker_socket(one("container-runtime-endpoint") or environment.get("DOCKER_HOST", "")),
        warnings=warnings,
        agent=runs_pods,
        server=one("server"),
        disabled=frozenset(many("disable")),
        kubelet=kubelet_settings,
        kubelet_refusal=kubelet_refusal,
    )


def node_name(name: str) -> str:
    """Check a node's name; the kubelet lowers a hostname, too."""
    lowered = name.lower()
    if not lowered or not all(part.isalnum() or part in "-." for part in lowered) or not lowered.isascii():
        raise Failure(f"not a name for a node: {name!r}; letters, digits, dots and dashes make one (--node-name)")
    return lowered


def labels(words: list[str]) -> dict[str, str]:
    """Read `key=value` words."""
    for word in words:
        if "=" not in word:
            raise Failure(f"not a label: {word}; expected key=value (--node-label)")
    return dict(word.partition("=")[::2] for word in words)


def mode(text: str) -> int:
    """Read an octal file mode."""
    try:
        return int(text, 8)
    except ValueError:
        raise Failure(f"not a file mode: {text}; expected octal digits as in 0600 (--write-kubeconfig-mode)") from None


def port(text: str) -> int:
    """Read a TCP port."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise Failure(f'invalid value "{text}" for flag -https-listen-port: expected a port between 1 and 65535')
    return int(text)


def network(flag: str, text: str) -> IPv4Network:
    """Read an IPv4 network."""
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise Failure(f"not an IPv4 network: {text} (--{flag}): {error}") from None


def token(text: str, file: str) -> str:
    """The token from the flag or from the file: a password, or K10HASH::USER:PASSWORD with the hash of the CA."""
    if file and not text:
        try:
            text = Path(file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise Failure(f"cannot read the token file {file}: {error.strerror}") from None
    return text


def docker_socket(text: str) -> Path:
    """Take dockerd's unix socket out of an address."""
    if text and not text.startswith(("unix://", "/")):
        raise Failure(f"the stand-in talks to dockerd over a unix socket only, found: {text}")
    return Path(text.removeprefix("unix://") or "/var/run/docker.sock")
