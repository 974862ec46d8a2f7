"""k3s's /etc/rancher/k3s/registries.yaml, for dockerd: k3s itself reads it for its own containerd alone.

Becomes: registry-mirrors and insecure-registries of daemon.json, links in /etc/docker/certs.d, and logins in
/root/.docker/config.json, where the docker client and kubelet look. What dockerd has nothing for is logged, one line
each. https://docs.k3s.io/installation/private-registry
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from dind_k3s import plain_yaml
from dind_k3s.authorities import certificates
from dind_k3s.plan import Mistake, Plan
from dind_k3s.root import at

FILE = "/etc/rancher/k3s/registries.yaml"
LOGINS = "/root/.docker/config.json"
CERTS = "/etc/docker/certs.d"
HUB = "docker.io"
TLS = {"ca_file": "ca.crt", "cert_file": "client.cert", "key_file": "client.key"}


class Registries:
    """What the file says, taken apart."""

    def __init__(self, text: str) -> None:
        self.plan = Plan()
        self.mirrors: list[str] = []
        self.insecure: list[str] = []
        self.logins: dict[str, dict[str, str]] = {}
        content = mapping(plain_yaml.parse(text, FILE), FILE)
        self.left_out(content, ("mirrors", "configs"), "")
        mirrors = mapping(content.get("mirrors"), "mirrors")
        for host, mirror in mirrors.items():
            if host != "*" or HUB not in mirrors:
                self.mirror(host, mapping(mirror, f"mirrors of {host}"))
        for host, config in mapping(content.get("configs"), "configs").items():
            self.config(host, mapping(config, f"configs of {host}"))

    def report(self, what: str, why: str) -> None:
        self.plan.messages.append(f"warning: {FILE}: {what} is left out: {why}")

    def left_out(self, given: dict[str, Any], known: tuple[str, ...], where: str) -> None:
        for key in given.keys() - set(known):
            self.report(f"{key}{where}", "dockerd has nothing for it")

    def mirror(self, host: str, mirror: dict[str, Any]) -> None:
        self.left_out(mirror, ("endpoint",), f" of {host}")
        for endpoint in items(mirror.get("endpoint"), f"endpoint of {host}"):
            address = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
            path = address.path.rstrip("/").removesuffix("/v2")
            if address.netloc == host:
                if address.scheme == "http":
                    self.insecure.append(host)
            elif host not in (HUB, "*"):
                self.report(f"the mirror {address.hostname} of {host}", f"dockerd has mirrors of {HUB} only")
            elif path or address.username:
                what = "a user in its address" if address.username else f"the path {path}"
                self.report(f"the mirror {address.hostname} of {HUB}", f"dockerd has no mirrors with {what}")
            else:
                self.mirrors.append(f"{address.scheme}://{address.netloc}")
        if host == "*":
            self.report("the mirror of * for registries other than docker.io", f"dockerd has mirrors of {HUB} only")

    def config(self, host: str, config: dict[str, Any]) -> None:
        host = urlsplit(host).netloc if "://" in host else host
        self.left_out(config, ("auth", "tls"), f" of {host}")
        tls = mapping(config.get("tls"), f"tls of {host}")
        auth = mapping(config.get("auth"), f"auth of {host}")
        if host == "*":
            self.report("what configs says for *", "dockerd wants each registry by name")
            return
        self.left_out(tls, (*TLS, "insecure_skip_verify"), f" of {host}")
        for key, name in TLS.items():
            if not tls.get(key):
                continue
            file = str(tls[key])
            if not at(file).is_file():
                raise Mistake(f"{FILE}: {key} of {host} is {file}, and there is no such file")
            if key != "key_file":
                certificates(file)
            self.plan.links[f"{CERTS}/{host}/{name}"] = file
        if str(tls.get("insecure_skip_verify", "")).lower() in ("true", "yes", "1"):
            self.insecure.append(host)
        self.login(host, auth)

    def login(self, host: str, auth: dict[str, Any]) -> None:
        self.left_out(auth, ("username", "password", "auth", "identity_token"), f" of {host}")
        host = "https://index.docker.io/v1/" if host in (HUB, "registry-1.docker.io") else host
        if auth.get("username") and auth.get("password"):
            pair = f"{auth['username']}:{auth['password']}"
            self.logins[host] = {"auth": base64.b64encode(pair.encode()).decode()}
        elif auth.get("auth"):
            self.logins[host] = {"auth": str(auth["auth"])}
        if auth.get("identity_token"):
            self.logins.setdefault(host, {})["identitytoken"] = str(auth["identity_token"])

    def finish(self) -> tuple[Plan, dict[str, Any]]:
        """The plan, and keys of daemon.json."""
        settings: dict[str, Any] = {}
        for key, values in (("registry-mirrors", self.mirrors), ("insecure-registries", self.insecure)):
            if values:
                settings[key] = list(dict.fromkeys(values))
                self.plan.messages.append(f"{FILE}: {key} {', '.join(settings[key])}")
        if self.logins:
            self.plan.files[LOGINS] = json.dumps(with_logins(self.logins), indent=2) + "\n"
            self.plan.messages.append(f"{FILE}: logins of {', '.join(self.logins)} for docker and kubelet")
        hosts = dict.fromkeys(link.removeprefix(f"{CERTS}/").partition("/")[0] for link in self.plan.links)
        if hosts:
            self.plan.messages.append(f"{FILE}: certificates of {', '.join(hosts)} in {CERTS}")
        return self.plan, settings


def with_logins(logins: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The client's own configuration, and these logins in it."""
    try:
        known = json.loads(at(LOGINS).read_text())
        return {**known, "auths": {**known.get("auths", {}), **logins}}
    except FileNotFoundError:
        return {"auths": logins}
    except (OSError, ValueError, AttributeError, TypeError):
        raise Mistake(f"{LOGINS} is not the docker client's configuration; {FILE} has logins for it") from None


def mapping(value: Any, what: str) -> dict[str, Any]:
    if value is None or isinstance(value, dict):
        return value or {}
    raise Mistake(f"{FILE}: {what} has to be a mapping")


def items(value: Any, what: str) -> Iterator[str]:
    if not isinstance(value, list):
        raise Mistake(f"{FILE}: {what} has to be a list")
    yield from map(str, value)


def plan() -> tuple[Plan, dict[str, Any]]:
    """Files, links and lines, and keys of daemon.json; nothing without the file."""
    try:
        text = at(FILE).read_text()
    except FileNotFoundError:
        return Plan(), {}
    except (OSError, ValueError) as error:
        raise Mistake(f"{FILE} cannot be read: {error}") from None
    return Registries(text).finish()
