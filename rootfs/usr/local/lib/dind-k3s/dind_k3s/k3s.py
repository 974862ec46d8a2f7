"""k3s's arguments, our fragment of its configuration, and the kubelet's: the user's files are read after ours.

Which setting goes to which version: k3s_versions.py. How k3s puts its sources together (pkg/configfilearg/parser.go):
the files become arguments in front of the real ones, so a flag of K3S_ARGS wins over a file's value, and one that may
come more than once (tls-san, disable, kubelet-arg …) is added to the file's. Of files, the last one wins; `key+:` adds.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from dind_k3s import k3s_config, limits, mounts, renamed
from dind_k3s.k3s_command import Role, role_and_flags, sources
from dind_k3s.k3s_config import SHORT
from dind_k3s.k3s_versions import Version, knows, refusal, runs_dockershim, too_old_to_talk
from dind_k3s.plan import Mistake, Plan, asked, shown
from dind_k3s.root import KUBECONFIG, RUN, at
from dind_k3s.volume import ADMIN, TRAEFIK_CONFIG, has_cluster

DATA = "/app/k3s"
# Between k3s's own (00-k3s-defaults.conf) and the copies of what the user hands to kubelet (10-cli-config.conf).
DROP_IN = f"{DATA}/agent/etc/kubelet.conf.d/05-dind-k3s.conf"
NODE_NAME = f"{DATA}/.dind-k3s/node-name"

NAMES = ("localhost", "host.docker.internal", "docker", "k3s", "kubernetes")
CI_WITHOUT = ("traefik", "servicelb", "metrics-server")
MORE_SERVERS = ("server", "cluster-init", "datastore-endpoint")  # settings of a server that is not the only one
MANY = ("tls-san", "disable", "kubelet-arg")  # flags that may come more than once

# Traefik takes ports 80 and 443 of the node itself. k3s's own way to them, servicelb, guesses the iptables backend by
# loaded modules and is wrong where nf_tables is built in (k3s-io/klipper-lb#99). On the server's node, whose ports are
# the published ones; and a new pod cannot have the ports while the old one holds them. Charts before 40 know
# service.type, later ones service.spec.type; 39.0.7 and 40.1.4 each take both.
_TRAEFIK = """\
# Generated at each start. K3S_TRAEFIK=0 leaves Traefik out; a HelmChartConfig in /app/manifests replaces this one.
apiVersion: helm.cattle.io/v1
kind: HelmChartConfig
metadata:
  name: traefik
  namespace: kube-system
spec:
  valuesContent: |-
    ports:
      web:
        hostPort: 80
      websecure:
        hostPort: 443
    service:
      type: ClusterIP
      spec:
        type: ClusterIP
    nodeSelector:
      node-role.kubernetes.io/control-plane: "true"
    updateStrategy:
      rollingUpdate:
        maxUnavailable: 1
        maxSurge: 0
