"""Asks dockerd and k3s whether they are ready, and writes the answer where anybody can read it for nothing.

/run/dind-k3s/ready/{docker,k8s}   there while it is ready; holds the seconds it took
/run/dind-k3s/health               "STATE EPOCH TEXT", STATE is ok, starting or failing; for the HEALTHCHECK
/run/dind-k3s/state.json           all of it, for programs

docker is ready when it answers; k8s when the API server does, a node is Ready and the default service account is there
(without it no pod is admitted). Images of /app/images are part of the health, not of k8s.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import Any

RUN = Path("/run/dind-k3s")
SOCKET = "/run/docker.sock"
QUICK, EARLY, STEADY = 0.1, 0.3, 5.0  # seconds between looks: before docker, before k8s, from then on


class Docker:
    """dockerd, at its socket."""

    def problem(self) -> str:
        connection = http.client.HTTPConnection("localhost", timeout=3)
        try:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(3)
            connection.sock.connect(SOCKET)
            connection.request("GET", "/_ping")
            status = connection.getresponse().status
            return "" if status == 200 else f"dockerd answers {status}"
        except OSError as error:
            return f"dockerd does not answer ({error.strerror or error})"
        finally:
            connection.close()


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
        pair = RUN / "watch.pem"
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


def uptime() -> float:
    """Seconds since PID 1 began, which is the container's start."""
    began = int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.rename(path)


def images() -> str:
    """What run-preload last said; empty when there is nothing to load."""
    try:
        return (RUN / "images").read_text().strip()
    except FileNotFoundError:
        return ""


def main() -> int:
    (RUN / "ready").mkdir(parents=True, exist_ok=True)
    stages: dict[str, Docker | Kubernetes] = {"docker": Docker()}
    if os.environ.get("DIND_K3S_START_K3S") == "true":
        stages["k8s"] = Kubernetes(Path(os.environ.get("KUBECONFIG", "/app/k3s/k3s.yaml")))
    since: dict[str, float] = {}
    was_ok = False
    while True:
        problems: dict[str, str] = {}
        for stage, target in stages.items():
            problem = next(iter(problems.values()), "") or target.problem()
            flag = RUN / "ready" / stage
            if problem:
                problems[stage] = problem
                flag.unlink(missing_ok=True)
                if since.pop(stage, None) is not None:
                    print(f"{stage} is not ready any more: {problem}", flush=True)
            elif stage not in since or not flag.exists():  # keeper.py removes it when the program ends
                since[stage] = round(uptime(), 1)
                flag.write_text(f"{since[stage]}\n")
                print(f"{stage} is ready after {since[stage]} s", flush=True)
        loading = images()
        problem = next(iter(problems.values()), "") or (f"images: {loading}" if loading.startswith("loading") else "")
        was_ok = was_ok or not problem
        health = "ok" if not problem else "failing" if was_ok else "starting"
        text = problem or ", ".join(f"{stage} ready after {seconds} s" for stage, seconds in since.items())
        write(RUN / "health", f"{health} {int(time.time())} {text}\n")
        state = {"health": health, "text": text, "ready_after": since, "problems": problems, "images": loading}
        write(RUN / "state.json", json.dumps(state) + "\n")
        time.sleep(QUICK if "docker" in problems else EARLY if problem else STEADY)


if __name__ == "__main__":
    sys.exit(main())
