"""Before an agent starts: whether its server can be reached, is the one that the token is for, and takes the token.

k3s itself tries again and again and tells of it in a log line among many. A token of the form K10HASH::USER:PASSWORD
carries the hash of the server's CA (docs.k3s.io/cli/token); a short one is the password alone, and then any server is
believed, as k3s does.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import socket
import ssl
import sys
import time

from dind_k3s.http_api import Connection
from dind_k3s.k3s import SHORT
from dind_k3s.plan import words
from dind_k3s.root import at

PATIENCE = 10.0


def setting(name: str, flag: str) -> str:
    """A flag in K3S_ARGS, else the variable."""
    args = words("K3S_ARGS", os.environ)
    for number, arg in enumerate(args):
        key, has_value, value = arg.partition("=")
        if SHORT.get(key.lstrip("-"), key.lstrip("-")) == flag:
            return value if has_value else "".join(args[number + 1 : number + 2])
    return os.environ.get(name, "")


def ask(host: str, port: int, path: str, context: ssl.SSLContext, headers: str = "") -> tuple[int, bytes]:
    sock = socket.create_connection((host, port), timeout=PATIENCE)
    with sock, context.wrap_socket(sock, server_hostname=host) as tls:
        answer = Connection(tls, f"{host}:{port}", headers).get(path)
        return answer.status, answer.read()


def problem(url: str, token: str) -> str:
    """Why this agent cannot join; empty when it can. OSError while the server is not there."""
    found = re.match(r"https://([^/:]+|\[[^]]+\])(?::(\d+))?", url)
    if found is None:
        return f"K3S_URL is {url}, but the address of a k3s server looks like https://NAME:6443"
    host, port = found[1].strip("[]"), int(found[2] or 443)
    unchecked = ssl.create_default_context()
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE
    status, ca = ask(host, port, "/cacerts", unchecked)
    if status != 200:
        return f"{url} is not a k3s server (/cacerts answers {status})"
    full = re.match(r"K10([0-9a-f]{64})::(?:[^:]*:)?(.*)", token)
    if full and hashlib.sha256(ca).hexdigest() != full[1]:
        return f"the token is not for the server at {url}: its CA is another; see /app/k3s/server/node-token there"
    try:
        checked = ssl.create_default_context(cadata=ca.decode())
        checked.check_hostname = False  # agents reach a server by names that its certificate does not have
        password = full[2] if full else token
        if re.fullmatch(r"[a-z0-9]{6}\.[a-z0-9]{16}", password):  # of `k3s token create`
            credentials = f"Bearer {password}"
        else:
            credentials = "Basic " + base64.b64encode(f"node:{password}".encode()).decode()
        status, _ = ask(host, port, "/v1-k3s/client-ca.crt", checked, f"Authorization: {credentials}\r\n")
    except (ssl.SSLError, ValueError) as error:
        return f"the certificate of {url} is not signed by its own CA ({error})"
    if status in (401, 403):
        return f"the server at {url} refuses the token; it is in /app/k3s/server/node-token there"
    return "" if status == 200 else f"the server at {url} is not ready to take agents ({status})"


def main() -> int:
    url, token = setting("K3S_URL", "server"), setting("K3S_TOKEN", "token")
    if not token:
        token = at(setting("K3S_TOKEN_FILE", "token-file")).read_text().strip()
    told = ""
    while True:
        try:
            why = problem(url, token)
        except OSError as error:
            why = ""
            waits = f"waiting for the server at {url} ({error.strerror or error})"
        else:
            if not why:
                return 0
            if "not ready" not in why:
                print(f"dind-k3s: error: {why}", file=sys.stderr)
                return 2
            waits = why
        if waits != told:
            told = waits
            print(waits, flush=True)
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