"""


def yaml(value: object) -> str:
    """A value of our fragment. JSON's spelling of scalars is YAML's."""
    if isinstance(value, list):
        return "".join(f"\n  - {json.dumps(item)}" for item in value)
    return f" {json.dumps(value)}"


def plan(
    env: Mapping[str, str], facts: Mapping[str, str], version: Version, profile: str, docker: Version = (0,)
) -> Plan:
    """k3s's arguments, our fragment of its configuration, and the kubelet's."""
    made = Plan()
    role, args = role_and_flags(env)
    check_flags(args, env)
    if role == "agent":
        check_agent(env)
    config_file = take_config_file(args, env)
    check_pair(version, docker, env, made)
    given = k3s_config.given(env, "data-dir", *MORE_SERVERS)
    refuse_noexec(given.pop("data-dir", DATA))
    given = {"datastore-endpoint": env.get("K3S_DATASTORE_ENDPOINT", ""), **given, "server": k3s_config.joins(env)}
    if env.get("K3S_URL") and not given["server"]:
        made.messages.append("K3S_URL is not used: this is a server, and it has no K3S_TOKEN to join another one")
    several = role == "agent" or any(value not in ("", "false") for value in given.values())
    settings: dict[str, object] = {"docker": True, "data-dir": DATA, "node-name": node_name(several, env, made)}
    # Always said: k3s by itself takes none but global addresses, and asks a public server where there is no such one.
    if not env.get("K3S_RESOLV_CONF"):
        settings["resolv-conf"] = f"{RUN}/resolv.conf" if "dns" in facts else "/etc/resolv.conf"
    if role == "server":
        settings |= server_settings(env, version, profile)
        settings |= {name: facts[name] for name in ("cluster-cidr", "service-cidr") if name in facts}
        kubeconfig(env, made)
        made.files[renamed.NAMES] = renamed.noted()
    else:
        made.messages.extend(renamed.left_on_server(str(settings["node-name"]), env))
    traefik(role, "traefik" not in words_of(settings.get("disable")) and not leaves_traefik_out(env), made)
    kubelet(settings, facts, version, profile, made)
    tell_flags(args, settings, sources(env), made)
    if runs_dockershim(version):
        made.messages.append("k3s before 1.24 runs pods by kubelet's own dockershim")
    text = "".join(f"{key}:{yaml(value)}\n" for key, value in settings.items())
    made.files[f"{RUN}/k3s/config.yaml"] = (
        "# Generated at each start; yours is /app/k3s/config.yaml, and it wins.\n" + text
    )
    made.files[f"{RUN}/k3s/also"] = config_file
    made.files[f"{RUN}/k3s.args"] = "".join(f"{arg}\0" for arg in (role, *args))
    if args or role == "agent":
        made.messages.append(f"k3s {shlex.join([role, *args])}")
    return made


def check_flags(args: list[str], env: Mapping[str, str]) -> None:
    """Raise Mistake for words that start no k3s."""
    if ends := {"--help", "-h", "--version", "-v"} & set(args):
        raise Mistake(f"{', '.join(sorted(ends))} in {sources(env)} does not start k3s; leave it out")
    if args and not args[0].startswith("-"):
        raise Mistake(f"{sources(env)} has the word {shown(args[0])} where a flag is expected")


def check_agent(env: Mapping[str, str]) -> None:
    """Raise Mistake for what an agent lacks."""
    url = env.get("K3S_URL", "")
    if not k3s_config.joins(env):
        raise Mistake("an agent needs K3S_URL, the address of the server: https://NAME:6443")
    if url and not re.fullmatch(r"https://[^/\s]+/?", url):
        raise Mistake(f"K3S_URL is {shown(url)}, but the address of a k3s server looks like https://NAME:6443")
    if not k3s_config.has_token(env):
        raise Mistake("an agent needs K3S_TOKEN or K3S_TOKEN_FILE; the server has it in /app/k3s/server/node-token")
    token_file = env.get("K3S_TOKEN_FILE", "")
    if token_file and not at(token_file).is_file():
        raise Mistake(f"K3S_TOKEN_FILE is {shown(token_file)}, but there is no such file in this container")


def take_config_file(args: list[str], env: Mapping[str, str]) -> str:
    """The file of --config, out of the flags: k3s would not read it, because K3S_CONFIG_FILE names ours."""
    for number, arg in enumerate(args):
        name, has_value, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and SHORT.get(name, name) == "config":
            value = value if has_value else "".join(args[number + 1 : number + 2])
            del args[number : number + (1 if has_value else 2)]
            if not at(value).is_file():
                name = shown(value) or "of no name"
                raise Mistake(f"{sources(env)} names the configuration {name}, but there is no such file")
            return value
    return ""


def flags(args: list[str]) -> dict[str, str]:
    """Long name of each flag → how the user wrote it."""
    found = {}
    for arg in args:
        if written := re.match(r"--?([a-z][a-z0-9-]*)", arg):
            found[SHORT.get(written[1], written[1])] = written[0]
    return found


def words_of(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def check_pair(version: Version, docker: Version, env: Mapping[str, str], made: Plan) -> None:
    """Refuse what is known to run no pod."""
    if why := refusal(version, docker):
        raise Mistake(why)
    if too_old_to_talk(version, docker):
        if not env.get("DOCKER_MIN_API_VERSION"):
            raise Mistake(
                f"Docker {docker[0]} does not answer k3s {'.'.join(map(str, version))}, whose client is older than API"
                " 1.44; take a newer k3s, or set DOCKER_MIN_API_VERSION=1.24"
            )
        made.messages.append("warning: this k3s is older than this docker; it works only by DOCKER_MIN_API_VERSION")


def refuse_noexec(data: str) -> None:
    """k3s unpacks its programs into <data-dir>/data and runs them there (k3s: cmd/k3s/main.go)."""
    if mount := mounts.noexec(f"{data}/data"):
        raise Mistake(
            f"{mount} is mounted noexec, and k3s runs its programs from {data}/data: mount it with exec. docker mounts"
            f" a tmpfs noexec unless it is asked otherwise: --tmpfs {mount}:exec"
        )


def node_name(several: bool, env: Mapping[str, str], made: Plan) -> str:
    """Return `local-node` for the only server: a host name would leave a dead node behind at each re-creation.

    Where there are several machines, each needs another name: its first host name, kept in the volume. A server that
    began alone keeps its name when others join it.
    """
    if name := env.get("K3S_NODE_NAME"):
        return name
    kept = at(NODE_NAME)
    name = kept.read_text().strip() if kept.is_file() else ""
    if not name and (not several or has_cluster()):
        return "local-node"
    if not name:
        name = re.sub(r"[^a-z0-9.-]+", "-", os.uname().nodename.lower()).strip("-.") or "agent"
        made.files[NODE_NAME] = f"{name}\n"
    return name


def names(env: Mapping[str, str]) -> list[str]:
    """What the API server's certificate is for, besides the node's name and addresses."""
    found = [*NAMES, os.uname().nodename, *re.split(r"[,\s]+", env.get("K3S_TLS_SAN", ""))]
    return [*dict.fromkeys(filter(None, found))]


def server_settings(env: Mapping[str, str], version: Version, profile: str) -> dict[str, object]:
    """What only a server has."""
    backend = env.get("K3S_FLANNEL_BACKEND") or "host-gw"
    settings: dict[str, object] = {
        "write-kubeconfig": env.get("K3S_KUBECONFIG_OUTPUT") or f"{DATA}/k3s.yaml",
        "write-kubeconfig-mode": env.get("K3S_KUBECONFIG_MODE") or "0600",
        "tls-san": names(env),
        # One node, or some in one network: no tunnel, no vxlan module.
        "flannel-backend": backend,
    }
    if backend == "host-gw" and knows("egress-selector-mode", version):
        # The API server reaches every kubelet of such a network by itself.
        settings["egress-selector-mode"] = "disabled"
    without = list(CI_WITHOUT) if profile == "ci" else []
    if env.get("K3S_TRAEFIK"):
        without = [name for name in without if name != "traefik"]
        if not asked(env, "K3S_TRAEFIK"):
            without.append("traefik")
    if without:
        settings["disable"] = without
    return settings


def kubeconfig(env: Mapping[str, str], made: Plan) -> None:
    """Keep the kubeconfig of our programs and of kubectl inside out of the user's hands (root.py)."""
    elsewhere = k3s_config.kubeconfig(env) != KUBECONFIG
    if elsewhere or at(KUBECONFIG).is_symlink():
        made.files[KUBECONFIG] = ""
    if elsewhere:
        made.links[KUBECONFIG] = ADMIN


