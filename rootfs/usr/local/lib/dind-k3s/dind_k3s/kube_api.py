"""The API server, with the administrator's kubeconfig that k3s writes."""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
from pathlib import Path
from typing import Any

from dind_k3s.root import RUN, at


class Kubernetes:
    """k3s, with the administrator's kubeconfig; /readyz wants a certificate."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.read_at = 0
        self.server = ("127.0.0.1", 6443)
        self.context: ssl.SSLContext | None = None
        self.complete = False

    def load(self) -> None:
        """Read the kubeconfig when it is new. k3s writes it, so lines are enough to find what is needed."""
        changed = self.kubeconfig.stat().st_mtime_ns
        if changed == self.read_at:
            return
        text = self.kubeconfig.read_text()
        found = dict(re.findall(r"^\s*([a-z-]+): *(\S+)$", text, re.MULTILINE))
        context = ssl.create_default_context(cadata=base64.b64decode(found["certificate-authority-data"]).decode())
        pair = at(f"{RUN}/client.pem")
        pair.touch(mode=0o600)
        pair.write_bytes(
            base64.b64decode(found["client-certificate-data"]) + base64.b64decode(found["client-key-data"])
        )
        context.load_cert_chain(pair)
        pair.unlink()
        address = re.match(r"https://([^/:]+|\[[^]]+\])(?::(\d+))?", found["server"])
        if address:
            self.server = (address[1].strip("[]"), int(address[2] or 443))
        self.context, self.read_at = context, changed

    def problem(self) -> str:
        try:
            self.load()
        except FileNotFoundError:
            return "k3s has not written its kubeconfig yet"
        except (OSError, KeyError, ValueError) as error:
            return f"{self.kubeconfig} cannot be used ({error})"
        connection = http.client.HTTPSConnection(*self.server, timeout=5, context=self.context)
        try:
            return self.ask(connection)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.read_at = 0  # a new certificate, perhaps
            return f"the API server does not answer ({error})"
        finally:
            connection.close()

    def ask(self, connection: http.client.HTTPSConnection) -> str:
        status, _ = get(connection, "/readyz")
        if status != 200:
            return f"the API server is not ready (readyz answers {status})"
        status, nodes = get(connection, "/api/v1/nodes")
        if status != 200:
            return f"the API server does not list nodes ({status})"
        if not any(is_ready(node) for node in json.loads(nodes).get("items", [])):
            return "no node is Ready"
        if not self.complete:
            status, _ = get(connection, "/api/v1/namespaces/default/serviceaccounts/default")
            if status != 200:
                return "the default service account is not there yet"
            self.complete = True
        return ""


def get(connection: http.client.HTTPSConnection, path: str) -> tuple[int, bytes]:
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def is_ready(node: dict[str, Any]) -> bool:
    conditions = node.get("status", {}).get("conditions", [])
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
