"""Before an agent starts: whether its server can be reached, is the one that the token is for, and takes the token.

k3s itself tries again and again and reports it in a log line among many. A token of the form K10HASH::USER:PASSWORD
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

from dind_k3s import k3s_config
from dind_k3s.http_api import Connection
from dind_k3s.root import at
from dind_k3s.trust import trusting

PATIENCE = 10.0


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
    try:
        checked = context_for(ca.decode(), full[1] if full else "")
        if checked is None:
            return f"the token is not for the server at {url}: its CA is another; see /app/k3s/server/node-token there"
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


def context_for(bundle: str, digest: str) -> ssl.SSLContext | None:
    """A context that trusts what the token's hash is for; None when that is not in the server's bundle.

    k3s hashes the whole bundle, or, where it has more than one certificate, the DER of the root that the first one
    leads to (k3s: pkg/clientaccess/token.go). Then this root alone is trusted: the others only help to build the chain.
    Agents reach a server by names that its certificate does not have.
    """
    if digest in ("", hashlib.sha256(bundle.encode()).hexdigest()):
        return trusting(bundle, any_name=True)
    certificates = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", bundle, re.DOTALL)
    roots = [one for one in certificates[1:] if hashlib.sha256(ssl.PEM_cert_to_DER_cert(one)).hexdigest() == digest]
    if not roots:
        return None
    pinned = trusting("\n".join([*roots, *(one for one in certificates if not is_root(one))]), any_name=True)
    pinned.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN  # a chain has to end in a root
    return pinned


def is_root(certificate: str) -> bool:
    """Whether a certificate is signed by itself."""
    context = ssl.create_default_context(cadata=certificate)
    return any(one["issuer"] == one["subject"] for one in context.get_ca_certs())


def main() -> int:
    variables = {"server": "K3S_URL", "token": "K3S_TOKEN", "token-file": "K3S_TOKEN_FILE"}
    given = {flag: os.environ.get(name, "") for flag, name in variables.items()}
    given |= k3s_config.given(os.environ, *variables)
    url, token = given["server"], given["token"] or at(given["token-file"]).read_text().strip()
    logged = ""
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
        if waits != logged:
            logged = waits
            print(waits, flush=True)
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