def traefik(role: Role, wanted: bool, made: Plan) -> None:
    """Our HelmChartConfig, unless the user has one: two of a name would take turns."""
    made.files[TRAEFIK_CONFIG] = ""
    if role != "server" or not wanted:
        return
    for folder in (at("/app/manifests"), at(f"{DATA}/server/manifests")):
        for file in sorted(folder.rglob("*.yaml")):
            if file != at(TRAEFIK_CONFIG) and is_traefik_config(file):
                made.messages.append(
                    f"Traefik is configured by {file.name}, so ports 80 and 443 are that file's matter"
                )
                return
    made.files[TRAEFIK_CONFIG] = _TRAEFIK


def leaves_traefik_out(env: Mapping[str, str]) -> bool:
    """Whether the user's own settings of k3s do."""
    settings = k3s_config.given(env, "disable", "disable-helm-controller")
    without_helm = settings.get("disable-helm-controller", "").lower() == "true"
    return without_helm or "traefik" in settings.get("disable", "").split(",")


def is_traefik_config(file: Path) -> bool:
    try:
        documents = file.read_text(errors="replace").split("\n---")
    except OSError:
        return False
    named = re.compile(r"^\s+name:\s*['\"]?traefik['\"]?\s*$", re.MULTILINE)
    kind = re.compile(r"^kind:\s*['\"]?HelmChartConfig\b", re.MULTILINE)
    return any(kind.search(document) and named.search(document) for document in documents)


