"""kubeconfig [--server URL]: the administrator's kubeconfig, for use from outside of this container.

What port is published, and under which names this container is known, cannot be seen from inside; --server names them.
Where the API server's certificate is not for that host, the kubeconfig says for which name to check it
(tls-server-name), so that it works and is still checked; clients that do not know that field need the name in the
certificate.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import shutil
import socket
import sys
from urllib.parse import urlsplit

from dind_k3s import k3s_config
from dind_k3s.plan import Mistake, asked, shown
from dind_k3s.root import at
from dind_k3s.trust import trusting

USAGE = """usage: kubeconfig [--server URL]
Prints a kubeconfig for use from outside. URL is where the API server is reached, as in https://ci.example:16443;
the port is 6443 unless told. Without it https://127.0.0.1:6443, as `docker run -p 127.0.0.1:6443:6443` publishes it."""

SERVER = re.compile(r"^(\s*)server:\s*(\S+)\s*$", re.MULTILINE)


def read() -> str:
    """What k3s wrote. Raises Mistake."""
    if asked(os.environ, "K3S_DISABLE"):
        raise Mistake("K3S_DISABLE is set, so there is no cluster and no kubeconfig")
    file = k3s_config.kubeconfig(os.environ)
    try:
        text = at(file).read_text()
    except FileNotFoundError:
        raise Mistake(f"k3s has not written {shown(file)} yet; `wait-ready` waits for it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{shown(file)} cannot be read: {error}") from None
    if not SERVER.search(text):
        raise Mistake(f"{shown(file)} names no server; is it a kubeconfig?")
    return text


def copy_for_testcontainers() -> None:
    """Put a file where k3s left a link to its kubeconfig: Testcontainers copies it, and docker follows no link."""
    link = at("/etc/rancher/k3s/k3s.yaml")
    try:
        if not link.is_symlink():
            return
        copy = link.with_name("k3s.yaml.new")
        copy.touch(mode=0o600)
        shutil.copy2(link, copy)
        os.chown(copy, -1, link.stat().st_gid)
        copy.replace(link)
    except OSError:
        return  # the link stays, and serves everybody inside


def server_url(given: str) -> str:
    """A URL as kubectl wants it; the scheme and k3s's port may be left out. Raises Mistake."""
    try:
        parts = urlsplit(given if "://" in given else f"https://{given}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Mistake(f"--server {shown(given)} is no URL: {error}") from None
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme != "https" or not host or not plain or not given.isprintable() or " " in given:
        raise Mistake(f"--server wants a URL as https://HOST:PORT, not {shown(given)}")
    return f"https://{f'[{host}]' if ':' in host else host}:{port or 6443}"


def certified(text: str) -> list[str]:
    """The names and addresses that the API server's certificate is for. Raises OSError, ValueError."""
    found = dict(re.findall(r"^\s*([a-z-]+):\s*(\S+)$", text, re.MULTILINE))
    authority = base64.b64decode(found.get("certificate-authority-data", "")).decode()
    context = trusting(authority, any_name=True)
    local = urlsplit(found["server"])
    with (
        socket.create_connection((local.hostname or "127.0.0.1", local.port or 443), timeout=5) as connection,
        context.wrap_socket(connection) as secured,
    ):
        names = (secured.getpeercert() or {}).get("subjectAltName", ())
    return [str(name[1]) for name in names if isinstance(name, tuple)]


def covers(name: str, host: str) -> bool:
    """Whether this name of a certificate matches the host (RFC 9525: a wildcard is one whole label)."""
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(host)
    except ValueError:
        pass
    name, host = name.lower(), host.lower()
    return name == host or (name.startswith("*.") and name[1:] == host[host.find(".") :])


def made(text: str, url: str) -> tuple[str, str]:
    """The kubeconfig with that server, and what has to be said about its certificate."""
    host = urlsplit(url).hostname or ""
    warning, check = "", ""
    try:
        names = certified(text)
    except (OSError, ValueError) as error:
        warning = f"the API server did not show its certificate ({error}), so it is not known whether it is for {host}"
    else:
        if not any(covers(name, host) for name in names):
            check = next(iter(sorted(names, key=lambda name: (name != "kubernetes", name))), "")
            warning = (
                f"the API server's certificate is not for {host}, so this kubeconfig checks it for {check} "
                f"(tls-server-name); for clients that cannot do that: -e K3S_TLS_SAN={host}, or tls-san in "
                "/app/k3s/config.yaml"
            )
    extra = f"\n\\1tls-server-name: {check}" if check else ""
    return SERVER.sub(rf"\1server: {url}{extra}", text), warning


def main() -> int:
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    if len(arguments) == 1 and arguments[0].startswith("--server="):
        arguments = ["--server", arguments[0].partition("=")[2]]
    if arguments and (len(arguments) != 2 or arguments[0] != "--server"):
        print(USAGE, file=sys.stderr)
        return 2
    try:
        url = server_url(arguments[1]) if arguments else ""
        text = read()
    except Mistake as mistake:
        print(f"kubeconfig: {mistake}", file=sys.stderr)
        return 2
    warning = ""
    if url:
        text, warning = made(text, url)
    print(text, end="")
    if warning:
        print(f"kubeconfig: {warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