def kubelet(settings: dict[str, object], facts: Mapping[str, str], version: Version, profile: str, made: Plan) -> None:
    """kubelet's settings: a drop-in file where k3s reads one, else flags. A flag of the user beats the drop-in."""
    config: dict[str, object] = {}
    if profile != "edge":
        # The store is the user's, too: kubelet must not clean away what was just built, nor evict for the host's disk.
        config["imageGCHighThresholdPercent"] = 100
        config["evictionHard"] = {"memory.available": "100Mi", "nodefs.available": "0%", "imagefs.available": "0%"}
    if reserved := limits.system_reserved():
        config["systemReserved"] = reserved
        offered = " and ".join(f"{amount} of {name}" for name, amount in reserved.items())
        made.messages.append(f"{offered} of the host are not this container's, so the node does not offer them")
    if facts.get("cgroup") == "1" and knows("failCgroupV1", version):
        config["failCgroupV1"] = False
        made.messages.append(
            "warning: kubelet is set to accept cgroup v1, which Kubernetes is giving up; a host with v2 is better"
        )
    made.files[DROP_IN] = ""  # an empty file would be an error for kubelet, so none is left from another version
    if not config:
        return
    if knows("kubelet.conf.d", version):
        kind = {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration"}
        made.files[DROP_IN] = json.dumps({**kind, **config}) + "\n"
    else:
        settings["kubelet-arg"] = [*kubelet_flags(config)]


def kubelet_flags(config: Mapping[str, object]) -> list[str]:
    """The same as flags, as kubelets before 1.33 want it."""
    found = []
    for key, value in config.items():
        match key, value:
            case "imageGCHighThresholdPercent", int():
                found.append(f"image-gc-high-threshold={value}")
            case "evictionHard", dict():
                found.append("eviction-hard=" + ",".join(f"{name}<{least}" for name, least in value.items()))
            case "systemReserved", dict():
                found.append("system-reserved=" + ",".join(f"{name}={amount}" for name, amount in value.items()))
    return found


def tell_flags(args: list[str], settings: Mapping[str, object], source: str, made: Plan) -> None:
    """What a flag of the user does to a setting of ours."""
    given = flags(args)
    for name, written in given.items():
        if name == "data-dir":
            made.messages.append(
                f"warning: {written} leads out of the volume at /app/k3s; the cluster's state may be lost"
            )
        elif name == "container-runtime-endpoint":
            made.messages.append(
                f"warning: {written} replaces dockerd; what docker builds here is then not what pods run"
            )
        elif name in settings:
            done = "adds to" if name in MANY else "replaces"
            made.messages.append(f"{written} in {source} {done} our {name}")
